"""Mean and spread over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # the distribution alone: scipy.stats takes a second to import


@dataclass(frozen=True)
class Summary:
    """Some values in short. ``std`` is the sample's (n - 1), ``half_width`` half the 95 % interval of the mean. Both
    are None for n = 1: one run says nothing about spread."""

    n: int
    mean: float
    std: float | None = None
    half_width: float | None = None


def summarize(values: Sequence[float]) -> Summary:
    """Returns mean, sample standard deviation and half of the mean's 95 % interval by Student's t distribution. Raises
    ValueError for no values, and for NaN or infinity: such a run has no figure."""
    if not values:
        raise ValueError("no values to summarize")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values are not all finite: {list(values)}")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Summary(1, mean)
    std = statistics.stdev(values)
    return Summary(n, mean, std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n))
