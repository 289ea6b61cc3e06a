"""Differences between probes' scores, by seed, with their tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, ProbeScore
from dk_bench.analysis.family import Difference, corrected
from dk_bench.analysis.learned import EXPERTS
from dk_bench.tables.statistics import Summary, summarize


class Key(NamedTuple):
    """Names a score without its seed: cell, kind of dynamics, features, target."""

    cell: str
    kind: str
    features: str
    target: str


@dataclass(frozen=True)
class Compared:
    """A difference of one kind of dynamics' score to another's, with its test; ``table`` is its family."""

    table: str
    model: str
    cell: str
    kind: str
    target: str
    difference: Difference


def families(scores: list[ProbeScore]) -> dict[str, list[Compared]]:
    """Returns all differences of all layers' scores, by table; each table is one family of tests.

    The paper's claim as numbers, offsets know scale and experts' scores know the class, where there are experts; and
    what learning adds to a random generator.
    """
    whole = [score for score in scores if score.layer == ALL]
    found = {}
    if experts := next((score for score in whole if score.kind == EXPERTS), None):
        heading = f"Offsets minus expert scores of {experts.model}"
        over = {"cell": experts.cell, "kind": EXPERTS}
        found[heading] = _compared(heading, whole, lambda key: key.kind != EXPERTS, over)
    heading = "Learned minus random generator"
    found[heading] = _compared(heading, whole, lambda key: True, {"features": RANDOM})
    return {heading: members for heading, members in found.items() if members}


def _compared(
    heading: str, scores: list[ProbeScore], of: Callable[[Key], bool], over: dict[str, str]
) -> list[Compared]:
    """Returns the differences of some learned values to those with other fields of their key, by seed."""
    values: dict[Key, dict[int, float]] = {}
    for score in scores:
        key = Key(score.cell, score.kind, score.features, score.target)
        values.setdefault(key, {})[score.seed] = score.value
    names = {score.cell: score.model for score in scores}
    kept = [key for key in values if key.features == LEARNED and of(key)]
    pairs = [(key, difference(values[key], values.get(key._replace(**over), {}))) for key in kept]
    pairs = [(key, found) for key, found in pairs if found]
    tests = corrected([Difference(found) for _, found in pairs])
    return [
        Compared(heading, names[key.cell], key.cell, key.kind, key.target, test)
        for (key, _), test in zip(pairs, tests, strict=True)
    ]


def difference(one: dict[int, float], other: dict[int, float]) -> Summary | None:
    """Returns the mean of the differences by seed, of the seeds that both have; None if there are none."""
    common = sorted(one.keys() & other.keys())
    return summarize([one[seed] - other[seed] for seed in common]) if common else None
