"""The configurations and sweeps that come with the package: a command takes them by name wherever it is called."""

from pathlib import Path

SUFFIXES = (".yaml", ".py")
_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """Returns the folder that holds ``configs/`` and ``sweeps/``: an installed package's own (setup.py copies them
    there), or the checkout."""
    installed = _PACKAGE / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def find_shipped(path: str | Path, kind: str) -> Path:
    """Returns the file that a command means: the path itself where such a file is there, else a file that comes with
    the package, by its path there (``configs/demo.yaml``) or, for a path without suffix, by its name among those of its
    ``kind`` ("configs" or "sweeps"): ``demo``, ``det/tiny_photos``. What is neither is returned as it is."""
    path = Path(path)
    if path.is_absolute() or (path.exists() and not path.is_dir()):
        return path
    places = [path] if path.suffix else [Path(kind, f"{path.as_posix()}{suffix}") for suffix in SUFFIXES]
    found = (shipped_folder() / place for place in places if place.parts[0] == kind and ".." not in place.parts)
    return next((place for place in found if place.is_file()), path)


def shipped_names(kind: str) -> list[str]:
    """Returns the names by which `find_shipped` finds files of a kind, in order."""
    folder = shipped_folder() / kind
    files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return sorted(name for name in names if not name.startswith("_") and "/_" not in name)
