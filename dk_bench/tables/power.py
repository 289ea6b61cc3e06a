"""How many seeds a statement takes: the power of the tests in `dk_bench.tables.significance`.

``std`` is the standard deviation of paired differences, and effects and margins are in its unit, percentage points.
In a family of N statements ``alpha`` is 0.05 / N: the step that Holm's method begins with, and the worst.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

MOST = 10_000  # seeds; nobody trains more
# Of sums over the probability of a sample's standard deviation, which are right to 1e-5. scipy's noncentral t
# distribution would do for differences, but for NaN where the power is 1; equivalence needs the sum.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # on [-1, 1]


def power_of_difference(n: int, effect: float, std: float, alpha: float = 0.05) -> float:
    """Tells how often n >= 2 seeds tell a true mean difference from zero, by Student's two-sided test at ``alpha``."""
    error = std / np.sqrt(n)
    needed = stdtrit(n - 1, 1 - alpha / 2) * _sample_errors(n, error)
    return _mean(ndtr((effect - needed) / error) + ndtr((-effect - needed) / error))


def power_of_equivalence(n: int, margin: float, std: float, alpha: float = 0.05, effect: float = 0.0) -> float:
    """Tells how often n seeds (n >= 2) show a true mean difference ``effect`` to be within +-``margin``, by two
    one-sided t tests at ``alpha``."""
    error = std / np.sqrt(n)
    reach = margin - stdtrit(n - 1, 1 - alpha) * _sample_errors(n, error)  # where the sample's mean has to be
    return _mean(np.where(reach > 0, ndtr((reach - effect) / error) - ndtr((-reach - effect) / error), 0.0))


def _sample_errors(n: int, error: float) -> np.ndarray:
    """Tells what samples of n give for the mean's standard error, at the nodes' probabilities."""
    return error * np.sqrt(chdtri(n - 1, (NODES + 1) / 2) / (n - 1))


def _mean(values: np.ndarray) -> float:
    return float(WEIGHTS @ values / 2)


def seeds_for(
    power_of: Callable[..., float], size: float, std: float, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Returns the fewest seeds, 2 at least, with which ``power_of``, one of the functions above, gives ``power`` for an
    effect or a margin of ``size``; None for more than 10,000, so for an effect of zero."""
    low, high = 1, 2
    while power_of(high, size, std, alpha) < power:
        if high > MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, size, std, alpha) >= power else (middle, high)
    return high if high <= MOST else None


def std_interval(std: float, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a true standard deviation by a sample's of n values (n >= 2), by chi-square."""
    return tuple(float(std * np.sqrt((n - 1) / chdtri(n - 1, tail))) for tail in (0.025, 0.975))
