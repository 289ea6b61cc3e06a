"""What detection needs: mmengine, mmcv and mmdet of versions that serve, or their forks; whatever else is named."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dk_bench.detection import FORKS, REQUIREMENTS, require_mm
from dk_bench.errors import UserError

ROOT = Path(__file__).parents[2]


def run_python(code, *arguments):
    """What a new interpreter that finds this package prints; it must end well."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# In one interpreter, as each takes seconds to start: what is imported of mm, then the message in every case.
WITHOUT_MM = """
import importlib, json
import dk_bench, dk_bench.training, dk_bench.tables.classification, dk_bench.cli
from dk_bench.errors import UserError
imported = sorted({name.partition(".")[0] for name in sys.modules} & {"mmengine", "mmcv", "mmdet"})
found = {}
for absent, folder, module in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    if absent:
        sys.modules[absent] = None  # as where it is not installed
    try:
        importlib.import_module(module)
        found[f"{absent} {folder} {module}"] = "imported"
    except UserError as error:
        found[f"{absent} {folder} {module}"] = str(error)
    sys.path.remove(folder)
    sys.modules.pop(absent, None)
    for name in [name for name in sys.modules if name.startswith(("dk_bench.detection", "dk_bench.registry"))]:
        del sys.modules[name]
print(json.dumps([imported, found]))
"""


def installed(folder, package, version):
    """Makes pip, where the folder is on the path, take a distribution for installed."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def test_what_is_absent_or_of_a_wrong_version_is_named(tmp_path):
    """In the words of pip, of whichever module of detection is imported. The package itself needs nothing of mm."""
    expected = {}
    install = "`pip install 'dk_bench[detection]'` installs what detection needs"
    for package, versions in REQUIREMENTS.items():
        for module in ("dk_bench.detection", "dk_bench.registry", "dk_bench.detection.backbone"):
            message = f"detection needs {package}{versions}, which is not installed: {install}"
            expected[package, str(tmp_path), module] = message
    for package, version in (("mmcv", "2.2.0"), ("mmcv", "1.7.2"), ("mmdet", "2.28.2")):
        installed(tmp_path / version, package, version)
        message = f"detection needs {package}{REQUIREMENTS[package]}, found {package} {version}: {install}"
        if has(FORKS[package][0]):  # in the environment that tools/compat.sh makes for the forks
            both = f"{package} or {FORKS[package][0]}, and both are installed, over each other"
            message = f"detection needs {both}: uninstall both, then install one"
        expected["", str(tmp_path / version), "dk_bench.registry"] = message
    expected["mmcv._ext", str(tmp_path), "dk_bench.detection"] = None
    imported, found = json.loads(run_python(WITHOUT_MM, json.dumps(list(expected))).splitlines()[-1])
    assert imported == []
    operators = found.pop(f"mmcv._ext {tmp_path} dk_bench.detection")
    assert operators.startswith("detection needs mmcv with its compiled operators (mmcv-lite has none), built for this")
    assert operators.endswith(install)
    assert found == {" ".join(case): message for case, message in expected.items() if message}


def has(name):
    """Tells whether pip knows a distribution."""
    return any(found.metadata["Name"] == name for found in importlib.metadata.distributions())


def distributions(monkeypatch, **found):
    """Stands in for what pip knows of mmengine, mmcv and mmdet, by names with _ for -."""

    def version(name):
        if (given := found.get(name.replace("-", "_"))) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return given

    monkeypatch.setattr(importlib.metadata, "version", version)


OPENMMLAB = {"mmengine": "0.10.7", "mmcv": "2.1.0", "mmdet": "3.3.0"}
ONEDL = {"onedl_mmengine": "0.10.12", "onedl_mmcv": "2.3.6", "onedl_mmdetection": "3.5.1"}


@pytest.mark.parametrize("found", [OPENMMLAB, ONEDL, {**OPENMMLAB, "mmengine": None, "onedl_mmengine": "0.10.12"}])
def test_forks_serve_too(monkeypatch, found):
    distributions(monkeypatch, **found)
    require_mm()


@pytest.mark.parametrize(
    "found, words",
    [
        ({**ONEDL, "onedl_mmdetection": "3.6.0"}, "needs onedl-mmdetection>=3.5.1,<3.6, found onedl-mmdetection 3.6.0"),
        ({**ONEDL, "onedl_mmdetection": None, "mmdet": "3.3.0"}, "beside onedl-mmcv, found mmdet and onedl-mmcv 2.3.6"),
        ({**ONEDL, "mmcv": "2.1.0"}, "needs mmcv or onedl-mmcv, and both are installed, over each other: uninstall"),
    ],
)
def test_forks_that_do_not_serve_are_named(monkeypatch, found, words):
    distributions(monkeypatch, **found)
    with pytest.raises(UserError, match=re.escape(words)):
        require_mm()


def test_requirements_are_those_of_the_project():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["detection"]
    assert {f"{name}{versions}" for name, versions in REQUIREMENTS.items()} <= set(extra)
