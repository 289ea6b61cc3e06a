"""Arguments that several commands share."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError


def add_output(parser: argparse.ArgumentParser, metavar: str, what: str, default: str | None = None) -> None:
    """Declares ``--output``, as every command that writes calls it, and ``--out``, its other name."""
    parser.add_argument("--output", "--out", type=_path, metavar=metavar, default=default, help=what)


def add_number(
    parser: argparse.ArgumentParser, name: str, metavar: str, what: str, *, least: float = 1, **options: Any
) -> None:
    """Declares an option that is a number: whole where ``least`` is an int, and not below it; a float for ``least`` of
    0.0, and above it. Reading another raises UserError. ``options``: what else argparse is to know of it."""
    kind = type(least)

    def number(text: str) -> float:
        value = kind(text)
        if kind is int and value < least:
            raise UserError(f"{name}: expected at least {least}, got {value}")
        if kind is float and not least < value < float("inf"):
            raise UserError(f"{name}: expected a number above {least:g}, got {value}")
        return value

    number.__name__ = kind.__name__  # which argparse says of a text that is none
    parser.add_argument(name, type=number, metavar=metavar, help=what, **options)


def add_stalled(parser: argparse.ArgumentParser) -> None:
    """Declares ``--stalled-after``, in minutes, of the commands that show runs at work."""
    what = "name a run as stalled that has done no step for so long (10)"
    add_number(parser, "--stalled-after", "MINUTES", what, default=10.0, least=0.0)


def place(text: str) -> tuple[float, float]:
    """Returns the (y, x) of a place in an image, the type of ``--position``."""
    if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected Y,X in pixels, such as 120,80, got {text!r}")
    y, x = map(float, text.split(","))
    return y, x


def add_models(parser: argparse.ArgumentParser, name: str, metavar: str, what: str, files: str) -> None:
    """Declares what a study of models looks at: checkpoints, ``--only``, and ``--tables-from`` in their place."""
    parser.add_argument(name, nargs="*", metavar=metavar, help=what)
    only = "of folders of runs: models of these names, in their order (a,b,c); where settings differ, a[KEY=VALUE]; all"
    parser.add_argument("--only", metavar="NAMES", help=only)
    again = f"measure nothing: write the tables of such {files} again, beside them"
    parser.add_argument("--tables-from", nargs="+", type=Path, default=(), metavar="CSV", help=again)


def check_device(device: str) -> None:
    """Raises UserError where ``--device`` is cuda and there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine or this torch has no CUDA device")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def check_folder(folder: Path, given: str = "") -> None:
    """Raises UserError where a folder to write into is none or cannot be: better said before the work than after it.
    ``given`` is the argument as the error calls it, ``--output`` and the folder by default."""
    given = given or f"--output {folder}"
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{given}: {there} is a file, expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{given}: {there} cannot be written to")


def check_file(path: Path | None, argument: str = "--output") -> None:
    """Raises UserError where an argument, if it is given, cannot be a file to write, as `check_folder`."""
    if path and path.is_dir():
        raise UserError(f"{argument} {path}: is a folder, expected a file")
    if path:
        check_folder(path.parent, f"{argument} {path}")
