"""Key ``early_terminate`` of a sweep file: which runs to stop, as W&B's hyperband decides it.

A run has as many iterations as it has logged numbers of the metric, which is one an evaluated epoch. At every band, a
number of iterations, stands a threshold: the value that the best 1/eta of all runs that got so far have reached there.
A run is stopped where it is worse than that of the last band it has come to. W&B's package ``sweeps`` is no dependency;
the tests compare with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dk_bench.errors import UserError
from dk_bench.sweep.faults import is_number, need

KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
MOST_BANDS = 100  # of min_iter, which has no end of its own


@dataclass(frozen=True)
class Hyperband:
    """W&B's hyperband over the histories of a metric: their numbers, iteration by iteration, oldest first.

    ``strict``: what counts is the value at the band, otherwise the best one so far.
    """

    metric: str
    maximize: bool
    bands: tuple[int, ...]
    eta: float = 3
    strict: bool = True

    @classmethod
    def read(cls, settings: Any, metric: Any) -> Self:
        """Returns what the keys ``early_terminate`` and ``metric``, which is sound, of a sweep file say. Raises
        UserError."""
        need(isinstance(settings, dict), "expected type: hyperband with min_iter, or max_iter and s", _key(), settings)
        if unknown := sorted(map(str, settings.keys() - set(KEYS))):
            raise UserError(f"unknown key '{_key(unknown[0])}'; keys there: {', '.join(KEYS)}")
        need(settings.get("type") == "hyperband", "expected hyperband", _key("type"), settings.get("type"))
        for name in ("min_iter", "max_iter", "s"):
            value = settings.get(name)
            need(value is None or type(value) is int and value > 0, "expected a positive integer", _key(name), value)
        eta, strict = settings.get("eta", 3), settings.get("strict", True)
        above = is_number(eta) and math.isfinite(eta) and eta > 1
        need(above, "expected a number above 1", _key("eta"), eta)
        need(isinstance(strict, bool), "expected true or false", _key("strict"), strict)
        if metric is None:
            raise UserError("key 'metric' is missing, which early_terminate goes by")
        maximize = metric.get("goal", "minimize") == "maximize"
        return cls(metric["name"], maximize, _bands(settings, eta), eta, strict)

    def threshold(self, band: int, histories: Sequence[Sequence[float]]) -> float:
        """Returns the value that a run needs to have reached at a band; no number is worse where no run got so far."""
        reached = sorted((history[band - 1] for history in histories if len(history) >= band), reverse=self.maximize)
        if not reached:
            return -math.inf if self.maximize else math.inf
        return reached[int(1 / self.eta * len(reached))]

    def why_stop(self, history: Sequence[float], histories: Sequence[Sequence[float]]) -> str | None:
        """Tells why a run is to be stopped, in words; None where it may go on. ``histories`` are those of all runs, its
        own too, whatever has become of them."""
        band = max((band for band in self.bands if band <= len(history)), default=None)
        if band is None:
            return None
        best = max if self.maximize else min
        value, threshold = history[band - 1] if self.strict else best(history), self.threshold(band, histories)
        if not (value < threshold if self.maximize else value > threshold):
            return None
        what = f"{self.metric} {value:g}" if self.strict else f"best {self.metric} {value:g}"
        expected = f"at {'least' if self.maximize else 'most'} {threshold:g}"
        return f"stopped by early_terminate at epoch {len(history)}: {what}, expected {expected} at epoch {band}"


def history_of(metric: str, epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the numbers of a metric that a record's epochs have; epochs without one are no iterations."""
    values = [epoch.get(metric) for epoch in epochs]
    return [value for value in values if is_number(value) and math.isfinite(value)]


def _bands(settings: Mapping[str, Any], eta: float) -> tuple[int, ...]:
    if settings.get("max_iter") is not None:
        need(settings.get("s") is not None, "expected the number of bands, which max_iter needs", _key("s"))
        need(settings["max_iter"] >= eta, f"expected at least eta, {eta}", _key("max_iter"), settings["max_iter"])
        band, bands = settings["max_iter"] / eta, []
        while band >= 1 and len(bands) < settings["s"]:
            bands.append(int(band))
            band /= eta
        return tuple(sorted(bands))
    need(settings.get("min_iter") is not None, "expected min_iter, or max_iter and s", _key(), settings)
    band, bands = settings["min_iter"], []
    while math.isfinite(band) and len(bands) < MOST_BANDS:
        bands.append(int(band))
        band *= eta
    return tuple(bands)


def _key(name: str = "") -> str:
    return f"early_terminate.{name}" if name else "early_terminate"
