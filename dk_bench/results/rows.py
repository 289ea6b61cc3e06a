"""What the rows of several tables are made of."""

from __future__ import annotations

from dk_bench.errors import UserError
from dk_bench.models import MODELS, BenchModel, KernelSpec
from dk_bench.results.cells import Cell
from dk_bench.results.render import Number, Value

OTHER_DATA = "not comparable with the paper"
DIRTY = "Dirty: so many runs of the row had code with changes that no commit holds."
GRID = (
    "Centred, spread: where the taps of a kernel in a larger scope start, in its middle, one sample apart (as in the "
    "authors' release), or over all of it (as in the paper's text)."
)


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
    """The paper's words for a spec: 1x1 convolutions, 3x3 convolutions, what it is combined with. The paper does not
    say the grid; here every kernel in a scope larger than itself does."""
    pw = f"{spec.pointwise} {spec.pointwise_scope}x{spec.pointwise_scope}" if spec.pointwise else "rigid"
    conv3x3 = f"{spec.depthwise} {spec.scope}x{spec.scope}" if spec.depthwise else "rigid"
    if spec.depthwise:
        conv3x3 += f", {spec.grid}" * (spec.scope > spec.kernel_size) + ", unclipped" * (not spec.clip)
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
