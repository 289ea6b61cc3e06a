"""Mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # the distribution alone: scipy.stats takes a second to import


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
    """Returns mean, sample standard deviation and the half width of the mean's interval by Student's t distribution.

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
