"""Configurations and sweeps that come with the package are found by name, from any folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dk_bench import tasks
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.reading import shipped
from dk_bench.reading.shipped import find_shipped, shipped_names
from dk_bench.sweep.grid import read_sweep

ROOT = Path(__file__).parents[2]


def test_names_are_those_of_the_files():
    assert {"demo", "photos10", "imagenet/resnet50dw_dk", "det/tiny_photos"} <= set(shipped_names("configs"))
    assert shipped_names("sweeps") == sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
    assert not any("_base_" in name for name in shipped_names("configs"))


@pytest.mark.parametrize("kind", ["configs", "sweeps"])
def test_every_name_leads_to_its_file(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in shipped_names(kind):
        found = find_shipped(name, kind)
        assert found.is_file() and found.with_suffix("") == ROOT / kind / name
        assert find_shipped(found.relative_to(ROOT), kind) == found


def test_commands_take_names_in_any_folder(tmp_path, monkeypatch, capsys):
    """The sweep's own command names its configuration by a path, which is found in the same way."""
    monkeypatch.chdir(tmp_path)
    named, given = (tasks.load(path, ["seed=3"]) for path in ("demo", ROOT / "configs/demo.yaml"))
    assert named.values == given.values
    assert read_sweep("demo") == read_sweep(ROOT / "sweeps/demo.yaml")
    assert main(["sweep", "demo", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("dk-bench train configs/demo.yaml") == 7


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    for path in (Path("demo"), Path("configs/demo.yaml")):
        path.write_text("name: mine\n")
        assert find_shipped(path, "configs") == path
    assert tasks.load("configs/demo.yaml").config.name == "mine"
    Path("photos10").mkdir()  # a folder is no configuration
    assert find_shipped("photos10", "configs") == ROOT / "configs/photos10.yaml"


@pytest.mark.parametrize("name", ["dem", "configs/none.yaml", "../configs/demo.yaml", "sweeps/demo.yaml", "/demo", "."])
def test_what_is_not_there_is_named_as_it_was_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_shipped(name, "configs") == Path(name)
    with pytest.raises(UserError, match=rf"^{re.escape(str(Path(name)))}: "):
        tasks.load(name)


def test_an_installed_package_has_its_own(tmp_path, monkeypatch):
    """setup.py puts the folders there; nothing is looked for outside of the package then."""
    (tmp_path / "shipped" / "configs").mkdir(parents=True)
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    assert shipped_names("configs") == [] and find_shipped("demo", "configs") == Path("demo")
    (tmp_path / "shipped/configs/other.yaml").touch()
    assert find_shipped("configs/other.yaml", "configs") == tmp_path / "shipped/configs/other.yaml"


def test_a_wheel_gets_them(tmp_path):
    """By the command that collects an installation's Python files, which compiles nothing."""
    program = (
        "import runpy\n"
        "import setuptools\n"
        "setuptools.setup = lambda **_: None\n"
        "kept = runpy.run_path('setup.py')\n"
        "command = kept['WithConfigurations'](setuptools.Distribution({'packages': [], 'script_name': 'setup.py'}))\n"
        f"command.build_lib, command.editable_mode = {str(tmp_path)!r}, False\n"
        "command.finalize_options()\n"
        "command.run()\n"
    )
    subprocess.run([sys.executable, "-c", program, "egg_info"], cwd=ROOT, check=True)
    for kind in ("configs", "sweeps"):
        for path in (path for path in (ROOT / kind).rglob("*") if path.suffix in shipped.SUFFIXES):
            assert (tmp_path / "dk_bench/shipped" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
