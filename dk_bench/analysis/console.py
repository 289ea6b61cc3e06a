"""Shows how far a study is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


def progress(console: Console) -> Progress:
    """Makes a bar with what is done and how long the rest will take; nothing where the output is no terminal."""
    name = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    columns = (name, BarColumn(bar_width=10), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def tracked(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows a bar on standard error during the block, and gives what moves it on by one step, or by so many."""
    with progress(Console(stderr=True)) as bar:
        yield partial(bar.advance, bar.add_task(what, total=total))
