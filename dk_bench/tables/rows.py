"""The rows of tables of models, and the differences to other models that they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dk_bench.errors import UserError
from dk_bench.models import MODELS, KernelSpec
from dk_bench.models.variants import is_beyond_paper
from dk_bench.tables.cells import Cell, pair_marks
from dk_bench.tables.contrasts import Judgement, judge, paired_differences
from dk_bench.tables.costs import Costs
from dk_bench.tables.entries import NOT_RUN, Figure, Number
from dk_bench.tables.table import NO_DIFFERENCE


@dataclass(frozen=True)
class ModelRow:
    """A row of a table of models: a cell, or a model that nothing was run of.

    ``beside``: all cells of the table, among which are those it is compared with. ``metric``: what differences are of.
    ``paper``: the row of the paper's table, where it is one. ``counts``: params and so on, for a model without a cell.
    """

    model: str
    cell: Cell | None
    beside: list[Cell]
    metric: str
    paper: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def kernels(self) -> tuple[str, str, str]:
        """Returns what the model's 1x1 and 3x3 convolutions are, and what they are combined with."""
        return spec_of(self.model, self.cell).words.columns

    @property
    def is_beyond_paper(self) -> bool:
        """Tells whether the model is like no row of the paper, by its name or by the spec of its record."""
        known = MODELS.get(self.model)
        return is_beyond_paper(known.base if known else self.model, spec_of(self.model, self.cell))

    def final(self, metric: str) -> Figure:
        """Returns a metric at the end of training."""
        return self.cell.final(metric) if self.cell else NOT_RUN

    def count(self, key: str, unit: float, digits: int = 2) -> Number | str:
        """Returns a count in units of ``unit``; text where it could not be counted."""
        count = self.cell.cost(key) if self.cell else self.counts.get(key)
        return count if isinstance(count, str) else Number(None if count is None else count / unit, digits)

    def above_base(self, effect: float | None = None, over: str | None = None) -> Judgement | Number:
        """Tells how far the metric is above that of the model's rigid base, or of the model ``over``, on the same data
        under the same settings, in points; nothing for a base itself. ``effect``: the difference that the paper has."""
        known = MODELS.get(self.model)
        if not (self.cell and self.cell.has_spec) and not (known and known.suffix):
            return NO_DIFFERENCE
        differences, marks = {}, ()
        if self.cell and (base := self._base(over or (known.base if known else self.model))):
            differences = paired_differences((self.cell, base), (1, -1), self.metric)
            own = [*self.cell.mixture(self.metric), *self.final(self.metric).state.split(", ")]  # in the row already
            marks = [mark for mark in pair_marks((self.cell, base), self.metric) if mark not in own]
        judged = judge(differences.values(), expected_sign=-1 if effect and effect < 0 else 1, effect=effect)
        return replace(judged, marks=tuple(marks))

    def above_rival(self, effect: float | None = None) -> Judgement | Number:
        """Tells how far the metric is above that of the same model with SCC or DCN alone; nothing for all others."""
        rival = MODELS.get(self.model.removesuffix("_dk"))
        if rival is None or rival.name == self.model or not rival.spec.words.combined:
            return NO_DIFFERENCE
        return self.above_base(effect, rival.name)

    def _base(self, model: str) -> Cell | None:
        """Returns the cell of a base that differs from this one in the model alone."""
        of_base = [cell for cell in self.beside if cell.model == model and not cell.has_spec]
        same = [c for c in of_base if (c.data, c.settings) == (self.cell.data, self.cell.settings)]
        # Several where their offsets, which a rigid model has not, were to learn at several rates.
        same.sort(key=lambda c: (c.offset_rates != self.cell.offset_rates, -c.pairs_with(self.cell)))
        return same[0] if same else None


def rows_of(
    models: Mapping[str, Mapping[str, Any]], cells: list[Cell], metric: str, costs: Costs | None = None
) -> list[ModelRow]:
    """Returns the rows of a table: of each model in turn a row a cell, or one that says that nothing was run.

    ``models``: with the row of the paper's table that each is, empty where it is none. ``costs``: counts by model.
    """
    return [
        ModelRow(model, cell, cells, metric, paper, (costs or {}).get(model, {}))
        for model, paper in models.items()
        for cell in [cell for cell in cells if cell.model == model] or [None]
    ]


def spec_of(model: str, cell: Cell | None) -> KernelSpec:
    """Returns the kernel spec of a model: what its record says, otherwise a registered one's own, rigid if nothing."""
    known = MODELS.get(model)
    recorded = cell and cell.runs[0].model.get("spec")
    if known and not recorded:
        return known.spec
    try:
        return KernelSpec.from_dict(recorded or {})
    except ValueError as error:
        raise UserError(f"record of {model}: model.spec: {error}") from error
