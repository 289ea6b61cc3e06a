"""Fields averaged over pictures: the gradient, signed and absolute, by its distance from the unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from dk_bench.analysis.drawing import COLORS, GREY
from dk_bench.analysis.erf.study import Observation
from dk_bench.analysis.erf.tables import mean_interval

__all__ = ["PROFILE", "Profile", "draw_profiles", "profile_rows", "profiles"]

PROFILE = ("model", "over", "count", "distance", "absolute", "absolute_half_interval", "signed", "signed_half_interval")
PARTS = ("absolute", "signed")


@dataclass(frozen=True)
class Profile:
    """Of a kind of model, over ``count`` pictures of its one checkpoint, or over its ``count`` checkpoints: by distance
    in whole pixels the mean over the ring's pixels, each field divided by the sum of its magnitudes, and half of the
    mean's 95 % interval (None of one)."""

    model: str
    over: str
    count: int
    parts: dict[str, list[tuple[float, float | None]]]


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
        parts = {name: [mean_interval(column) for column in samples[:, index].T] for index, name in enumerate(PARTS)}
        found.append(Profile(kind, "checkpoints" if several else "pictures", len(samples), parts))
    return found


def _rings(seen: Observation) -> np.ndarray:
    """(2, distances): the means of the absolute and the signed field over rings one pixel wide about the unit."""
    side = seen.absolute.shape[0]
    y, x = np.ogrid[:side, :side]
    distance = np.rint(np.hypot(y - seen.centre[0], x - seen.centre[1])).astype(int).ravel()
    count = np.bincount(distance, minlength=side)
    total = seen.absolute.sum()
    sums = [np.bincount(distance, each.ravel(), minlength=side) / total for each in (seen.absolute, seen.signed)]
    return (np.stack(sums) / np.maximum(count, 1))[:, : side // 2 + 1]


def profile_rows(found: Sequence[Profile]) -> list[list[object]]:
    """Rows of `PROFILE`."""
    return [
        [each.model, each.over, each.count, distance, *absolute, *signed]
        for each in found
        for distance, (absolute, signed) in enumerate(zip(*(each.parts[name] for name in PARTS), strict=True))
    ]


def draw_profiles(found: Sequence[Profile]) -> Figure:
    """Absolute to the left, signed to the right, a line a kind of model with its interval as a band."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), PARTS, strict=True):
        for number, each in enumerate(found):
            mean = 100 * np.array([value for value, _ in each.parts[name]])
            half = 100 * np.array([half or 0.0 for _, half in each.parts[name]])
            color, place = COLORS[number % len(COLORS)], range(len(mean))
            axes.plot(place, mean, color=color, label=f"{each.model} ({each.count} {each.over})", linewidth=1.2)
            axes.fill_between(place, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        axes.set(xlabel="distance from the unit (pixels)", title=f"{name} gradient")
        axes.set_xlim(0, _reach(found))
    figure.axes[0].set_ylabel("share of the field a pixel (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _reach(found: Sequence[Profile]) -> int:
    """Within which every absolute profile falls to a hundredth of its largest value."""
    reach = 1
    for each in found:
        means = np.array([value for value, _ in each.parts["absolute"]])
        reach = max(reach, int(np.flatnonzero(means > means.max() / 100)[-1]) + 1)
    return reach
