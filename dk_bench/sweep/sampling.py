"""Sweeps of method random: points drawn as W&B's own sampler draws them, from its distributions.

A point is a function of a seed and its number alone, so that sweeps that go on, several runners of one folder and a
sweep of more runs later agree. W&B's package ``sweeps`` is no dependency; the tests compare with it.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dk_bench.errors import UserError
from dk_bench.sweep.faults import check_value, check_values, is_number, need

ALMOST = 2.0**-53  # how near to 0 and 1 a draw comes
POSITIVE = ("q", "sigma", "a", "b")  # numbers that are above zero wherever they stand

# A value's part of a distribution below which a share of all draws lies: from its settings and the share.
Quantile = Callable[[Mapping[str, Any], float], Any]


@dataclass(frozen=True)
class Distribution:
    """A distribution of W&B's: the settings it needs, those it may have with their defaults, and its quantiles."""

    quantile: Quantile
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


def draw(parameters: Mapping[str, Any], seed: int, number: int) -> dict[str, Any]:
    """Returns point ``number`` of those that a seed gives: parameter name -> value, names in alphabetical order.

    It is the point that W&B's sampler gives with Python's generator, seeded by the text ``SEED/NUMBER``.
    """
    return _draw(parameters, random.Random(f"{seed}/{number}"))


def check_drawn(parameter: Any, key: str) -> None:
    """Raises UserError for a parameter that W&B could not draw values of."""
    expected = "expected a distribution, value, values, parameters, or min and max"
    need(isinstance(parameter, dict), expected, key, parameter)
    name = _distribution(parameter)
    if name is None:
        raise UserError(f"key '{key}' has {', '.join(map(str, parameter)) or 'nothing'}; to be drawn {expected}")
    known = isinstance(name, str) and name in DISTRIBUTIONS
    need(known, f"expected one of {', '.join(DISTRIBUTIONS)}", f"{key}.distribution", name)
    distribution = DISTRIBUTIONS[name]
    if missing := [setting for setting in distribution.needs if setting not in parameter]:
        raise UserError(f"key '{key}.{missing[0]}' is missing, which {name} needs")
    if extra := sorted(map(str, parameter.keys() - {"distribution", *distribution.needs, *distribution.defaults})):
        raise UserError(f"key '{key}.{extra[0]}' does not go with {name}")
    if name == "constant":
        check_value(parameter["value"], f"{key}.value")
    elif "values" in distribution.needs:
        _check_categories(parameter, key)
    else:
        _check_numbers(parameter, name, key)


