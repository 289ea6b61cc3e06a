"""The columns that tables of models share, and the notes that explain them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dk_bench.models import MODELS
from dk_bench.tables.entries import Figure, Number, Value
from dk_bench.tables.paper import TABLES, paper_difference
from dk_bench.tables.rows import ModelRow
from dk_bench.tables.table import Column, Table, merged

OTHER_DATA = "not comparable with the paper"
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


@dataclass(frozen=True)
class Metric:
    """What a table is about: its name at a column's head, its key in records, and in the paper's tables."""

    name: str
    key: str
    paper: str = ""

    def column(self, short: str = "") -> Column[ModelRow]:
        """Returns the column of its figures at the end of training."""
        return Column(self.name, lambda row: row.final(self.key), short=short)


KERNELS = (
    Column("1x1", lambda row: row.kernels[0], short=MODEL),
    Column("3x3", lambda row: row.kernels[1], short=MODEL),
    Column("with", lambda row: row.kernels[2], short=MODEL),
)
ENDING = (
    Column("epochs", lambda row: Number(row.cell and row.cell.epochs(), 0)),
    Column("pooled", lambda row: "; ".join(row.cell.mixture(row.metric)) if row.cell else "", when=any),
    Column("setting", lambda row: row.cell.label if row.cell else "", when=any, short=MODEL),
)


def paper_names(number: int) -> list[Column[ModelRow]]:
    """Returns the columns that name a row of one of the paper's tables, in its words but for the 3x3 convolutions."""
    keys = [key for key in TABLES[f"table{number}"][0] if key in NAMES]
    return [*(Column(NAMES[key], _of_paper(key), short=MODEL) for key in keys), KERNELS[1]]


def _of_paper(key: str) -> Callable[[ModelRow], str]:
    return lambda row: row.paper[key]


def beside_paper(column: Column[ModelRow], key: str, with_paper: bool, digits: int = 1) -> list[Column[ModelRow]]:
    """Returns a column, and before it, ``with_paper``, the paper's figures ``key``."""
    return [Column(f"{column.name}, paper", lambda row: Number(row.paper[key], digits), when=with_paper), column]


def differences(metric: Metric) -> list[Column[ModelRow]]:
    """Returns the differences to the rigid base, and of DK with SCC or DCN to that alone."""
    return [
        Column(ABOVE, ModelRow.above_base, FAMILY, notes=(DIFFERENCE.format(metric.name),), short=ABOVE),
        Column("Δ DK", ModelRow.above_rival, FAMILY, notes=(WITHOUT,)),
    ]


def paper_differences(metric: Metric, of_dk: bool, with_paper: bool) -> list[Column[ModelRow]]:
    """Returns the difference that a table of the paper is about, its own before it: to the rigid base; ``of_dk``: to
    the rival alone, and that to the rigid base, which gets no verdict, first."""
    to_rigid = DIFFERENCE.format(metric.name)

    def effect(row: ModelRow) -> float | None:
        base = row.model.removesuffix("_dk") if of_dk else MODELS[row.model].base
        return None if base == row.model else paper_difference(row.model, base, metric.paper)

    def above_base(row: ModelRow) -> Value:
        return row.above_base(effect(row))

    def above_rival(row: ModelRow) -> Value:
        return row.above_rival(effect(row))

    paper = Column("Δ DK, paper" if of_dk else "Δ rigid, paper", _signed(effect), when=with_paper)
    if not of_dk:
        return [paper, Column(ABOVE, above_base, FAMILY, notes=(to_rigid,), short=ABOVE)]
    return [
        Column(ABOVE, ModelRow.above_base, notes=(to_rigid,), short=ABOVE),
        paper,
        Column("Δ DK", above_rival, FAMILY, notes=(WITHOUT, UNJUDGED)),
    ]


def _signed(effect: Callable[[ModelRow], float | None]) -> Callable[[ModelRow], Number]:
    return lambda row: Number(effect(row), signed=True)


def notes_of(tables: Iterable[Table]) -> list[str]:
    """Returns the notes on the columns of tables."""
    return list(merged(table.notes for table in tables))


def pooling_notes(tables: Iterable[Table]) -> list[str]:
    """Returns what explains the column ``pooled``, and marks of differences, where there are some."""
    rows = [row for table in tables for row in table.rows]
    marked = any(isinstance(value, Figure) and value.marks for row in rows for value in row)
    return [POOLED] * (marked or any("pooled" in table.columns for table in tables))
