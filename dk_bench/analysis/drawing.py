"""Style of all figures: colours that colour-blind readers tell apart, and files with the numbers beside each figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from dk_bench.errors import UserError
from dk_bench.files import open_atomically

__all__ = ["COLORS", "GREY", "MARKERS", "progress", "save_figure", "styled", "write_csv", "write_text"]

# Paul Tol's muted scheme, in an order that puts unlike colours side by side.
COLORS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#000000")
GREY = "#999999"
MARKERS = "osD^vPX<>*"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


@contextmanager
def styled() -> Iterator[None]:
    """Returns the style of all figures made in the block."""
    with matplotlib.rc_context(STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str, caption: str | None = None) -> list[Path]:
    """Writes NAME.png and NAME.pdf, the same bytes for the same figure. Raises UserError where it cannot.

    The caption goes into the files, where `dk-bench report` finds it.
    """
    written = []
    for suffix, metadata in (
        ("png", {"Software": None, "Description": caption}),
        ("pdf", {"CreationDate": None, "Subject": caption}),
    ):
        stream = io.BytesIO()
        figure.savefig(stream, format=suffix, metadata=metadata)
        written.append(_write(folder / f"{name}.{suffix}", stream.getvalue()))
    return written


def write_csv(folder: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Writes NAME.csv; floats keep seven digits. Raises UserError where it cannot."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.7g}" if isinstance(value, float) else value for value in row] for row in rows)
    return _write(folder / f"{name}.csv", stream.getvalue().encode())


def write_text(path: Path, text: str) -> Path:
    """Writes a text in UTF-8. Raises UserError where it cannot."""
    return _write(path, text.encode())


def _write(path: Path, content: bytes) -> Path:
    try:
        with open_atomically(path) as stream:
            stream.write(content)
    except OSError as error:
        raise UserError(f"--output {path.parent}: {error.strerror or error}") from error
    return path


def progress(console: Console) -> Progress:
    """Returns a bar with what is done and how long it will take; nothing where the output is no terminal."""
    name = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    columns = (name, BarColumn(bar_width=10), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
