"""What the rows of several tables are made of."""

from __future__ import annotations

from dk_bench.errors import UserError
from dk_bench.models import MODELS, BenchModel, KernelSpec
from dk_bench.results.cells import Cell, Figure
from dk_bench.results.render import Chance, Number, Value
from dk_bench.results.statistics import holm, p_value

OTHER_DATA = "not comparable with the paper"
ROUNDED = 0.05  # the paper prints one digit after the point

DIFFERENCE = (
    "Δ rigid: {} above that of the rigid base trained with the same settings, run by run over the n seeds that both "
    "finished: mean ± half of its 95 % interval (paired, Student's t)."
)
WITHOUT = "Δ DK: the same, above the row with rigid 3x3 convolutions and the same SCC or DCN."
CHANCE = (
    "p (Holm): two-sided paired t test of the difference, corrected by Holm's method for all differences of its "
    "column, those that are there so far; none for one seed, and where all seeds differ by the same. Below 0.05 a "
    "difference is told from chance; the intervals are not corrected."
)
DIRTY = "Dirty: so many runs of the row had code with changes that no commit holds."
VERDICT = (
    "Verdict: reproduced where the paper's figure, which is rounded to 0.1, lies in our 95 % interval, which a wide "
    "interval makes easy; differs where it does not; none from one seed, which has no interval."
)


def gain(cell: Cell | None, cells: list[Cell], metric: str, over: str | None = None) -> Value:
    """How far a metric is above that of the rigid base, or of the model ``over``, on the same data under the same
    settings, in points; nothing for the base itself and where a run lacks."""
    nothing = Number(None, signed=True)
    if cell is None:
        return nothing
    ours = MODELS.get(cell.model)
    if not cell.has_spec and not (ours and ours.suffix):
        return nothing
    base = over or (ours.base if ours else cell.model)
    same = [
        c for c in cells if c.model == base and not c.has_spec and (c.data, c.settings) == (cell.data, cell.settings)
    ]
    # Several where their offsets, which a rigid model has not, were to learn at several rates.
    same.sort(key=lambda c: (c.offset_rates != cell.offset_rates, -c.seeds_in_common(cell)))
    return (same and cell.gain(metric, same[0])) or nothing


def gain_of_dk(cell: Cell | None, cells: list[Cell], metric: str) -> Value:
    """How far a metric is above that of the same model with SCC or DCN alone; nothing for that one itself."""
    without = cell and cell.model.removesuffix("_dk")
    if cell is None or without == cell.model:
        return Number(None, signed=True)
    return gain(cell, cells, metric, over=without)


def verdict(figure: Figure, paper: float) -> str:
    """What a figure says of the paper's; ``VERDICT`` explains the words."""
    summary = figure.summary
    if summary is None:
        return "no figure" if figure.run else "not run"
    if summary.half_width is None:
        return "one seed"
    return "reproduced" if abs(summary.mean - paper) <= summary.half_width + ROUNDED else "differs"


def with_chances(columns: list[str], lines: list[list[Value]]) -> tuple[list[str], list[list[Value]]]:
    """A table with a column of corrected p values behind every column of differences, whose name begins with a Δ.

    The differences of one column are the family that the correction is over.
    """
    for at in reversed([index for index, column in enumerate(columns) if column.startswith("Δ")]):
        values = [line[at] for line in lines]
        chances = holm([p_value(v.summary) if isinstance(v, Figure) and v.summary else None for v in values])
        columns = [*columns[: at + 1], f"{columns[at]}, p (Holm)", *columns[at + 1 :]]
        lines = [[*line[: at + 1], Chance(p), *line[at + 1 :]] for line, p in zip(lines, chances, strict=True)]
    return columns, lines


def spec_of(model: str, cell: Cell | None) -> KernelSpec:
    """The kernel spec of a model: what its record says, otherwise a registered one's own, rigid if nothing."""
    known: BenchModel | None = MODELS.get(model)
    recorded = cell and cell.runs[0].model.get("spec")
    if known and not recorded:
        return known.spec
    try:
        return KernelSpec.from_dict(recorded or {})
    except ValueError as error:
        raise UserError(f"record of {model}: model.spec: {error}") from error


def kernel_words(spec: KernelSpec) -> tuple[str, str, str]:
    """The paper's words for a spec: 1x1 convolutions, 3x3 convolutions, what it is combined with."""
    pw = f"{spec.pointwise} {spec.pointwise_scope}x{spec.pointwise_scope}" if spec.pointwise else "rigid"
    conv3x3 = f"{spec.depthwise} {spec.scope}x{spec.scope}" if spec.depthwise else "rigid"
    if spec.depthwise:
        conv3x3 += ", spread" * (spec.grid == "spread") + ", unclipped" * (not spec.clip)
    parts = ["DCN"] * spec.dcn + ["SCC"] * bool(spec.experts)
    if spec.dense_dcn:
        groups = f", {spec.dense_dcn_groups} groups" if spec.dense_dcn_groups > 1 else ""
        parts.append(f"full DCN {spec.dense_dcn} from stride {spec.dense_dcn_min_stride}{groups}")
    return pw, conv3x3, ", ".join(parts + ["dilated"] * spec.dilate_last)


def scaled(count: float | str | None, unit: float, digits: int = 2) -> Number | str:
    """A count in units of ``unit``; text, why there is no count, stays as it is."""
    if isinstance(count, str):  # why there is no count
        return count
    return Number(None if count is None else count / unit, digits)


def without_empty_setting(columns: list[str], lines: list[list[Value]]) -> tuple[tuple[str, ...], list[list[Value]]]:
    """The last column tells cells of one model apart; without such cells it would stand empty, so it goes."""
    if any(line[-1] for line in lines):
        return tuple(columns), lines
    return tuple(columns[:-1]), [line[:-1] for line in lines]
