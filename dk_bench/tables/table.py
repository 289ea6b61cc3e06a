"""Tables, declared by their columns and made of rows of any kind by one function; docs/extending.md makes one.

`dk_bench.tables.render` writes tables as Markdown, CSV and LaTeX, `dk_bench.tables.terminal` shows them on a terminal,
and `dk_bench.report` as HTML.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

from dk_bench.tables.contrasts import MARGIN, Judgement, Verdict, decide
from dk_bench.tables.entries import Chance, Figure, Number, Right, Value
from dk_bench.tables.statistics import Summary

Row = TypeVar("Row")
NO_DIFFERENCE = Number(None, signed=True)

CHANCE = (
    "p (Holm): two-sided paired t test of the difference, corrected by Holm's method over one family, all differences "
    "of a table that get a verdict, run or not; its size stands below the table. None for one seed, and where all "
    "seeds differ by the same. Differences to one base have its runs in common: the correction allows for that, but "
    "they are not independent evidence."
)
VERDICT = (
    "Verdict on the difference: supported where p (Holm) is at most 0.05 and the sign is the paper's (above the base), "
    "contradicted where it is the other; equivalent where it is not told from zero and two one-sided t tests, "
    f"corrected over the family too, find it within ±{MARGIN} points, which is said beside one that is told; otherwise "
    "undecided, with the seeds that would decide with a power of 80 % by the spread of ours: tell the paper's "
    "difference, if one stands there, and find one of zero within the margin. Runs of an experiment that tests the "
    "paper's claims are judged by `dk-bench claims`, over the families declared for them, by whole seeds and where "
    "there are test images by those: its verdicts are the ones that count."
)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table whose rows are objects of one kind.

    Attributes:
        name: at its head.
        value: gives what stands in a row: text, a `Number`, a `Chance`, a `Figure`, or a `Judgement`, which is shown as
            its mean with half of its interval.
        family: what one of the judgements is called ("difference"), for a column that is judged: all judgements in the
            table's columns of one family are corrected together, and corrected p and verdict stand behind the column.
            Empty for a column that is not judged.
        when: whether the table has the column; or a function of the column's values that tells: ``any`` leaves it out
            where nothing stands in it.
        notes: what explains the column, below the document that it stands in.
        short: the column of a summary (README's) that the values go into, if they do.
    """

    name: str
    value: Callable[[Row], Value | Judgement]
    family: str = ""
    when: bool | Callable[[Iterable[Value]], bool] = True
    notes: tuple[str, ...] = ()
    short: str = ""


@dataclass(frozen=True)
class Table:
    """Names of columns and rows of values, a value a column, as `make_table` leaves them.

    ``note``: of this table alone, printed below it in our words, or empty. ``notes``: what its columns mean, for the
    document. ``rules``: rows above which a terminal has a rule. ``short``: what `Column` calls so, of each column.
    """

    heading: str
    columns: tuple[str, ...]
    rows: list[list[Value]]
    note: str = ""
    notes: tuple[str, ...] = ()
    rules: tuple[int, ...] = ()
    short: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[int, ...]:
        """Returns the places of columns that hold text alone, which stand on the left; all others hold figures."""
        texts = [[isinstance(value, str) and not isinstance(value, Right) for value in row] for row in self.rows]
        return tuple(place for place in range(len(self.columns)) if all(row[place] for row in texts))

    def sides(self, left: str, right: str) -> list[str]:
        """Returns ``left`` for every column of names, ``right`` for all others."""
        return [left if place in self.names else right for place in range(len(self.columns))]


@dataclass(frozen=True)
class Document:
    """Tables that go into one file, ``<name>.md`` and so on."""

    name: str
    title: str
    notes: list[str]
    tables: list[Table] = field(default_factory=list)


def make_table(
    heading: str,
    columns: Iterable[Column[Row]],
    rows: Iterable[Row],
    note: str = "",
    *,
    section: Callable[[Row], Any] | None = None,
) -> Table:
    """Returns the table of these columns and rows: behind each judged column the corrected p and the verdict, without
    columns whose ``when`` says so.

    The note is followed by a sentence on each family: how many judgements it has, by column, and how many were run.
    ``section``: on a terminal a rule stands between rows of which it gives something else.
    """
    rows = list(rows)
    filled = [(column, [column.value(row) for row in rows]) for column in columns if column.when is not False]
    families: dict[str, list[tuple[str, Judgement]]] = defaultdict(list)
    for column, values in filled:
        if column.family:
            families[column.family] += [(column.name, value) for value in values if isinstance(value, Judgement)]
    verdicts = {}
    for name, found in families.items():
        members = [judged for _, judged in found]
        verdicts[name] = dict(zip(members, decide(members), strict=True))
    parts = [part for column, values in filled for part in _parts(column, values, verdicts.get(column.family, {}))]
    parts = [(column, values) for column, values in parts if column.when is True or column.when(values)]
    return Table(
        heading,
        tuple(column.name for column, _ in parts),
        [list(row) for row in zip(*(values for _, values in parts), strict=True)],
        note=" ".join(filter(None, [note, *(_said(name, found) for name, found in families.items())])),
        notes=merged([*(column.notes for column, _ in filled), *[(CHANCE, VERDICT)] * bool(families)]),
        rules=tuple(at for at, (a, b) in enumerate(pairwise(rows), 1) if section and section(a) != section(b)),
        short=tuple(column.short for column, _ in parts),
    )


def merged(notes: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Returns the notes of several columns or tables, each once."""
    return tuple(dict.fromkeys(note for some in notes for note in some))


def as_figure(judged: Value | Judgement) -> Value:
    """Returns a difference as tables show it, and any other value as it is."""
    if not isinstance(judged, Judgement):
        return judged
    if judged.mean is None:
        return NO_DIFFERENCE
    return Figure(Summary(judged.n, judged.mean, judged.std, judged.half), signed=True, marks=judged.marks)


def _parts(column: Column, values: list[Any], verdicts: Mapping[Any, Verdict]) -> Iterator[tuple[Column, list[Value]]]:
    """Yields a column as it is shown, and behind a judged one the corrected p and the verdict."""
    yield column, [as_figure(value) for value in values]
    if column.family:
        found = [verdicts.get(value) for value in values]
        for name, shown in (
            ("p (Holm)", [Chance(verdict and verdict.p) for verdict in found]),
            ("verdict", [str(verdict or "") for verdict in found]),
        ):
            yield replace(column, name=f"{column.name}, {name}", short=name if column.short else ""), shown


def _said(name: str, members: list[tuple[str, Judgement]]) -> str:
    """Says how many judgements a family has, by column, and how many of them were run; nothing of an empty one."""
    if not members:
        return ""
    counts, run = Counter(column for column, _ in members), sum(judged.n > 0 for _, judged in members)
    parts = ", ".join(f"{count} {column}" for column, count in counts.items())
    return f"Family: {len(members)} {name}{'s' * (len(members) != 1)} ({parts}), {run} of them run."
