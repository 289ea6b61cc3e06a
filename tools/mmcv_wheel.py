#!/usr/bin/env python3
"""Puts a wheel of mmcv, with its operators compiled against the torch of this environment, into a folder.

    .venv/bin/python tools/mmcv_wheel.py FOLDER [mmcv==2.1.0 | onedl-mmcv==2.3.6]

Without a second argument it is the mmcv of constraints.txt. PyPI has mmcv as sources alone: 77 C++ files, most of which
are a page long and read torch's headers for ten seconds, one after the other. Here they are read by four files that
include all of them, so that those headers are read four times, and without debug information; for torch 2.14 and later
in C++20, which its headers ask for. Nothing else about the build is changed, and no C++ of mmcv.

A wheel that pip finds (PIP_FIND_LINKS, an index) is taken as it is. One that was built before is kept in pip's cache,
below `pip cache dir`, by versions of mmcv, torch and Python; PIP_NO_CACHE_DIR leaves that out. Sources of a version
that is not known here, or that do not compile in this way, are built as mmcv builds them. Needs setuptools below 82
(for onedl-mmcv from 77 on) and wheel; ninja, to compile on all cores (MAX_JOBS sets another number).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Source distributions whose files are known to go together, by their SHA-256: mmcv 2.1.0 and its fork onedl-mmcv 2.3.6.
KNOWN = {
    "d387bcab66b467479b6660310e23746cfc79c6e57acf04094680adb499a5cd3f",
    "8704978a3d492b15cc058742ac3165bd1bcc2dd20678da9ed39e0da3048e3045",
}
SOURCES = "mmcv/ops/csrc/pytorch"
# Helpers of these have the same names, so that no two of them go into one unit; there are as many units as these.
APART = ("cpu/bezier_align.cpp", "cpu/roi_align.cpp", "cpu/roi_align_rotated.cpp", "cpu/rotated_feature_align.cpp")
# These come last in this order, as they leave something to whatever follows: further headers of torch, with which cos()
# of a float is another function, names of other namespaces, a macro `max`.
LAST = (
    "cpu/sparse_indice.cpp",
    "cpu/sparse_maxpool.cpp",
    "cpu/sparse_reordering.cpp",
    "pybind.cpp",
    "contour_expand.cpp",
    "cpu/bbox_overlaps_cpu.cpp",
    "cpu/psamask.cpp",
)


def say(text: str) -> None:
    """Tells whoever waits."""
    print(f"mmcv: {text}", file=sys.stderr, flush=True)


def pip(*arguments: str | Path, quiet: bool = False, **environment: str) -> bool:
    """Runs pip of this environment, its output to stderr or nowhere; returns whether it succeeded."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    output = subprocess.DEVNULL if quiet else sys.stderr
    env = {**os.environ, **environment}
    return subprocess.run(command, stdout=output, stderr=output, env=env, check=False).returncode == 0


def pinned() -> str:
    """Returns the mmcv that constraints.txt names, with its version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("mmcv=="))


def cache(requirement: str) -> Path | None:
    """Returns the folder that keeps the wheel for what is installed here; None where pip has no cache."""
    command = [sys.executable, "-m", "pip", "cache", "dir"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return None
    device = "cpu"
    if torch.cuda.is_available() or os.environ.get("FORCE_CUDA") == "1":  # as mmcv's setup.py decides
        seen = {"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or " ".join(sorted(seen))
        device = "cuda" + re.sub(r"[^\w.+]+", "-", wanted)
    parts = requirement.replace("==", "-"), f"torch-{torch.__version__}", device, str(sysconfig.get_config_var("SOABI"))
    return Path(answer.stdout.strip()) / "dk_bench" / "-".join(parts)


def arrange(files: list[str]) -> list[list[str]]:
    """Deals source files out to units, each to be compiled as one; raises ValueError if one of ours is not there."""
    if missing := {*APART, *LAST} - {*files}:
        raise ValueError(f"no {', '.join(sorted(missing))}")
    units = [[name] for name in APART]
    others = sorted({*files} - {*APART, *LAST})
    for place, name in enumerate([*others, *LAST]):
        units[place % len(units)].append(name)
    return units


def unite(tree: Path) -> None:
    """Writes the units into mmcv's unpacked sources, and makes its setup.py compile them in place of the files."""
    sources, units = tree / SOURCES, tree / "units"
    found = [*sources.glob("*.cpp"), *sources.glob("cpu/*.cpp")]
    units.mkdir()
    for place, names in enumerate(arrange([path.relative_to(sources).as_posix() for path in found])):
        lines = "".join(f'#include "../{SOURCES}/{name}"\n' for name in names)
        (units / f"unit{place}.cpp").write_text(lines, encoding="utf-8")
    setup = tree / "setup.py"
    text = setup.read_text(encoding="utf-8")
    text = text.replace(f"./{SOURCES}/*.cpp", "./units/*.cpp")
    text = text.replace(f"./{SOURCES}/cpu/*.cpp", "./units/none/*.cpp")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14):
        text = text.replace("std=c++17", "std=c++20").replace("std:c++17", "std:c++20")
    setup.write_text(text, encoding="utf-8")


