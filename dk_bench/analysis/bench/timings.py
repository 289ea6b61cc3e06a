"""Turns measured seconds into timings, their ratios, means over shapes, conclusions, and warnings."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dk_bench.analysis.bench.calls import BASE, COPY, FORWARD, HALVES, TORCHVISION, Setting, Shape
from dk_bench.analysis.bench.clock import Spread, TimedCall, spread

UNEVEN = 0.15  # of the lower quartile: a median so far above it is one of a disturbed call
UNEVEN_SHARE = 0.2  # of the calls: where more are disturbed, a record says so

#: A call, its seconds in all rounds, cold ones, and the most bytes it holds beyond its operands; or None for these two.
Measured = tuple[TimedCall, list[float], float | None, int | None]
Timing = dict[str, Any]  # as `timings_of` makes it and records keep it
Means = dict[str, dict[str, dict[str, float]]]


def timings_of(shape: Shape, measured: Iterable[Measured]) -> list[Timing]:
    """Makes timings of one shape's calls. Ratios are of lower quartiles."""
    rows = [(s, spread(times), cold, peak) for s, times, cold, peak in measured]
    fastest: dict[tuple[Any, ...], float] = {}  # by operator and mode, with dtype alone and with the memory format
    for s, q, *_ in rows:
        for stored in (s.call.setting.dtype, s.call.setting):
            key = s.call.operator, s.call.mode, stored
            fastest[key] = min(q.low, fastest.get(key, q.low))
    copied = {s.call.setting.dtype: s.call.bytes for s, *_ in rows if s.call.operator == COPY}

    def timing(s: TimedCall, q: Spread, cold: float | None, peak: int | None) -> Timing:
        call, setting = s.call, s.call.setting
        base, copy = fastest[call.base, call.mode, setting.dtype], fastest[COPY, FORWARD, setting.dtype]
        float32 = fastest.get((call.operator, call.mode, Setting("float32", setting.memory_format)))
        over = q.low / float32 if float32 and call.ours and setting.dtype in HALVES else None
        rate, copy_rate = call.bytes / q.low, copied[setting.dtype] / copy
        return {
            "shape": str(shape),
            "setting": str(setting),
            "operator": call.operator,
            "variant": call.variant,
            "base": call.base,
            "mode": call.mode,
            "rounds": s.rounds,
            "calls": s.calls,  # in a series
            "seconds": q.low,  # a call: quartiles over rounds of the mean over a series
            "median": q.median,
            "quartiles": (q.low, q.high),
            "cold": cold,  # median of calls after the caches were emptied
            "ratio": q.low / base,  # to the fastest call of the base of the same shape, dtype and mode
            "over_float32": over,  # to the same operator in float32, of the same memory format
            "gigabytes_per_second": rate / 1e9,  # of the bytes a call cannot do without
            "copy_share": rate / copy_rate,  # of the rate at which a copy of the input moves its bytes
            "gigaflops_per_second": 2 * call.macs / q.low / 1e9 if call.macs else None,  # of matrix products
            "peak_memory": peak,
        }

    return [timing(*row) for row in rows]


def base_of(timing: Timing) -> str:
    """Returns the operator that a timing is divided by; records that do not say so are of depthwise ones."""
    return timing.get("base", BASE)


def geometric_means(timings: Iterable[Timing], ratio: str) -> Means:
    """Averages "ratio", or "over_float32", which only ours have, over the shapes, by setting, mode and operator."""
    by_key: dict[tuple[str, str, str], list[float]] = {}
    for t in timings:
        if t[ratio] and t["operator"] not in (base_of(t), COPY):
            by_key.setdefault((t["setting"], t["mode"], t["operator"]), []).append(t[ratio])
    means: Means = {}
    for (setting, mode, operator), values in by_key.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        means.setdefault(setting, {}).setdefault(mode, {})[operator] = mean
    return means


def sentences(record: dict[str, Any], name: str) -> list[str]:
    """Returns the ``conclusions`` or ``warnings`` of a record's parts, of several with the part that each is of."""
    parts = record["parts"]
    return [f"{part['instruction_set']}, {line}" if len(parts) > 1 else line for part in parts for line in part[name]]


def conclusions(part: dict[str, Any], targets: dict[str, dict[str, float]]) -> list[str]:
    """Returns the geometric means in words, with the shape that is worst, and whether that is at the operator's target
    at most; what is left out."""
    bases = {t["operator"]: base_of(t) for t in part["timings"]}
    lines = []
    for setting, modes in part["geometric_means"].items():
        for mode, operators in modes.items():
            for operator, mean in operators.items():
                worst = worst_shape(part, setting, operator, mode)
                line = f"{setting}: {operator} {mode}: {mean:.2f}x {bases[operator]}, at most {worst['ratio']:.2f}x"
                met = verdict(worst["ratio"], targets.get(operator, {}).get(mode))
                lines.append(f"{line} ({worst['shape']}){met}")
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


def verdict(value: float, most: float | None, digits: int = 1) -> str:
    """Says whether a value is ``most`` or less, in words that follow it; nothing where there is no ``most``."""
    if most is None:
        return ""
    return f", {'met' if value <= most else 'not met'} (at most {most:.{digits}f})"


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
