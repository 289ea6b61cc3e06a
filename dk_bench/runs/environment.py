"""Collects versions and commit of what runs, and makes paths fit to be committed."""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = "dk_bench torch torchvision timm pytorch-lightning torchmetrics numpy wandb mmengine mmcv mmdet".split()
# An absolute path inside text: a slash at the start or after a separator; "//" after a scheme is a URL's and stays.
ABSOLUTE_PATH = re.compile(r"""(?:(?<![^\s=:'"(\[,])|(?<=file://))/(?!/)[^\s'",:)\]]+""")


def collect_versions() -> dict[str, str]:
    """Collects the versions of Python and of the packages results depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def told_by(path: str | Path) -> str:
    """Returns what a file of the system's own says, such as /proc/cpuinfo; nothing where the system has none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def collect_git(folder: str | Path | None = None) -> dict[str, Any]:
    """Tells the commit of the code that runs and whether it was changed since; both None outside a git checkout.

    ``folder`` defaults to this file's. Untracked files are no changes, nor is the results folder, where records go.
    """
    own = Path(__file__)
    folder = Path(folder or own.parent)
    commit = _git(folder, "rev-parse", "HEAD")
    # Installed below somebody else's checkout: that commit is not ours.
    if commit is None or (folder == own.parent and not _git(folder, "ls-files", own.name)):
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # Looking takes no lock: one that a killed run left behind would stand in the way of every commit.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def portable(value: Any, *, distinct: bool = False) -> Any:
    """Returns the value with absolute paths made fit to be committed: no folder of this machine's owner stays in it.

    A path below the working folder becomes relative to it, any other keeps its last two parts (never the topmost
    folder) behind ``.../``. Works through lists, tuples and mappings, and inside text (``output=/a/b/c`` ->
    ``output=.../b/c``). With ``distinct`` different ones stay so: six digits of the path's hash stand before the parts.
    """
    if isinstance(value, Mapping):
        return {key: portable(item, distinct=distinct) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, distinct=distinct) for item in value]
    if isinstance(value, os.PathLike):
        return _shorten(os.fspath(value), distinct)
    if not isinstance(value, str):
        return value
    if os.path.isabs(value) and os.path.exists(value):  # a path with a space in it is one path
        return _shorten(value, distinct)
    return ABSOLUTE_PATH.sub(lambda found: _shorten(found[0], distinct), value)


def _shorten(path: str, distinct: bool) -> str:
    if not os.path.isabs(path):
        return path
    path, here = Path(os.path.normpath(path)), Path.cwd()
    if path.is_relative_to(here) and here != Path(here.anchor):
        return path.relative_to(here).as_posix()
    below_top = path.parts[2:] or path.parts[1:]
    digits = [hashlib.sha256(path.as_posix().encode()).hexdigest()[:6]] if distinct else []
    return "/".join(("...", *digits, *below_top[-2:]))