def need_opencv(tree: Path) -> None:
    """Makes the wheel say that it needs OpenCV also where it is built beside one: it is kept for elsewhere."""
    setup = tree / "setup.py"
    setup.write_text(setup.read_text(encoding="utf-8").replace("import cv2", "raise ImportError"), encoding="utf-8")


def build(sdist: Path, folder: Path, united: bool) -> bool:
    """Builds the wheel of a source distribution into a folder; returns whether that succeeded."""
    environment = {"MMCV_WITH_OPS": "1"}
    if hasattr(os, "sched_getaffinity"):  # mmcv takes four at least
        environment["MAX_JOBS"] = os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        (tree,) = Path(place).iterdir()
        need_opencv(tree)
        if united:
            unite(tree)
        if os.name != "nt":
            for name in "CFLAGS", "CXXFLAGS":
                environment[name] = f"{os.environ.get(name, '')} -g0".strip()
        return pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, tree, **environment)


def make(requirement: str, folder: Path) -> None:
    """Leaves the wheel in the folder. Raises SystemExit, in a sentence, if it cannot."""
    name = requirement.partition("==")[0]
    if pip("download", "--no-deps", "--only-binary", name, "-d", folder, requirement, quiet=True):
        return say("taking the wheel that pip finds")
    kept = cache(requirement)
    if kept and (wheels := list(kept.glob("*.whl"))):
        shutil.copy(wheels[0], folder)
        return say(f"taking the wheel that was built before, {wheels[0]}")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        download = "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", name, "-d", place
        if not pip(*download, requirement):
            raise SystemExit(f"mmcv: pip cannot fetch the sources of {requirement}")
        (sdist,) = Path(place).iterdir()
        # For ROCm torch writes CUDA's sources anew, file by file.
        known = hashlib.sha256(sdist.read_bytes()).hexdigest() in KNOWN and torch.version.hip is None
        if known:
            say("compiling its operators, a minute or two on two cores ...")
        else:
            say(f"tools/mmcv_wheel.py does not know how to compile {sdist.name} in a few minutes for this torch")
        if not (known and build(sdist, folder, united=True)):
            say("compiling file by file, 20 minutes on two cores ...")
            if not build(sdist, folder, united=False):
                raise SystemExit("mmcv: its operators do not compile; the compiler's words stand above")
    say(f"compiled in {time.monotonic() - begin:.0f} s")
    if kept:
        keep(next(folder.glob("*mmcv-*.whl")), kept)


def keep(wheel: Path, kept: Path) -> None:
    """Copies the wheel into pip's cache, whole or not at all. That this fails is no reason to stop."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as place:
            os.replace(shutil.copy(wheel, place), kept / wheel.name)
    except OSError as error:
        say(f"the wheel is not kept for the next time: {error}")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Makes a wheel of mmcv for the torch that is installed.")
    parser.add_argument("folder", type=Path, help="where the wheel goes; wheels of mmcv that are there are removed")
    parser.add_argument("requirement", nargs="?", default=pinned(), help="NAME==VERSION, by default %(default)s")
    arguments = parser.parse_args()
    if not re.fullmatch(r"(onedl-)?mmcv==[\w.+]+", arguments.requirement):
        parser.error(f"expected mmcv==VERSION or onedl-mmcv==VERSION, not {arguments.requirement!r}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for old in arguments.folder.glob("*mmcv-*.whl"):
        old.unlink()
    make(arguments.requirement, arguments.folder)


if __name__ == "__main__":
    main()
