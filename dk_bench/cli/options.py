"""What the arguments of several commands have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dk_bench.errors import UserError


def add_output(parser: argparse.ArgumentParser, metavar: str, what: str, default: str | None = None) -> None:
    """Declares ``--output``, as every command that writes calls it, and ``--out``, its other name."""
    default = None if default is None else Path(default)
    parser.add_argument("--output", "--out", type=_path, metavar=metavar, default=default, help=what)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def check_at_least(args: argparse.Namespace, **lowest: int) -> None:
    """Raises UserError for the first of these arguments that is given and is below its lowest value."""
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')}: expected at least {low}, got {value}")


def check_folder(folder: Path, given: str = "") -> None:
    """Raises UserError where a folder to write into is none or cannot be: better said before the work than after it.

    ``given`` is the argument as the error calls it, ``--output`` and the folder by default.
    """
    given = given or f"--output {folder}"
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{given}: {there} is a file, expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{given}: {there} cannot be written to")


def check_file(path: Path, argument: str = "--output") -> None:
    """Raises UserError where an argument cannot be a file to write, as `check_folder`."""
    if path.is_dir():
        raise UserError(f"{argument} {path}: is a folder, expected a file")
    check_folder(path.parent, f"{argument} {path}")
