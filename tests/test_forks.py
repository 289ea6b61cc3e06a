"""What users' forks find beside the package: the workflow of GitHub Actions, and images of Docker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def run_tool(*command: str) -> subprocess.CompletedProcess:
    """Runs a program that is installed beside Python."""
    place = Path(sys.executable).parent
    return subprocess.run(
        [place / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_as_github_reads_it(path, tmp_path):
    done = run_tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(path))
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(path.read_text().replace("runs-on:", "runs_on:"))
    assert run_tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(wrong)).returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_names_what_is_there(path):
    """Actions are named by a major version, targets are the Makefile's."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] for job in workflow["jobs"].values())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    lines = "\n".join(step.get("run", "") for step in steps)
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^make (?:--\S+ )*([\w./-]+)", lines, re.MULTILINE)
    assert named and set(named) <= set(targets)


def test_the_workflow_lints_as_make_lint_does_without_mmcv():
    (line,) = re.findall(r"^ +- run: (make .*lint.*)$", WORKFLOWS[0].read_text(), re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f"{line} --dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert re.findall(r"^\S*/(\S+)", done.stdout, re.MULTILINE) == ["ruff", "ruff", "clang-format"]


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    done = run_tool("hadolint", "--no-color", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("rm -rf /var/lib/apt/lists/*", "sudo true"))
    assert "DL3004" in run_tool("hadolint", "--no-color", str(tmp_path / "Dockerfile")).stdout


def test_the_dockerfiles_targets_run_as_a_user_with_the_versions_that_are_tested():
    stages = re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    targets = re.findall(r"--target (\S+)", DOCKERFILE)
    assert set(targets) == {"cpu", "cuda"} <= dict(stages).keys()
    for name in targets:
        assert re.findall(r"^USER (\S+)$", dict(stages)[name], re.MULTILINE) == ["1000"]
    installs = re.findall(r"pip install (.*)", DOCKERFILE)
    assert installs and all(line.startswith("--constraint /opt/constraints.txt ") for line in installs)
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    ]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # torch's build in constraints.txt brings CUDA's libraries of the release that compiles here.
    (cuda,) = re.findall(r"^ARG CUDA=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"CUDA {cuda}" in (ROOT / "constraints.txt").read_text()


def test_what_git_ignores_is_kept_from_docker_too():
    def patterns(name: str) -> set[str]:
        lines = (line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#"))
        return {line.removeprefix("**/").strip("/") for line in lines}

    assert patterns(".dockerignore") == patterns(".gitignore")
