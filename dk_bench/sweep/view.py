"""One view of a sweep's runs, wherever they are: a row a run. onlooker.py finds the rows of runs in folders."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dk_bench.sweep.time_left import expected_seconds, seconds_of_all, words

# What a run can be, in the order of rows: what needs somebody first, what has ended last.
STATES = ("stalled", "failed", "cut off", "running", "starting", "waiting", "stopped", "finished")
AT_WORK = ("running", "starting")  # a stalled one may never end, and no time is told for it
TO_COME = ("waiting", "cut off")  # whoever goes on with the sweep runs them
STYLES = {"stalled": "bold red", "failed": "red", "cut off": "yellow", "running": "green", "finished": "dim"}
COLUMNS = ("run", "state", "on", "epoch", "figure", "last step", "left", "why")
FEWEST = 5  # rows on a terminal, however low it is


@dataclass(frozen=True)
class Row:
    """How a run stands. ``state`` is one of `STATES`; ``kind`` names those that take equally long; times in seconds.

    ``left`` is how long it still takes, as it says itself; ``took``, how long it has worked, all attempts together.
    """

    name: str
    state: str
    kind: str = ""
    where: str = ""  # the machine it runs on
    epoch: int | None = None  # epochs that it has done
    epochs: int | None = None
    figure: str = ""  # the last one, with its name
    idle: float | None = None  # since its last step, or since it began
    took: float | None = None
    left: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        """Returns it as a line."""
        parts = [*filter(None, (f"on {self.where}" if self.where else "", self.epochs_done, self.figure))]
        since = "begun" if self.state == "starting" else "last step"
        parts += [f"{since} {words(self.idle)} ago"] if self.idle is not None else []
        parts += [f"about {words(self.left)} left"] if self.left is not None else []
        parts += [f"took {words(self.took)}"] if self.state == "finished" and self.took else []
        parts += [self.reason] if self.reason else []
        return f"{self.state} {self.name}" + (f": {', '.join(parts)}" if parts else "")

    @property
    def epochs_done(self) -> str:
        """Tells the epochs in words; empty where nobody knows them."""
        if self.epoch is None:
            return ""
        return f"epoch {self.epoch}" + (f" of {self.epochs}" if self.epochs else "")


def with_estimates(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, those of runs at work that do not say how long they still take with what others of their kind
    took."""
    expected = expected_seconds((row.kind, row.took) for row in rows if row.state == "finished" and row.took)
    filled = []
    for row in rows:
        whole = expected(row.kind)
        if row.state in AT_WORK and row.left is None and whole is not None:
            row = dataclasses.replace(row, left=max(0.0, whole - (row.took or 0.0)))
        filled.append(row)
    return filled


def seconds_left(rows: Sequence[Row]) -> float | None:
    """Estimates how long all of it takes from now on with as many at a time as run now; None where none runs, nothing
    is left, or nothing tells how long a run takes."""
    rows = with_estimates(rows)
    expected = expected_seconds((row.kind, row.took) for row in rows if row.state == "finished" and row.took)
    running = [row.left for row in rows if row.state in AT_WORK]
    # A run that says how long it still takes also tells how long others would.
    whole = [row.took + row.left for row in rows if row.state in AT_WORK and None not in (row.took, row.left)]
    other = sum(whole) / len(whole) if whole else None
    waiting = [expected(row.kind) or other for row in rows if row.state in TO_COME]
    if not running or None in running or None in waiting:
        return None
    return seconds_of_all(running, waiting, len(running))


def summary(rows: Sequence[Row]) -> str:
    """Says in one line how many there are of each state, and how long the rest takes."""
    counts = Counter(row.state for row in rows)
    parts = [f"{counts[state]} {state}" for state in reversed(STATES) if counts[state]]
    left = seconds_left(rows)
    count = f"{len(rows)} run{'s' if len(rows) > 1 else ''}: {', '.join(parts)}" if rows else "no runs yet"
    return count + (f"; about {words(left)} left" if left is not None else "")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows in the order of `STATES`, then by name."""
    return sorted(rows, key=lambda row: (STATES.index(row.state), row.name))


def table(rows: Sequence[Row], most: int | None = None) -> Table:
    """Returns the rows as rich shows them, the first ``most`` of them, under their `summary`."""
    rows = with_estimates(in_order(rows))
    shown = Table(title=summary(rows), title_justify="left", caption_justify="left", expand=False)
    for name in COLUMNS:
        shown.add_column(name, overflow="fold", no_wrap=name in ("state", "epoch", "last step", "left"))
    for row in rows[:most]:
        done = row.epochs_done.removeprefix("epoch ").replace(" of ", "/")
        times = [words(seconds) if seconds is not None else "" for seconds in (row.idle, row.left)]
        cells = (row.name, row.state, row.where, done, row.figure, *times, row.reason)
        shown.add_row(*map(Text, cells), style=STYLES.get(row.state))
    if most is not None and len(rows) > most:
        shown.caption = f"and {len(rows) - most} more"
    return shown


def watch(read: Callable[[], Sequence[Row]], console: Console, *, once: bool = False, every: float = 5.0) -> list[Row]:
    """Shows the rows that ``read`` gives, again ``every`` so many seconds, until all runs have ended. Returns the last.

    On a terminal that is one table, which changes; elsewhere lines: all rows, then those whose state has changed.
    ``once``: shows them and returns.
    """
    rows = list(read())
    if console.is_terminal and not once:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(table(rows, max(FEWEST, console.height - 8)), refresh=True)
                if all_ended(rows):
                    return rows
                time.sleep(every)
                rows = list(read())
    if console.is_terminal:
        console.print(table(rows))
        return rows
    told: Counter[tuple[str, str]] = Counter()
    while True:
        news = _news(rows, told)
        for line in [*map(str, news), *([summary(rows)] if news or not told else [])]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        told = Counter((row.name, row.state) for row in rows)
        if once or all_ended(rows):
            return rows
        time.sleep(every)
        rows = list(read())


def _news(rows: Sequence[Row], told: Counter[tuple[str, str]]) -> list[Row]:
    """Returns the rows beyond those told of, which are counted by name and state: several may be of one name."""
    left, news = told.copy(), []
    for row in with_estimates(in_order(rows)):
        left[row.name, row.state] -= 1
        news += [row] if left[row.name, row.state] < 0 else []
    return news


def all_ended(rows: Sequence[Row]) -> bool:
    """Tells whether there are runs, none of them is at work and none is to come."""
    return bool(rows) and not any(row.state in ("stalled", *AT_WORK, *TO_COME) for row in rows)
