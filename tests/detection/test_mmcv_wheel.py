"""How a wheel of mmcv is made (tools/mmcv_wheel.py): which files go together, from where it comes, what is kept."""

from __future__ import annotations

import hashlib
import re
import tarfile
from pathlib import Path

import mmcv
import mmcv._ext
import mmcv_wheel
import pytest

SOURCES = Path(mmcv.__file__).parent / "ops/csrc/pytorch"  # mmcv brings its sources along
FILES = [path.relative_to(SOURCES).as_posix() for path in [*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")]]
WANTED = "mmcv==2.1.0"
CHOICE = """
needed = []
try:
    import cv2
except ImportError:
    needed.append('opencv-python')
"""


def test_every_source_file_is_in_one_unit():
    units = mmcv_wheel.arrange(FILES)
    assert sorted(name for unit in units for name in unit) == sorted(FILES)
    assert len(FILES) == 77 and max(map(len, units)) - min(map(len, units)) <= 1
    for unit in units:
        assert len({*unit} & {*mmcv_wheel.APART}) == 1
        last = [name for name in unit if name in mmcv_wheel.LAST]
        assert unit[-len(last) :] == last == sorted(last, key=mmcv_wheel.LAST.index)


def test_sources_without_a_file_that_it_tells_apart_are_not_arranged():
    with pytest.raises(ValueError, match="no cpu/psamask.cpp"):
        mmcv_wheel.arrange([name for name in FILES if name != "cpu/psamask.cpp"])


def test_every_function_that_mmcv_binds_is_there():
    """In the library that is installed, which `make` builds in this way."""
    bound = set(re.findall(r'\bm\.def\(\s*"(\w+)"', (SOURCES / "pybind.cpp").read_text()))
    assert len(bound) > 100 and bound <= set(dir(mmcv._ext))


@pytest.fixture
def sdist(tmp_path):
    """A source distribution with mmcv's names of files, and nothing in them."""
    tree = tmp_path / "made" / "mmcv-2.1.0"
    for name in FILES:
        (tree / mmcv_wheel.SOURCES / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / mmcv_wheel.SOURCES / name).touch()
    globs = "glob.glob('./mmcv/ops/csrc/pytorch/*.cpp') + glob.glob('./mmcv/ops/csrc/pytorch/cpu/*.cpp')"
    (tree / "setup.py").write_text(f"{CHOICE}import glob\nop_files = {globs}\nflags = ['-std=c++17']\n")
    with tarfile.open(path := tmp_path / "mmcv-2.1.0.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name)
    return path


def test_it_needs_opencv_also_where_there_is_one(sdist, tmp_path):
    tree = tmp_path / "made" / "mmcv-2.1.0"
    found: dict = {}
    for needed in [], ["opencv-python"]:
        exec((tree / "setup.py").read_text(), found)
        assert found["needed"] == needed
        mmcv_wheel.need_opencv(tree)


@pytest.mark.parametrize("version, standard", [("2.11.0", "c++17"), ("2.13.1+cpu", "c++17"), ("2.15.0+cu130", "c++20")])
def test_setup_compiles_the_units_in_place_of_the_files(sdist, tmp_path, monkeypatch, version, standard):
    monkeypatch.setattr(mmcv_wheel.torch, "__version__", version)
    tree = tmp_path / "made" / "mmcv-2.1.0"
    mmcv_wheel.unite(tree)
    found: dict = {}
    monkeypatch.chdir(tree)
    exec((tree / "setup.py").read_text(), found)
    assert sorted(found["op_files"]) == [f"./units/unit{place}.cpp" for place in range(len(mmcv_wheel.APART))]
    assert found["flags"] == [f"-std={standard}"]
    included = [line.split('"')[1] for unit in found["op_files"] for line in Path(unit).read_text().splitlines()]
    paths = [(tree / "units" / name).resolve() for name in included]
    assert sorted(paths) == sorted((tree / mmcv_wheel.SOURCES / name).resolve() for name in FILES)


@pytest.fixture
def made(sdist, tmp_path, monkeypatch):
    """Makes a wheel by a stand-in for pip; returns what was asked of pip, and what was said."""
    kept = tmp_path / "cache" / "mmcv"

    def make(capsys, *, wheel=False, known=True, fails=(), cached=True):
        asked = []

        def pip(*arguments, quiet=False, **environment):
            united = (Path(arguments[-1]) / "units").is_dir()
            what = "united" if united else {"download": "sdist", "wheel": "files"}[arguments[0]]
            what = "wheel" if "--only-binary" in arguments else what
            asked.append(what)
            if what in fails or (what == "wheel" and not wheel):
                return False
            folder = Path(arguments[arguments.index("-d" if arguments[0] == "download" else "-w") + 1])
            if what == "sdist":
                (folder / sdist.name).write_bytes(sdist.read_bytes())
            else:
                (folder / "mmcv-2.1.0-cp311-cp311-linux_x86_64.whl").write_text(what)
            if what in ("united", "files"):
                assert environment["MMCV_WITH_OPS"] == "1" and environment["CXXFLAGS"].endswith("-g0")
            return True

        monkeypatch.setattr(mmcv_wheel, "pip", pip)
        monkeypatch.setattr(mmcv_wheel, "KNOWN", {hashlib.sha256(sdist.read_bytes()).hexdigest()} if known else set())
        monkeypatch.setattr(mmcv_wheel, "cache", lambda requirement: kept if cached else None)
        folder = tmp_path / "wheels"
        folder.mkdir(exist_ok=True)
        mmcv_wheel.make(WANTED, folder)
        return asked, next(folder.glob("*.whl")).read_text(), capsys.readouterr().err

    make.kept = kept
    return make


def test_a_wheel_that_pip_finds_is_taken(made, capsys):
    assert made(capsys, wheel=True)[:2] == (["wheel"], "wheel")
    assert not made.kept.exists()


def test_a_wheel_is_built_once_and_kept(made, capsys):
    assert made(capsys)[:2] == (["wheel", "sdist", "united"], "united")
    assert [path.suffix for path in made.kept.iterdir()] == [".whl"]
    asked, content, said = made(capsys)
    assert (asked, content) == (["wheel"], "united")
    assert "built before" in said


def test_without_a_cache_it_is_built_again(made, capsys):
    for _ in range(2):
        assert made(capsys, cached=False)[:2] == (["wheel", "sdist", "united"], "united")


def test_other_sources_are_built_as_mmcv_does_it(made, capsys):
    asked, content, said = made(capsys, known=False)
    assert (asked, content) == (["wheel", "sdist", "files"], "files")
    assert "does not know how to compile mmcv-2.1.0.tar.gz" in said and "20 minutes" in said


def test_units_that_do_not_compile_are_built_file_by_file(made, capsys):
    asked, content, said = made(capsys, fails=["united"])
    assert (asked, content) == (["wheel", "sdist", "united", "files"], "files")
    assert "20 minutes" in said


@pytest.mark.parametrize(
    "fails, words", [(["united", "files"], "do not compile"), (["sdist"], "cannot fetch the sources")]
)
def test_what_fails_is_told(made, capsys, fails, words):
    with pytest.raises(SystemExit, match=words):
        made(capsys, fails=fails)
    assert not made.kept.exists()


def test_the_cache_is_pips_and_has_the_versions_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("PIP_NO_CACHE_DIR", raising=False)
    found = mmcv_wheel.cache(WANTED)
    assert found.parent == tmp_path / "dk_bench"
    assert found.name.startswith(f"mmcv-2.1.0-torch-{mmcv_wheel.torch.__version__}-")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    assert mmcv_wheel.cache(WANTED) is None


def test_bad_arguments_are_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["mmcv_wheel.py", str(tmp_path / "new"), "mmcv"])
    with pytest.raises(SystemExit):
        mmcv_wheel.main()
    assert "expected mmcv==VERSION or onedl-mmcv==VERSION, not 'mmcv'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
