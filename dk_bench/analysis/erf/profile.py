"""Fields averaged over pictures: the gradient, signed and absolute, by its distance from the unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dk_bench.analysis.erf.study import Observation
from dk_bench.tables.statistics import Summary, summarize

PARTS = ("absolute", "signed")


@dataclass(frozen=True)
class Profile:
    """Of a kind of model, over ``count`` pictures of its one checkpoint, or over its ``count`` checkpoints: by distance
    in whole pixels the mean over the ring's pixels, each field divided by the sum of its magnitudes."""

    model: str
    over: str
    count: int
    parts: dict[str, list[Summary]]


def profiles(observations: Sequence[Observation]) -> list[Profile]:
    """Returns one a kind of model, of the pictures as they are, dead units left out; to half the image's side."""
    members: dict[str, dict[str, list[Observation]]] = {}
    for seen in observations:
        if seen.kind == "original" and not seen.dead:
            members.setdefault(seen.kind_of_model, {}).setdefault(seen.model, []).append(seen)
    found = []
    for kind, checkpoints in members.items():
        of_each = [np.stack([_rings(seen) for seen in own]) for own in checkpoints.values()]  # (pictures, 2, distances)
        several = len(of_each) > 1
        samples = np.stack([each.mean(0) for each in of_each]) if several else of_each[0]
        parts = {name: list(map(summarize, samples[:, index].T.tolist())) for index, name in enumerate(PARTS)}
        found.append(Profile(kind, "checkpoints" if several else "pictures", len(samples), parts))
    return found


def _rings(seen: Observation) -> np.ndarray:
    """Returns the means of the absolute and the signed field over rings one pixel wide about the unit, (2,
    distances)."""
    side = seen.absolute.shape[0]
    y, x = np.ogrid[:side, :side]
    distance = np.rint(np.hypot(y - seen.centre[0], x - seen.centre[1])).astype(int).ravel()
    count = np.bincount(distance, minlength=side)
    total = seen.absolute.sum()
    sums = [np.bincount(distance, each.ravel(), minlength=side) / total for each in (seen.absolute, seen.signed)]
    return (np.stack(sums) / np.maximum(count, 1))[:, : side // 2 + 1]


def profile_rows(found: Sequence[Profile]) -> Iterator[dict[str, object]]:
    """Gives the lines of profile.csv, one a distance."""
    for each in found:
        for distance, means in enumerate(zip(*(each.parts[name] for name in PARTS), strict=True)):
            row = {"model": each.model, "over": each.over, "count": each.count, "distance": distance}
            for name, mean in zip(PARTS, means, strict=True):
                row |= {name: mean.mean, f"{name}_half_interval": mean.half_width}
            yield row
