"""Differences of a study as one family of tests: their p values, corrected by Holm's method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr, stdtrit

from dk_bench.tables.entries import Chance
from dk_bench.tables.significance import holm
from dk_bench.tables.statistics import Summary

EQUAL = 1e-6  # pixels, shares, cosines, points or R2: seeds that differ by the same but for rounding have no test


@dataclass(frozen=True)
class Difference:
    """A mean difference over the seeds that both sides have, with p of the paired t test that it is zero, and p
    corrected over the differences of one table. ``p`` is None for one seed, and where all seeds differ by the same."""

    of: Summary
    p: float | None = None
    p_holm: float | None = None

    def text(self, digits: int) -> str:
        """Says it as tables have it: ``+3.64 ± 2.40, p 0.023 (0.523)``, the corrected in brackets."""
        chance = "" if self.p is None else f", p {Chance(self.p)} ({Chance(self.p_holm)})"
        return interval_text(self.of, digits, sign="+") + chance


def p_columns(test: Difference | None) -> dict[str, float | None]:
    """Returns p and the corrected p of a test, or of none, as CSV files hold them, with four digits."""
    found = {"p": test and test.p, "p_holm": test and test.p_holm}
    return {name: p if p is None else float(f"{p:.4g}") for name, p in found.items()}


def interval_text(of: Summary, digits: int, sign: str = "") -> str:
    """Says a mean and half of its interval, ``3.64 ± 2.40``; a single value has no interval."""
    spread = "" if of.half_width is None else f" ± {of.half_width:.{digits}f}"
    return f"{of.mean:{sign}z.{digits}f}{spread}"


def as_filed(value: float) -> float:
    """Returns a number as CSV files hold it, with seven digits, so that a file gives the same results."""
    return float(f"{value:.7g}")


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Returns the same with p values, of intervals `as_filed`, corrected by Holm's method over all of them, those
    without a p included: they are one family."""
    found = [replace(each, p=_p_value(each)) for each in differences]
    by_holm = holm([math.nan if each.p is None else each.p for each in found])
    return [replace(each, p_holm=None if math.isnan(p) else float(p)) for each, p in zip(found, by_holm, strict=True)]


def _p_value(difference: Difference) -> float | None:
    """Returns p of the paired t test: t is the mean over the interval's half, in units of its quantile."""
    of = difference.of
    if of.half_width is None or (half := as_filed(of.half_width)) <= EQUAL:
        return None
    freedom = of.n - 1
    t = as_filed(of.mean) / half * stdtrit(freedom, 0.975)
    return float(2 * stdtr(freedom, -abs(t)))


def family_note(differences: Sequence[Difference], words: str) -> str:
    """Tells what stands beside a table: the family, its size, and what survives. ``words`` say what its members are."""
    tested = [each for each in differences if each.p is not None]
    if not tested:
        return f"No p values: {words} are of one seed, or the same for all seeds."
    one, after = (sum(p < 0.05 for p in ps) for ps in ([e.p for e in tested], [e.p_holm for e in tested]))
    size = len(differences)
    return (
        f"One family of {size} tests: {words}. p is of the two-sided paired t test over seeds, in brackets "
        f"corrected by Holm's method over the family: {one} below 0.05 uncorrected, where chance alone would give "
        f"{0.05 * size:.1f}; {after} corrected. Intervals are not corrected. All differences to one model share "
        "its runs, and so are not so many pieces of evidence."
    )
