"""Mean and spread over seeds, and whether differences are told from chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit  # the distribution alone: scipy.stats takes a second to import

EQUAL = 1e-4  # percentage points; metrics come in float32, so that equal differences are 1e-5 apart


@dataclass(frozen=True)
class Summary:
    """Some values in short. ``std`` is the sample's (n - 1), ``half_width`` half the 95 % interval of the mean.

    Both are None for n = 1: one run says nothing about spread.
    """

    n: int
    mean: float
    std: float | None = None
    half_width: float | None = None


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, sample standard deviation and the half width of the mean's interval by Student's t distribution.

    Raises ValueError for no values, and for NaN or infinity: such a run has no figure.
    """
    if not values:
        raise ValueError("no values to summarize")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values are not all finite: {list(values)}")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Summary(1, mean)
    std = statistics.stdev(values)
    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    return Summary(n, mean, std, quantile * std / math.sqrt(n))


def p_value(differences: Summary) -> float | None:
    """Two-sided p of Student's t test that the mean is zero; over differences by seed, in percentage points, that is
    the paired test.

    None where there is no such test: for n = 1, and where all differences are equal but for rounding.
    """
    if differences.std is None or differences.std < EQUAL:
        return None
    t = differences.mean / differences.std * math.sqrt(differences.n)
    return float(2 * stdtr(differences.n - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected by Holm's method for all of them that are there; None stays None and does not count."""
    order = sorted((index for index, p in enumerate(p_values) if p is not None), key=p_values.__getitem__)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, index in enumerate(order):
        least = corrected[index] = max(least, min(1.0, (len(order) - rank) * p_values[index]))
    return corrected
