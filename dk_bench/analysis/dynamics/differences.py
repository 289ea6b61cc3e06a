"""Differences between probes' scores, by seed, with their tests."""

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
    """A difference of one kind of dynamics' score to another's, with its test."""

    model: str
    cell: str
    kind: str
    target: str
    difference: Difference


def families(scores: list[ProbeScore]) -> dict[str, list[Compared]]:
    """Returns all differences of all layers' scores, by table, each of which is one family of tests: where there are
    experts the paper's claim, that offsets know scale and experts' scores the class; and what learning adds to a random
    generator."""
    whole = [score for score in scores if score.layer == ALL]
    found = {}
    if experts := next((score for score in whole if score.kind == EXPERTS), None):
        over = {"cell": experts.cell, "kind": EXPERTS}
        found[f"Offsets minus expert scores of {experts.model}"] = _compared(whole, over)
    found["Learned minus random generator"] = _compared(whole, {"features": RANDOM})
    return {heading: members for heading, members in found.items() if members}


def _compared(scores: list[ProbeScore], over: dict[str, str]) -> list[Compared]:
    """Returns the differences by seed of learned values to those whose keys are the same but for ``over``. Values of a
    kind that ``over`` names are left out, as it is what others are compared with."""
    values: dict[Key, dict[int, float]] = {}
    for score in scores:
        key = Key(score.cell, score.kind, score.features, score.target)
        values.setdefault(key, {})[score.seed] = score.value
    names = {score.cell: score.model for score in scores}
    found = {}
    for key, by_seed in values.items():
        if key.features == LEARNED and key.kind != over.get("kind"):
            if above := difference(by_seed, values.get(key._replace(**over), {})):
                found[key] = Difference(above)
    tests = zip(found, corrected([*found.values()]), strict=True)
    return [Compared(names[key.cell], key.cell, key.kind, key.target, test) for key, test in tests]


def difference(one: dict[int, float], other: dict[int, float]) -> Summary | None:
    """Returns the mean of the differences by seed, of the seeds that both have; None if there are none."""
    common = sorted(one.keys() & other.keys())
    return summarize([one[seed] - other[seed] for seed in common]) if common else None
