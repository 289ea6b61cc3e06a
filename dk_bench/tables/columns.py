"""The columns that tables of models share, and the notes that explain them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dk_bench.models import MODELS
from dk_bench.tables.entries import Figure, Number
from dk_bench.tables.paper import TABLES, figures_of_model
from dk_bench.tables.rows import ModelRow
from dk_bench.tables.table import Column, Document, Table, merged

OTHER_DATA = "not comparable with the paper"
NOT_IN_PAPER = "not in the paper"
BEYOND = (
    "Local DK on dense 3x3 and on 1x1 convolutions, where the paper has none (its footnote 4), what an ordinary ResNet "
    "has besides, and taps that start spread, as the paper's text says; their rigid bases stand above."
)
DIFFERENCE = (
    "Δ rigid: {} above that of the rigid base trained with the same settings, run by run over the n seeds that both "
    "finished on the same hardware: mean ± half of its 95 % interval (paired, Student's t), which is not corrected for "
    "the family."
)
WITHOUT = "Δ DK: the same, above the row with rigid 3x3 convolutions and the same SCC or DCN."
UNJUDGED = "Only Δ DK gets a verdict here: what DK adds to a rival is the table's claim."
DIRTY = "Dirty: so many runs of the row had code with changes that no commit holds."
POOLED = (
    "Pooled: what of the runs behind a figure is not alike, and behind a difference what is not alike besides. Unknown "
    "counts as one kind: older records do not say which instruction sets were used. A seed trained on two instruction "
    "sets, or on CPU and GPU, is two runs of n; a difference pairs runs of one seed on the same hardware, and is "
    "without seeds that are of several draws. A seed that was run again on the same hardware counts once, by the run "
    "that finished first; the figures of later ones are named. Runs of several commits may have seen other random "
    "numbers."
)
GRID = (
    "Centred, spread: where the taps of a kernel in a larger scope start, in its middle, one sample apart (as in the "
    "authors' release), or over all of it (as in the paper's text)."
)
SOURCE = "Not run: no record. Paper: Gao et al., ICLR 2020, arXiv 1910.02940."

NAMES = {"backbone": "backbone", "with": "with", "pw": "1x1"}  # heads of what names a row of the paper
FAMILY = "difference"
MODEL, FIGURE, ABOVE = "model", "top-1 or mAP", "Δ rigid"  # columns of a summary

KERNELS = [
    Column(head, lambda row, place=place: row.kernels[place], short=MODEL)
    for place, head in enumerate(("1x1", "3x3", "with"))
]
ENDING = (
    Column("epochs", lambda row: row.cell.length() if row.cell else Number(None)),
    Column("pooled", lambda row: "; ".join(row.cell.mixture(row.metric)) if row.cell else "", when=any),
    Column("setting", lambda row: row.cell.label if row.cell else "", when=any, short=MODEL),
)
Columns = Iterable[Column[ModelRow]]


@dataclass(frozen=True)
class Metric:
    """A figure of tables: its name at a column's head, its key in records, and in the paper's tables."""

    name: str
    key: str
    paper: str = ""

    def column(self, short: str = "") -> Column[ModelRow]:
        """Returns the column of what it is at the end of training."""
        return Column(self.name, lambda row: row.final(self.key), short=short)


def beside_paper(column: Column[ModelRow], key: str, with_paper: bool, digits: int = 1) -> list[Column[ModelRow]]:
    """Returns a column, and before it, ``with_paper``, that of the paper's figures ``key``."""
    return [Column(f"{column.name}, paper", lambda row: Number(row.paper[key], digits), when=with_paper), column]


def models_columns(names: Columns, metric: Metric, counts: Columns, more: Iterable[Metric] = ()) -> Columns:
    """Returns the columns of a table of any models: what names them, their kernels, the metric and its differences to
    the rigid base and, of DK with SCC or DCN, to that alone, ``more`` metrics, and counts."""
    return [
        *names,
        *KERNELS,
        metric.column(FIGURE),
        Column(ABOVE, ModelRow.above_base, FAMILY, notes=(DIFFERENCE.format(metric.name),), short=ABOVE),
        Column("Δ DK", ModelRow.above_rival, FAMILY, notes=(WITHOUT,)),
        *(each.column() for each in more),
        *counts,
        *ENDING,
    ]


def paper_columns(
    number: int, metric: Metric, counts: Columns = (), more: Columns = (), with_paper: bool = True
) -> Columns:
    """Returns the columns of one of the paper's tables: what names a row, in its words but for the 3x3 convolutions,
    the metric, ``more`` figures, differences, and counts. ``with_paper``: its figures stand beside ours."""
    keys = [key for key in TABLES[f"table{number}"][0] if key in NAMES]
    return [
        *(Column(NAMES[key], lambda row, key=key: row.paper[key], short=MODEL) for key in keys),
        KERNELS[1],
        *beside_paper(metric.column(FIGURE), metric.paper, with_paper),
        *more,
        *_paper_differences(metric, number in (2, 4), with_paper),
        *counts,
        *ENDING,
    ]


def _paper_differences(metric: Metric, of_dk: bool, with_paper: bool) -> Columns:
    """Returns the difference that a table of the paper is about, its own before it: to the rigid base; ``of_dk``: to
    the rival alone, and that to the rigid base, which gets no verdict, first."""

    def effect(row: ModelRow) -> float | None:
        base = row.model.removesuffix("_dk") if of_dk else MODELS[row.model].base
        ours, theirs = (figures_of_model(model).get(metric.paper) for model in (row.model, base))
        return None if base == row.model or ours is None or theirs is None else round(ours - theirs, 2)

    to_rigid = DIFFERENCE.format(metric.name)
    name = "Δ DK" if of_dk else ABOVE
    paper = Column(f"{name}, paper", lambda row: Number(effect(row), signed=True), when=with_paper)
    if not of_dk:
        return [paper, Column(ABOVE, lambda row: row.above_base(effect(row)), FAMILY, notes=(to_rigid,), short=ABOVE)]
    return [
        Column(ABOVE, ModelRow.above_base, notes=(to_rigid,), short=ABOVE),
        paper,
        Column(name, lambda row: row.above_rival(effect(row)), FAMILY, notes=(WITHOUT, UNJUDGED)),
    ]


def sections(rows: list[ModelRow], why: str) -> Iterator[tuple[str, list[ModelRow]]]:
    """Yields the rows of a table in up to two: of models like the paper's under ``why``, and of those that are like no
    row of it, whose differences so are a family of their own."""
    for words, beyond in ((why, False), (NOT_IN_PAPER, True)):
        if here := [row for row in rows if row.is_beyond_paper == beyond]:
            yield words, here


def document(name: str, title: str, tables: list[Table], first: list[str], more: list[str], last: str) -> Document:
    """Returns tables with notes: the ``first``, their columns', ``more``, and what explains marks that are there."""
    rows = [row for table in tables for row in table.rows]
    marked = any(isinstance(value, Figure) and value.marks for row in rows for value in row)
    pooled = [POOLED] * (marked or any("pooled" in table.columns for table in tables))
    notes = [*first, *merged(table.notes for table in tables), *more, DIRTY, *pooled, last]
    return Document(name, title, notes, tables)
