"""Tests of differences by seed, as numbers or arrays of them; in percentage points, as metrics are.

scipy.stats has the first two and takes a second to import: of scipy only distributions are used, and tests compare.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

EQUAL = 1e-4  # percentage points; metrics come in float32, so that equal differences are 1e-5 apart
TIED = 5e-4  # percentage points between sums of differences; one image of 50,000 is 2e-3
ENUMERATED = 16  # differences up to which all their signs are tried
DRAWN = 100_000  # patterns of signs, where there are more differences than that


def student_p(mean: ArrayLike, std: ArrayLike, n: int, null: float = 0.0) -> NDArray[np.float64]:
    """Returns the two-sided p of Student's t test that n differences (n >= 2) have the mean ``null``: the paired test.

    ``std`` is the sample's (n - 1). NaN where the differences are equal but for rounding: they do not tell how far
    another seed would be off. ``scipy.stats.ttest_1samp`` gives the same.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (np.asarray(mean) - null) / np.asarray(std) * np.sqrt(n)
    return np.where(np.asarray(std) < EQUAL, np.nan, 2 * stdtr(n - 1, -np.abs(t)))


def equivalence_p(mean: ArrayLike, std: ArrayLike, n: int, margin: float) -> NDArray[np.float64]:
    """Returns the p of two one-sided t tests (Schuirmann, 1987) that the mean is outside of +-``margin``, or NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (np.abs(mean) - margin) / np.asarray(std) * np.sqrt(n)
    return np.where(np.asarray(std) < EQUAL, np.nan, stdtr(n - 1, t))


def sign_flip_p(differences: ArrayLike, null: float = 0.0) -> float:
    """Returns the two-sided p of the sign-flip test that differences, (n,), are symmetric about ``null``.

    It assumes nothing else. Exact up to n = 16, where it is a multiple of 2^(1 - n): below 0.05 from n = 6 on. Above,
    100,000 patterns of signs are drawn, the same each time, and the one observed counts (Phipson and Smyth, 2010).
    """
    moved = np.asarray(differences, dtype=np.float64) - null
    n, observed = len(moved), abs(moved.sum())
    if n <= ENUMERATED:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ moved) >= observed - TIED))
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(DRAWN, n))
    return (1 + int(np.sum(np.abs(signs @ moved) >= observed - TIED))) / (1 + DRAWN)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Corrects p values by Holm's method for their number, the length of the last axis; any dependence is allowed.

    NaN or None is a test of the family that there is no p of (not run, one seed): it is NaN, and counts as 1. So a
    verdict does not change when what was declared is run later, but by what that says.
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(known, axis=-1, kind="stable")
    factors = np.arange(p.shape[-1], 0, -1)
    steps = np.minimum(1.0, np.maximum.accumulate(factors * np.take_along_axis(known, order, -1), axis=-1))
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, steps, axis=-1)
    return np.where(np.isnan(p), np.nan, corrected)
