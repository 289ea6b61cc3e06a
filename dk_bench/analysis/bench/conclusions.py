"""Conclusions from timings: means over shapes, sentences, and warnings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dk_bench.analysis.bench.calls import BASE, COPY, FORWARD, OURS, TORCHVISION
from dk_bench.analysis.bench.timings import Timing

UNEVEN = 0.15  # of the lower quartile: a median so far above it is one of a disturbed call
UNEVEN_SHARE = 0.2  # of the calls: where more are disturbed, a record says so

Means = dict[str, dict[str, dict[str, float]]]


def geometric_means(timings: Iterable[Timing]) -> Means:
    """Means the ratios to the fastest depthwise convolution over the shapes, by setting, mode and operator."""
    return _means((t, t.ratio) for t in timings if t.operator not in (BASE, COPY))


def means_over_float32(timings: Iterable[Timing]) -> Means:
    """Means our 16-bit times over our own in float32, over the shapes, by setting, mode and operator."""
    return _means((t, t.over_float32) for t in timings if t.over_float32)


def _means(ratios: Iterable[tuple[Timing, float]]) -> Means:
    by_key: dict[tuple[str, str, str], list[float]] = {}
    for t, ratio in ratios:
        by_key.setdefault((t.setting, t.mode, t.operator), []).append(ratio)
    means: Means = {}
    for (setting, mode, operator), values in by_key.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        means.setdefault(setting, {}).setdefault(mode, {})[operator] = mean
    return means


def sentences(record: dict[str, Any], name: str) -> list[str]:
    """Returns the ``conclusions`` or ``warnings`` of a record's parts; they say of which part they are if it has
    several.
    """
    parts = record["parts"]
    return [f"{part['instruction_set']}, {line}" if len(parts) > 1 else line for part in parts for line in part[name]]


def conclusions(part: dict[str, Any]) -> list[str]:
    """Returns the geometric means in words, with the shape that is worst for ours; what is left out."""
    lines = []
    for setting, modes in part["geometric_means"].items():
        for mode, operators in modes.items():
            for operator, mean in operators.items():
                line = f"{setting}: {operator} {mode}: {mean:.2f}x {BASE}"
                if operator in OURS:
                    worst = worst_shape(part, setting, operator, mode)
                    line += f", at most {worst['ratio']:.2f}x ({worst['shape']})"
                lines.append(line)
        if TORCHVISION in modes.get(FORWARD, {}):
            faster = modes[FORWARD][TORCHVISION] / modes[FORWARD]["depthwise DCN"]
            lines.append(f"{setting}: depthwise DCN {FORWARD}: {faster:.1f}x as fast as {TORCHVISION} with groups=C")
    for setting, modes in part["over_float32"].items():
        lines += [
            f"{setting}: {operator} {mode}: {mean:.2f}x its float32 time"
            for mode, operators in modes.items()
            for operator, mean in operators.items()
        ]
    left_out = "{setting}, {shape}: {operator} {mode} is left out: {reason}"
    return [*lines, *(left_out.format(**left) for left in part["left_out"])]


def worst_shape(part: dict[str, Any], setting: str, operator: str, mode: str) -> dict[str, Any]:
    """Returns the timing of the largest ratio over the shapes."""
    key = setting, operator, mode
    timings = [t for t in part["timings"] if (t["setting"], t["operator"], t["mode"]) == key]
    return max(timings, key=lambda t: t["ratio"])


def uneven(quartiles: Sequence[tuple[float, float]]) -> list[str]:
    """Returns a sentence if the medians of many calls are far above their lower quartiles, given as (lower, median)."""
    disturbed = sum(median > (1 + UNEVEN) * low for low, median in quartiles)
    if disturbed <= UNEVEN_SHARE * len(quartiles):
        return []
    return [f"of {disturbed} of {len(quartiles)} calls the median is more than {UNEVEN:.0%} above the lower quartile"]
