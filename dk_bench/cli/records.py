"""Shared by the commands that make tables of records: their argument, reading records, and errors in writing files."""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dk_bench.errors import UserError
from dk_bench.runs.record import RunRecord, as_it_stands, find_records, read_record
from dk_bench.tasks import check_known

RESULTS = Path("results")


def add_records(parser: argparse.ArgumentParser, metavar: str = "RECORDS", default: str = " (results)") -> None:
    """Declares the argument; ``default`` says what is read if it is left out."""
    what = f"folders with records, or record files{default}"
    parser.add_argument("records", nargs="*", type=Path, metavar=metavar, help=what)


def read_records(places: Iterable[Path]) -> dict[Path, RunRecord]:
    """Returns the records in files and below folders, by their files, as they stand now. Raises UserError for a place
    that is not there, for a file that is no record, and for a record of no task."""
    return {path: as_it_stands(check_known(read_record(path), path)) for path in find_records(places)}


def check_all_hold(places: Iterable[Path]) -> None:
    """Raises UserError for the first place without a record."""
    if empty := next((place for place in places if not find_records([place])), None):
        raise UserError(f"{empty}: no record in it, expected record.json or *.record.json anywhere below")


@contextmanager
def writing_below(place: Path) -> Iterator[None]:
    """Turns an error in writing into UserError that names the file, or the place where it names none."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or place}: cannot be written: {error.strerror or error}") from error
