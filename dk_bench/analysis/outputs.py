"""The files that studies leave beside their figures: numbers as CSV, texts; and CSV files read again."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from dk_bench.errors import UserError, system_errors
from dk_bench.files import open_atomically

Row = TypeVar("Row")


def write_csv(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> Path:
    """Writes NAME.csv: rows by their columns, those of the first row where none are given; floats keep seven digits.
    Raises UserError where it cannot."""
    rows = [
        {column: f"{value:.7g}" if isinstance(value, float) else value for column, value in row.items()} for row in rows
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(folder / f"{name}.csv", stream.getvalue())


def read_csv(path: Path, row: Callable[[dict[str, str]], Row], expected: str) -> list[Row]:
    """Returns a CSV file's rows, each as ``row`` makes it of its texts by column. Raises UserError, which says what was
    ``expected``, for a file that cannot be read, or of which ``row`` raises KeyError, TypeError or ValueError."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return [row(each) for each in csv.DictReader(stream)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error!r}; expected {expected}") from error


def read_dataclasses(path: Path, kind: type[Row], expected: str) -> list[Row]:
    """Returns what `write_csv` wrote of a dataclass whose fields are int, float or str; errors as in `read_csv`."""
    convert = {field.name: field.type for field in fields(kind)}
    return read_csv(path, lambda row: kind(**{name: convert[name](text) for name, text in row.items()}), expected)


def write_text(path: Path, text: str) -> Path:
    """Writes a text in UTF-8. Raises UserError where it cannot."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file, its folder made where there is none. Raises UserError where it cannot."""
    with system_errors(f"--output {path.parent}"), open_atomically(path) as stream:
        stream.write(content)
    return path
