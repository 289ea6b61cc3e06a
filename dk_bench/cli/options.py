"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from dk_bench.errors import UserError


def add_output(parser: argparse.ArgumentParser, metavar: str, what: str, default: str | None = None) -> None:
    """Declares ``--output``, as every command that writes calls it, and ``--out``, its other name."""
    default = None if default is None else Path(default)
    parser.add_argument("--output", "--out", type=_path, metavar=metavar, default=default, help=what)


def add_only(parser: argparse.ArgumentParser) -> None:
    """Declares ``--only``, of folders of runs among the checkpoints of a command."""
    parser.add_argument(
        "--only", metavar="NAMES", help="of folders of runs: models of these names, in their order (a,b,c); all"
    )


def checkpoints_below(paths: Iterable[str], only: str | None) -> list[str]:
    """Returns the paths, with last.ckpt of the finished classification runs below a folder in its place, by model and
    seed.

    Raises UserError for a folder without such runs, for a name in ``only`` that none has, and where no path is a folder
    but ``only`` is given.
    """
    from dk_bench.runs.record import TRAINING, find_records, read_record

    names = [name.strip() for name in only.split(",")] if only else []
    paths, found = list(paths), []
    if names and not any(Path(path).is_dir() for path in paths):
        raise UserError(f"--only {only}: goes with a folder of runs")
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        records = {file: read_record(file) for file in find_records(path)}
        runs = [
            (record.model["name"], record.seed, str(file.with_name("last.ckpt")))
            for file, record in records.items()
            if record.task == TRAINING and record.status == "finished"
        ]
        runs = [run for run in runs if Path(run[-1]).is_file()]
        if missing := [name for name in names if name not in {run[0] for run in runs}]:
            raise UserError(f"{path}: no finished run of {', '.join(missing)} with its last.ckpt")
        if not runs:
            raise UserError(f"{path}: no finished run with its last.ckpt")
        kept = [run for run in runs if not names or run[0] in names]
        found += [run[-1] for run in sorted(kept, key=lambda run: (names.index(run[0]) if names else 0, *run))]
    return found


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
