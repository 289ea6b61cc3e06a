"""What the rows of several tables are made of."""

from __future__ import annotations

from collections.abc import Iterable

from dk_bench.errors import UserError
from dk_bench.models import MODELS, BenchModel, KernelSpec
from dk_bench.tables.cells import Cell, Figure
from dk_bench.tables.render import Number, Table, Value

OTHER_DATA = "not comparable with the paper"
DIRTY = "Dirty: so many runs of the row had code with changes that no commit holds."
OPTIONAL = ("pooled", "setting")
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


def spec_of(model: str, cell: Cell | None) -> KernelSpec:
    """Returns the kernel spec of a model: what its record says, otherwise a registered one's own, rigid if nothing."""
    known: BenchModel | None = MODELS.get(model)
    recorded = cell and cell.runs[0].model.get("spec")
    if known and not recorded:
        return known.spec
    try:
        return KernelSpec.from_dict(recorded or {})
    except ValueError as error:
        raise UserError(f"record of {model}: model.spec: {error}") from error


def kernel_words(spec: KernelSpec) -> tuple[str, str, str]:
    """Returns the paper's words for a spec: 1x1 convolutions, 3x3 convolutions, what it is combined with. The paper
    does not say the grid; here every kernel in a scope larger than itself does."""
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
    """Returns a count in units of ``unit``; text, why there is no count, stays as it is."""
    if isinstance(count, str):  # why there is no count
        return count
    return Number(None if count is None else count / unit, digits)


def pooled(cell: Cell | None, metric: str) -> str:
    """Tells what goes into a table's column ``pooled``: what of the runs behind a row is not alike."""
    return "; ".join(cell.mixture(metric)) if cell else ""


def without_empty(columns: list[str], lines: list[list[Value]]) -> tuple[tuple[str, ...], list[list[Value]]]:
    """Returns a table without those of its columns `OPTIONAL` that would stand empty: ``setting`` tells cells of one
    model apart."""
    kept = [at for at, name in enumerate(columns) if name not in OPTIONAL or any(line[at] for line in lines)]
    return tuple(columns[at] for at in kept), [[line[at] for at in kept] for line in lines]


def pooling_notes(tables: Iterable[Table]) -> list[str]:
    """Tells what explains the column ``pooled``, and marks of differences, where there are some."""
    rows = [row for table in tables for row in table.rows]
    marked = any(isinstance(value, Figure) and value.marks for row in rows for value in row)
    return [POOLED] * (marked or any("pooled" in table.columns for table in tables))
