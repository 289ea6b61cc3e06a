"""Plans the seeds of a contrast from a pilot: its cells in records, and how many seeds their spread asks for."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from dk_bench.errors import UserError
from dk_bench.tables.cells import Cell, Data
from dk_bench.tables.contrasts import ALPHA, Judgement, judge, paired_differences
from dk_bench.tables.entries import Number
from dk_bench.tables.pooling import Pair
from dk_bench.tables.power import MOST, power_of_difference, power_of_equivalence, seeds_for, std_interval
from dk_bench.tables.table import Column, Document, Table, make_table

TERM = re.compile(r"\s*([+-]?)\s*([\w./:]+)\s*(?:\[([^\]]*)\])?\s*")


@dataclass(frozen=True)
class NamedCell:
    """A cell of a contrast: by its model's name, and, where records hold several cells of it, what its label says."""

    weight: float
    model: str
    label: str = ""

    def __str__(self) -> str:
        return self.model + f"[{self.label}]" * bool(self.label)


def read_contrast(text: str) -> list[NamedCell]:
    """Returns the cells of ``A - B``, or ``A + B - C - D``; ``A[optim.lr=0.1]`` names a cell of A by its label. Each
    side weighs 1: two cells on it half each.

    Raises UserError for any other text, and where a cell stands on both sides.
    """
    terms, at = [], 0
    while at < len(text):
        found = TERM.match(text, at)
        if found is None or not (found[1] or at == 0):
            raise UserError(f"--contrast {text!r}: expected A-B, names of models with + or - between them")
        terms.append((-1 if found[1] == "-" else 1, found[2], (found[3] or "").strip()))
        at = found.end()
    sides = {sign: [names for side, *names in terms if side == sign] for sign in (1, -1)}
    if not sides[1] or not sides[-1]:
        raise UserError(f"--contrast {text!r}: expected A-B, a model on each side of the difference")
    if both := next((names for names in sides[1] if names in sides[-1]), None):
        raise UserError(f"--contrast {text!r}: {both[0]} is on both sides")
    return [NamedCell(sign / len(sides[sign]), model, label) for sign, model, label in terms]


def find_cells(terms: Sequence[NamedCell], cells: Sequence[Cell], data: str | None = None) -> list[Cell]:
    """Returns the one cell that each term names, all on one data set, that called ``data`` where several have them.
    Raises UserError where a model has no cell or several, and where the data set stays open."""
    for term in terms:
        if not any(cell.model == term.model for cell in cells):
            known = ", ".join(sorted({cell.model for cell in cells})) or "none"
            raise UserError(f"--contrast: no record of {term.model}, expected some of {known}")
    sets = sorted({cell.data for cell in cells if data in (None, cell.data.name)})
    whole = [d for d in sets if all(any(c.model == t.model and c.data == d for c in cells) for t in terms)]
    if len(whole) != 1:
        names = "; ".join(map(str, whole or sets)) or "; ".join(map(str, sorted({cell.data for cell in cells})))
        told = "are on several data sets" if whole else "are not on one data set" + f" called {data}" * bool(data)
        raise UserError(f"--contrast: its cells {told}: {names}; name one by --data, or give the records of one alone")
    return [_find(term, [cell for cell in cells if cell.data == whole[0]]) for term in terms]


def _find(term: NamedCell, cells: list[Cell]) -> Cell:
    of_model = [cell for cell in cells if cell.model == term.model]
    found = [cell for cell in of_model if term.label in cell.label]
    exact = [cell for cell in found if cell.label == term.label]
    if len(found) == 1 or len(exact) == 1:
        return (exact or found)[0]
    labels = "; ".join(f"{term.model}[{cell.label}]" for cell in of_model)
    raise UserError(f"--contrast: {len(found)} cells are {term}, expected one of {labels}")


@dataclass(frozen=True)
class Aim:
    """The aim of a plan: an ``effect`` to tell, a ``margin`` to be within, both in points; ``power``, a share of 1;
    the size of the ``family`` that Holm's method corrects for."""

    effect: float
    margin: float
    power: float = 0.8
    family: int = 1


def plan_seeds(terms: Sequence[NamedCell], cells: Sequence[Cell], metric: str, aim: Aim) -> Document:
    """Returns the seeds that a contrast takes by the spread of its paired differences and the ends of its interval.
    Raises UserError where cells have fewer than two seeds in common, or differences of one size."""
    differences = paired_differences(cells, [term.weight for term in terms], metric)
    name = " ".join(f"{'-' if term.weight < 0 else '+'} {term}" for term in terms).removeprefix("+ ")
    if len(differences) < 2:
        raise UserError(
            f"--contrast {name}: {len(differences)} seeds in common with a finite {metric}, expected at least 2, as "
            "one has no spread"
        )
    pilot = judge(differences.values(), effect=aim.effect, margin=aim.margin)
    if pilot.p is None:
        raise UserError(f"--contrast {name}: all differences are {pilot.mean:+.2f}: there is no spread to plan by")
    notes = [
        f"Seeds for a power of {100 * aim.power:g} %, by the standard deviation of the paired differences (SD), and "
        "by the ends of its 95 % interval (chi-square): a pilot of few seeds says little. Differences are told by "
        "Student's paired t test, two-sided; within a margin they are found by two one-sided ones. All in points.",
        "Holm's worst step tests at 5 % over the size of the family; other statements of the family that hold make it "
        "less strict.",
    ]
    table = _table(pilot, differences, cells[0].data, metric, aim)
    return Document("power", f"Seeds for {name}.", notes, [table])


def _table(pilot: Judgement, differences: dict[Pair, float], data: Data, metric: str, aim: Aim) -> Table:
    low, high = std_interval(pilot.std, pilot.n)
    spreads = {f"by SD {pilot.std:.2f}": pilot.std, f"by {low:.2f}": low, f"by {high:.2f}": high}
    statements = (
        (f"tell a difference of {abs(aim.effect):g}", power_of_difference, abs(aim.effect)),
        (f"find one of 0 within ±{aim.margin:g}", power_of_equivalence, aim.margin),
    )
    rows = [(*statement, family) for statement in statements for family in dict.fromkeys((1, aim.family))]

    def seeds(std: float, row: tuple[str, Callable, float, int]) -> Number | str:
        _, power_of, size, family = row
        found = seeds_for(power_of, size, std, ALPHA / family, aim.power)
        return f"over {MOST}" if found is None else Number(found, 0)

    columns = [
        Column("to", itemgetter(0)),
        Column("test at 5 %", lambda row: f"Holm's worst step of {row[3]}" if row[3] > 1 else "alone"),
        *(Column(name, partial(seeds, std)) for name, std in spreads.items()),
    ]
    each = ", ".join(f"{value:+.2f} (seed {pair.seed})" for pair, value in differences.items())
    spread = f"SD {pilot.std:.2f}, its 95 % interval {low:.2f} to {high:.2f}"
    note = f"Pilot: {pilot.n} seeds, mean {pilot.mean:+.2f}: {each}; {spread}."
    return make_table(f"{metric}, {data}", columns, rows, note)