def _draw(parameters: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    point = {}
    for name, parameter in sorted(parameters.items()):
        if "parameters" in parameter:
            point[name] = _draw(parameter["parameters"], generator)
        else:  # constants use up a number too, as W&B's do
            point[name] = _quantile(parameter, generator.uniform(0.0, 1.0))
    return point


def _quantile(parameter: Mapping[str, Any], share: float) -> Any:
    distribution = DISTRIBUTIONS[_distribution(parameter)]
    value = distribution.quantile({**distribution.defaults, **parameter}, share)
    return value.item() if isinstance(value, np.generic) else value


def _distribution(parameter: Mapping[str, Any]) -> Any:
    """Returns the name of a parameter's distribution, which W&B finds by its other settings where it is not named."""
    if "distribution" in parameter:
        return parameter["distribution"]
    if "min" in parameter and "max" in parameter:
        whole = type(parameter["min"]) is type(parameter["max"]) is int
        return "int_uniform" if whole else "uniform"
    if "values" in parameter:
        return "categorical_w_probabilities" if "probabilities" in parameter else "categorical"
    return "constant" if "value" in parameter else None


def _check_categories(parameter: Mapping[str, Any], key: str) -> None:
    check_values(parameter["values"], f"{key}.values")
    if "probabilities" not in parameter:
        return
    shares, where = parameter["probabilities"], f"{key}.probabilities"
    fits = isinstance(shares, list) and all(is_number(share) and 0 <= share <= 1 for share in shares)
    need(fits, "expected a list of numbers from 0 to 1", where, shares)
    need(len(shares) == len(parameter["values"]), f"expected one for each of {key}.values", where, shares)
    need(bool(np.isclose(sum(shares), 1)), "expected that they add up to 1", where, shares)


def _check_numbers(parameter: Mapping[str, Any], name: str, key: str) -> None:
    for setting, value in parameter.items():
        if setting != "distribution":
            fits = is_number(value) and (name != "int_uniform" or isinstance(value, int))
            need(fits, f"not a number that {name} takes", f"{key}.{setting}", value)
            need(math.isfinite(value), "expected a finite number", f"{key}.{setting}", value)
            need(setting not in POSITIVE or value > 0, "expected a number above zero", f"{key}.{setting}", value)
    if "min" in parameter:
        need(parameter["min"] < parameter["max"], "expected min below max", key)
        need(not name.endswith("_values") or parameter["min"] > 0, "expected min above zero", f"{key}.min")
    try:
        finite = all(math.isfinite(_quantile(parameter, share)) for share in (ALMOST, 1 - ALMOST))
    except (OverflowError, ValueError):  # of a whole number beyond all
        finite = False
    need(finite, f"expected settings whose {name} gives finite numbers", key)


def _uniform(settings: Mapping[str, Any], share: float) -> Any:
    from scipy import stats  # takes a second

    return stats.uniform.ppf(share, settings["min"], settings["max"] - settings["min"])


def _log_uniform(settings: Mapping[str, Any], share: float) -> Any:
    return np.exp(_uniform(settings, share))


def _inv_log_uniform(settings: Mapping[str, Any], share: float) -> Any:
    return np.exp(-_uniform(settings, 1 - share))


def _normal(settings: Mapping[str, Any], share: float) -> Any:
    from scipy import stats

    return stats.norm.ppf(share, loc=settings["mu"], scale=settings["sigma"])


def _log_normal(settings: Mapping[str, Any], share: float) -> Any:
    from scipy import stats

    return stats.lognorm.ppf(share, s=settings["sigma"], scale=np.exp(settings["mu"]))


def _beta(settings: Mapping[str, Any], share: float) -> Any:
    from scipy import stats

    return stats.beta.ppf(share, a=settings["a"], b=settings["b"])


def _whole(low: int, high: int, share: float) -> int:
    from scipy import stats

    return int(stats.randint.ppf(share, low, high))


def _by_probability(settings: Mapping[str, Any], share: float) -> Any:
    return settings["values"][np.argmin(share >= np.cumsum(settings["probabilities"]))]


def _by_logarithms(quantile: Quantile, *, inverse: bool = False) -> Quantile:
    """Returns the quantiles of a distribution of exponents, from limits of values in place of those of exponents."""

    def of_values(settings: Mapping[str, Any], share: float) -> Any:
        low, high = np.log(settings["min"]), np.log(settings["max"])
        return quantile({**settings, "min": -high if inverse else low, "max": -low if inverse else high}, share)

    return of_values


def _in_steps(quantile: Quantile) -> Quantile:
    """Returns the quantiles rounded to multiples of ``q``, whole numbers where that is one."""

    def rounded(settings: Mapping[str, Any], share: float) -> Any:
        q = settings["q"]
        value = np.round(quantile(settings, share) / q) * q
        return int(value) if isinstance(q, int) else value

    return rounded


LIMITS, BELL, SHAPE = ("min", "max"), {"mu": 0.0, "sigma": 1.0}, {"a": 1, "b": 1}
STEP = {"q": 1.0}
DISTRIBUTIONS = {
    "constant": Distribution(lambda settings, _: settings["value"], ("value",)),
    "categorical": Distribution(
        lambda settings, share: settings["values"][_whole(0, len(settings["values"]), share)], ("values",)
    ),
    "categorical_w_probabilities": Distribution(_by_probability, ("values", "probabilities")),
    "int_uniform": Distribution(lambda settings, share: _whole(settings["min"], settings["max"] + 1, share), LIMITS),
    "uniform": Distribution(_uniform, LIMITS),
    "q_uniform": Distribution(_in_steps(_uniform), LIMITS, STEP),
    "log_uniform": Distribution(_log_uniform, LIMITS),
    "log_uniform_values": Distribution(_by_logarithms(_log_uniform), LIMITS),
    "q_log_uniform": Distribution(_in_steps(_log_uniform), LIMITS, STEP),
    "q_log_uniform_values": Distribution(_in_steps(_by_logarithms(_log_uniform)), LIMITS, STEP),
    "inv_log_uniform": Distribution(_inv_log_uniform, LIMITS),
    "inv_log_uniform_values": Distribution(_by_logarithms(_inv_log_uniform, inverse=True), LIMITS),
    "normal": Distribution(_normal, (), BELL),
    "q_normal": Distribution(_in_steps(_normal), (), BELL | STEP),
    "log_normal": Distribution(_log_normal, (), BELL),
    "q_log_normal": Distribution(_in_steps(_log_normal), (), BELL | STEP),
    "beta": Distribution(_beta, (), SHAPE),
    "q_beta": Distribution(_in_steps(_beta), (), SHAPE | STEP),
}
