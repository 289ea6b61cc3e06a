"""tools/gpu_check.sh as far as a machine without a GPU goes: what it imports, and what it leaves where parts fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# What a bare GPU machine lacks of what this one may have.
LACKING = (
    "xdist",
    "omegaconf",
    "rich",
    "wandb",
    "mmcv",
    "mmdet",
    "mmengine",
    "pycocotools",
    "faster_coco_eval",
    "statsmodels",
)
BLOCK = f"""
import sys
class Lacking:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {LACKING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking)
"""


@pytest.fixture
def bare(tmp_path):
    """The environment of a machine without those packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(tmp_path), str(TOOLS.parent)])
    return {**os.environ, "PYTHONPATH": path, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU: it would take minutes")
def test_leaves_a_summary_where_parts_fail(bare, tmp_path):
    done = run_check({**bare, "PARTS": "tests-other memcheck bench train"})
    assert done.returncode == 1, done.stderr
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"tests-other", "memcheck", "bench", "train", "gpu"}
    assert summary["tests-other"]["status"] == 0, (out / "tests.log").read_text()  # all skipped
    assert (out / "tests-other.xml").exists()
    assert summary["bench"]["status"] == summary["train"]["status"] == 1
    errors = re.findall(r"^(\w+Error): (.*)", (out / "bench.log").read_text(), re.MULTILINE)
    assert len(errors) == 2 and all("NVIDIA" in w or "CUDA" in w for _, w in errors), errors  # imports went well
    assert summary["memcheck"]["status"] != 0 and (out / "sanitizer.log").exists()  # no tool, or no GPU


def run_check(environment):
    command = ["bash", TOOLS / "gpu_check.sh"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def planned(bare, tmp_path):
    """The commands that the script would start, words and limits, from a `timeout` that starts nothing."""
    log, timeout = tmp_path / "planned", tmp_path / "bin" / "timeout"
    timeout.parent.mkdir()
    # Some start side by side: one writes at a time.
    timeout.write_text(f'#!/bin/bash\n{{ flock 9; printf "%s\\x1f" "$@" >&9; printf "\\x1e" >&9; }} 9>>{log}\n')
    timeout.chmod(0o755)
    done = run_check({**bare, "PATH": os.pathsep.join([str(timeout.parent), os.environ["PATH"]])})
    assert done.returncode == 0, done.stderr
    return [command.split("\x1f")[:-1] for command in log.read_text().split("\x1e")[:-1]]


def kind_of(command):
    return (
        next((word for word in command if word in (*SANITIZERS, "pytest")), None)
        or re.search(r"setup\.py|bench_operators|bench_models", " ".join(command))[0]
    )


def test_ends_within_eight_minutes_and_sanitizes_alone(planned):
    """Where each part runs to its limit. Sanitizers come last and get what is left."""
    assert all(command[:4] == ["-s", "INT", "-k", "10"] for command in planned)
    kinds = [kind_of(command) for command in planned]
    stages = ["setup.py", *["pytest"] * 5, "bench_operators", "bench_models"]
    assert kinds[:8] == stages and sorted(kinds[8:]) == sorted(SANITIZERS)
    limits = {kind: int(command[4]) + 10 for kind, command in zip(kinds, planned, strict=True)}
    before = sum(limits[kind] for kind in dict.fromkeys(stages))
    text = (TOOLS / "gpu_check.sh").read_text()
    whole = int(re.search(r"\bALL=(\d+)", text)[1])
    assert before + 85 + 10 <= whole < 480
    assert {limits[tool] for tool in SANITIZERS} <= {whole, whole - 1, whole - 2, whole - 3}  # nothing ran before them


def test_every_test_on_a_gpu_runs_in_one_process(planned, bare):
    # They start side by side, so in any order.
    chosen = sorted(command[command.index("-k", 4) + 1] for command in planned if "pytest" in command)
    assert [words.startswith("not ") for words in chosen] == [True] + [False] * 4
    code = """
import pytest, sys
names = "cuda", "deform_roi_pool_cuda", "depthwise_per_image_cuda", "unfold_columns_cuda"
files = [f"test_{name}.py" for name in names]
for chosen in sys.argv[1:]:
    print("--")
    pytest.main(["--collect-only", "-q", "-m", "cuda", "-k", chosen, *files])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "test", *chosen],
        env=bare,
        cwd=TOOLS.parent / "tests" / "ops",
        capture_output=True,
        text=True,
        check=False,
    )
    every, *parts = ({line for line in part.splitlines() if "::" in line} for part in done.stdout.split("--\n")[1:])
    assert sum(map(len, parts)) == len(every) and set.union(*parts) == every, done.stdout
    assert [len(part) for part in parts[1:]] == [3] * 4 and len(every) > 12


def test_small_set_for_the_sanitizer(bare):
    done = subprocess.run(
        [sys.executable, TOOLS / "gpu_small.py", "cpu"], env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
