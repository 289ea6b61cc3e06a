"""Simulates verdicts: how often they are wrong, and how often they find a difference that is there.

An arm's runs are drawn seed by seed, and so are those of the base that all arms of a family are compared with: its
differences have the base's runs in common, and any two of them the correlation 0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import itemgetter

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dk_bench.tables.contrasts import ALPHA, MARGIN
from dk_bench.tables.entries import Number
from dk_bench.tables.power import power_of_difference, power_of_equivalence
from dk_bench.tables.significance import equivalence_p, holm, student_p
from dk_bench.tables.table import Column, Document, Table, make_table

FAMILIES = 10_000  # simulated for each figure: its standard error is 0.2 points at 5 %
SEEDS, SIZES = (3, 4, 6, 8), (1, 6, 8, 16)
PAPERS_EFFECTS = (0.5, 1.1, 1.8)  # points: local over global DK, scope 3 over rigid, scope 4 over rigid
STDS, POWER_SEEDS, POWER_SIZES = (0.5, 1.0, 1.7), (3, 4, 6, 8), (1, 6, 16)
# Runs about a mean of 0 with a variance of 1, by the shape of their distribution.
RUNS: dict[str, Callable[[Generator, tuple[int, ...]], NDArray[np.float64]]] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "heavy tails (t, 3 degrees of freedom)": lambda generator, shape: generator.standard_t(3, shape) / np.sqrt(3),
    "skewed (exponential)": lambda generator, shape: generator.standard_exponential(shape) - 1,
}


@dataclass(frozen=True)
class SimulatedFamily:
    """Contrasts of arms with one base: ``seeds`` paired differences each, whose true means are ``effects`` and whose
    true standard deviation is ``std``, in points; ``runs``: the shape of single runs' distribution, of `RUNS`."""

    seeds: int
    effects: tuple[float, ...]
    std: float = 1.0
    runs: str = "normal"

    def told(self, generator: Generator, families: int = FAMILIES) -> NDArray[np.bool_]:
        """Tells which differences of simulated families the verdicts tell from zero, (families, arms)."""
        return holm(student_p(*self._draw(generator, families), self.seeds)) <= ALPHA

    def within(self, generator: Generator, families: int = FAMILIES) -> NDArray[np.bool_]:
        """Tells which they find within the margin of 0.5 points, (families, arms)."""
        return holm(equivalence_p(*self._draw(generator, families), self.seeds, MARGIN)) <= ALPHA

    def _draw(self, generator: Generator, families: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and sample standard deviations of the differences, (families, arms) each."""
        sums, squares = 0.0, 0.0
        for _ in range(self.seeds):
            runs = RUNS[self.runs](generator, (families, 1 + len(self.effects))) * self.std / np.sqrt(2)
            differences = runs[:, 1:] - runs[:, :1] + self.effects
            sums, squares = sums + differences, squares + differences**2
        means = sums / self.seeds
        return means, np.sqrt((squares - self.seeds * means**2) / (self.seeds - 1))


def simulate() -> Document:
    """Tells how often a family holds a wrong statement, simulated, and the power at the paper's effects, computed."""
    notes = [
        f"Made by `dk-bench power --simulate`. A share of the first table is of {FAMILIES:,} simulated families, with "
        "a standard error of 0.2 at 5 %. All arms of a family are compared with the same runs of one base. Wrong: told "
        "from zero, so supported or contradicted, where the true difference is 0; found within the margin where it is "
        "the margin. Half real: every other true difference is 1.1 points, one SD; those of 0 count. An arm without an "
        "effect has runs that are distributed as the base's, so that differences are symmetric, whatever the runs are.",
        "Power of the second table: of Student's paired t test, two-sided, to tell a difference, and of two one-sided "
        "ones to find one of 0 within the margin, for normal differences of that SD; in a family at Holm's worst step, "
        "5 % over its size. Where others of the family are told, it is higher.",
    ]
    return Document("power", "What verdicts can do: errors and power.", notes, [_errors(), _powers()])


def _errors() -> Table:
    generator = np.random.default_rng(0)
    rows = [(*case, _wrong(generator, *case)) for case in product(RUNS, SEEDS, SIZES)]
    columns = [
        Column("single runs", itemgetter(0)),
        Column("seeds", lambda row: Number(row[1], 0)),
        Column("family", lambda row: Number(row[2], 0)),
        Column("told at 0", lambda row: Number(row[3][0])),
        Column("told, half real", lambda row: Number(row[3][1])),
        Column("within, at the margin", lambda row: Number(row[3][2])),
    ]
    return make_table("Families with any wrong statement, %", columns, rows)


def _wrong(generator: Generator, runs: str, seeds: int, size: int) -> list[float]:
    """Returns how many % of families have a wrong statement: all differences 0, half of them, and all the margin."""
    real = np.arange(size) % 2 == 0 if size > 1 else np.zeros(1, bool)
    none = SimulatedFamily(seeds, (0.0,) * size, runs=runs).told(generator)
    half = SimulatedFamily(seeds, tuple(1.1 * real), 1.1, runs).told(generator)[:, ~real]
    edge = SimulatedFamily(seeds, (MARGIN,) * size, MARGIN / 2, runs).within(generator)
    return [float(100 * np.mean(wrong.any(axis=1))) for wrong in (none, half, edge)]


def _powers() -> Table:
    columns = [
        Column("SD of differences", lambda row: Number(row[0])),
        Column("seeds", lambda row: Number(row[1], 0)),
        Column("family", lambda row: Number(row[2], 0)),
        *(Column(f"tell {effect:+g}", partial(_power, power_of_difference, effect)) for effect in PAPERS_EFFECTS),
        Column(f"find 0 within ±{MARGIN:g}", partial(_power, power_of_equivalence, MARGIN)),
    ]
    return make_table("Power, %", columns, product(STDS, POWER_SEEDS, POWER_SIZES))


def _power(power_of: Callable[..., float], size: float, row: tuple[float, int, int]) -> Number:
    std, seeds, family = row
    return Number(100 * power_of(seeds, size, std, ALPHA / family), 0)
