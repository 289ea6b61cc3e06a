"""Tables on a terminal, or on what is none: names stand whole, however narrow it is."""

from collections.abc import Collection, Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from dk_bench.tables.table import Document, Table

WIDEST = 100_000  # columns, more than any table has


def show(document: Document, console: Console) -> None:
    """Prints a document to a terminal."""
    for number, table in enumerate(document.tables, start=1):
        notes = [table.note] * bool(table.note) + document.notes * (number == len(document.tables))
        print_table(console, f"{document.title} {table.heading}", table, notes)


def print_table(console: Console, title: str, table: Table, notes: Iterable[str] = ()) -> None:
    """Prints a table under a title, and notes below.

    Columns of names stand left and are never broken, all others right and broken at blanks alone. So a table that does
    not fit is wider than its terminal: a cell that was cut could not be told from another. Where the output is no
    terminal, nothing is broken.
    """
    grid, before = Grid(), console.width
    for name, side in zip(table.columns, table.sides("left", "right"), strict=True):
        grid.add_column(Text(name), justify=side)
    for place, row in enumerate(table.rows):
        if place in table.rules:
            grid.add_section()
        grid.add_row(*(Text(str(value)) for value in row))  # Text: brackets are no markup
    console.width = _fit(grid, console, table.names)
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(grid)
    console.width = before
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def _fit(grid: Grid, console: Console, names: Collection[int]) -> int:
    """Sets the widths of columns, and returns that of the console that they need, at least what it has. rich's own way
    with a narrow console is to shorten words."""
    options, borders = console.options.update(width=WIDEST), 3 * len(grid.columns) + 1
    limits = []
    for place, column in enumerate(grid.columns):
        cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        widest = max(cell.maximum for cell in cells)
        limits.append((widest if place in names else max(cell.minimum for cell in cells), widest))
    room = console.width - borders - sum(low for low, _ in limits)
    for column, (low, high) in zip(grid.columns, limits, strict=True):
        column.width = high if high - low <= room or not console.is_terminal else low
        room -= column.width - low
    return max(console.width, borders + sum(column.width for column in grid.columns))
