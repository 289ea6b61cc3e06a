"""Tables on a terminal, or on what is none: names stand whole, however narrow it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDEST = 100_000  # columns, more than any table has


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str] | None],
    *,
    names: Iterable[int] = (0,),
    notes: Iterable[str] = (),
) -> None:
    """Prints rows of texts under a title, and notes below; a row that is None is a rule between sections.

    Columns with an index in ``names`` stand left and are never broken, all others right and broken at blanks alone. So
    a table that does not fit is wider than its terminal: a cell that was cut could not be told from another. Where the
    output is no terminal, nothing is broken.
    """
    table, names = Table(), set(names)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index in names else "right")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(Text, row))  # Text: brackets are no markup
    before = console.width
    console.width = _fit(table, console, names)
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(table)
    console.width = before
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def _fit(table: Table, console: Console, names: set[int]) -> int:
    """Sets the widths of a table's columns, and returns that of the console that it needs, at least what it has.

    rich's own way with a narrow console is to shorten words.
    """
    options, borders = console.options.update(width=WIDEST), 3 * len(table.columns) + 1
    limits = []
    for index, column in enumerate(table.columns):
        cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        widest = max(cell.maximum for cell in cells)
        limits.append((widest if index in names else max(cell.minimum for cell in cells), widest))
    room = console.width - borders - sum(low for low, _ in limits)
    for column, (low, high) in zip(table.columns, limits, strict=True):
        column.width = high if high - low <= room or not console.is_terminal else low
        room -= column.width - low
    return max(console.width, borders + sum(column.width for column in table.columns))
