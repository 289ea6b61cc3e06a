"""Columns of differences, and behind them what they say: the family of a table is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dk_bench.models import MODELS, PAPER_MODELS
from dk_bench.tables.cells import Cell, Figure, pair_marks
from dk_bench.tables.contrasts import MARGIN, NOT_RUN, Judgement, Verdict, decide, judge, paired_differences
from dk_bench.tables.paper import paper_difference
from dk_bench.tables.render import Chance, Number, Value
from dk_bench.tables.statistics import Summary

NO_DIFFERENCE = Number(None, signed=True)

DIFFERENCE = (
    "Δ rigid: {} above that of the rigid base trained with the same settings, run by run over the n seeds that both "
    "finished on the same hardware: mean ± half of its 95 % interval (paired, Student's t), which is not corrected for "
    "the family."
)
WITHOUT = "Δ DK: the same, above the row with rigid 3x3 convolutions and the same SCC or DCN."
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
UNJUDGED = "Only Δ DK gets a verdict here: what DK adds to a rival is the table's claim."


def difference(
    model: str, cell: Cell | None, cells: list[Cell], metric: str, over: str | None = None, effect: float | None = None
) -> Judgement | Number:
    """Tells how far a model's metric is above that of its rigid base, or of the model ``over``, on the same data under
    the same settings, in points; nothing for a base itself.

    ``cell``: the model's, None where it is not run. ``effect``: the difference that the paper has.
    """
    known = MODELS.get(model)
    if not (cell and cell.has_spec) and not (known and known.suffix):
        return NO_DIFFERENCE
    base = over or (known.base if known else model)
    differences, marks = {}, ()
    if cell and (found := _base_of(cell, cells, base)):
        differences = paired_differences((cell, found), (1, -1), metric)
        own = [*cell.mixture(metric), *cell.final(metric).state.split(", ")]  # stands in the row already
        marks = [mark for mark in pair_marks((cell, found), metric) if mark not in own]
    judged = judge(differences, expected_sign=-1 if effect and effect < 0 else 1, effect=effect)
    return replace(judged, marks=tuple(marks))


def _base_of(cell: Cell, cells: list[Cell], base: str) -> Cell | None:
    """Returns the cell of a base that differs from another in the model alone."""
    of_base = [c for c in cells if c.model == base and not c.has_spec]
    same = [c for c in of_base if (c.data, c.settings) == (cell.data, cell.settings)]
    # Several where their offsets, which a rigid model has not, were to learn at several rates.
    same.sort(key=lambda c: (c.offset_rates != cell.offset_rates, -c.pairs_with(cell)))
    return same[0] if same else None


def difference_of_dk(
    model: str, cell: Cell | None, cells: list[Cell], metric: str, effect: float | None = None
) -> Judgement | Number:
    """Tells how far a metric is above that of the same model with SCC or DCN alone; nothing for all other models."""
    rival = MODELS.get(model.removesuffix("_dk"))
    if rival is None or rival.name == model or not (rival.spec.dcn or rival.spec.experts):
        return NO_DIFFERENCE
    return difference(model, cell, cells, metric, rival.name, effect)


def paper_columns(of_dk: bool, with_paper: bool) -> list[str]:
    """Returns the names of what `paper_differences` gives."""
    name = "Δ DK" if of_dk else "Δ rigid"
    return [*["Δ rigid"] * of_dk, *[f"{name}, paper"] * with_paper, name]


def paper_differences(
    model: str, cell: Cell | None, cells: list[Cell], metric: str, key: str, *, of_dk: bool, with_paper: bool
) -> list[Value | Judgement]:
    """Returns the difference that a row of a paper's table is about, the paper's of its figure ``key`` before it: to
    the rigid base; ``of_dk``: to the rival alone, and that to the rigid base, which gets no verdict, first."""
    ours = PAPER_MODELS[model]
    base = PAPER_MODELS[model.removesuffix("_dk") if of_dk else ours.base]
    effect = None if base == ours else paper_difference(ours, base, key)
    shown = [Number(effect, signed=True)] * with_paper
    to_rigid = difference(model, cell, cells, metric, effect=None if of_dk else effect)
    if not of_dk:
        return [*shown, to_rigid]
    return [as_figure(to_rigid), *shown, difference_of_dk(model, cell, cells, metric, effect)]


def as_figure(judged: Judgement | Number) -> Figure | Number:
    """Returns a difference as tables show it."""
    if not isinstance(judged, Judgement) or judged.mean is None:
        return NO_DIFFERENCE
    half = None if judged.high is None else (judged.high - judged.low) / 2
    return Figure(Summary(judged.n, judged.mean, judged.std, half), signed=True, marks=judged.marks)


def with_verdicts(
    columns: list[str], lines: list[list[Value | Judgement]], judged: Sequence[str]
) -> tuple[list[str], list[list[Value]], str]:
    """Returns a table with a corrected p and a verdict behind each of its columns ``judged``, and a line that names the
    family: all differences in these columns."""
    places = [columns.index(name) for name in judged]
    found = [(row, at) for row, line in enumerate(lines) for at in places if isinstance(line[at], Judgement)]
    verdicts = dict(zip(found, decide([lines[row][at] for row, at in found]), strict=True))
    for at in sorted(places, reverse=True):
        columns = [*columns[: at + 1], f"{columns[at]}, p (Holm)", f"{columns[at]}, verdict", *columns[at + 1 :]]
        lines = [_with_verdict(line, at, verdicts.get((row, at))) for row, line in enumerate(lines)]
    return columns, lines, _family(judged, found, places, sum(v.word != NOT_RUN for v in verdicts.values()))


def _with_verdict(line: list[Value | Judgement], at: int, verdict: Verdict | None) -> list[Value]:
    said = [Chance(verdict and verdict.p), str(verdict or "")]
    return [*line[:at], as_figure(line[at]), *said, *line[at + 1 :]]


def _family(judged: Sequence[str], found: list[tuple[int, int]], places: list[int], run: int) -> str:
    counts = [sum(at == place for _, at in found) for place in places]
    parts = ", ".join(f"{count} {name}" for name, count in zip(judged, counts, strict=True) if count)
    return f"Family: {len(found)} difference{'s' * (len(found) != 1)} ({parts}), {run} of them run." if found else ""
