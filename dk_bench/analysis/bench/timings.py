"""Turns measured seconds into timings, their ratios, means over shapes, conclusions, and warnings."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dk_bench.analysis.bench.calls import BASE, COPY, FORWARD, OURS, TORCHVISION, Setting, Shape
from dk_bench.analysis.bench.clock import Spread, TimedCall, spread

HALVES = ("bfloat16", "float16")
UNEVEN = 0.15  # of the lower quartile: a median so far above it is one of a disturbed call
UNEVEN_SHARE = 0.2  # of the calls: where more are disturbed, a record says so

Means = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Timing:
    """Seconds a call, warm: the lower quartile over ``rounds`` of the mean over a series of ``calls``. ``cold`` or
    None: the median of calls after the caches were emptied. Memory or None: the most bytes held beyond the operands."""

    shape: str
    setting: str
    operator: str
    variant: str
    mode: str
    rounds: int
    calls: int
    seconds: float
    median: float
    quartiles: tuple[float, float]
    cold: float | None
    ratio: float  # to the fastest depthwise convolution of the same shape, dtype and mode
    over_float32: float | None  # to the same operator in float32, of the same memory format
    gigabytes_per_second: float  # of the bytes a call cannot do without
    copy_share: float  # of the rate at which a copy of the input moves its bytes
    peak_memory: int | None


def timings_of(
    shape: Shape,
    series: Sequence[TimedCall],
    times: Sequence[list[float]],
    cold: Iterable[float | None],
    memory: Iterable[int | None],
) -> list[Timing]:
    """Makes timings of one shape's calls: warm seconds of all rounds, cold ones, and the memory of each."""
    spreads = [spread(t) for t in times]
    fastest: dict[tuple[Any, ...], float] = {}  # by operator and mode, with dtype alone and with the memory format
    for s, q in zip(series, spreads, strict=True):
        for stored in (s.call.setting.dtype, s.call.setting):
            key = s.call.operator, s.call.mode, stored
            fastest[key] = min(q.low, fastest.get(key, q.low))
    copied = {s.call.setting.dtype: s.call.bytes for s in series if s.call.operator == COPY}

    def timing(s: TimedCall, q: Spread, cold: float | None, peak: int | None) -> Timing:
        call, setting = s.call, s.call.setting
        base, copy = fastest[BASE, call.mode, setting.dtype], fastest[COPY, FORWARD, setting.dtype]
        float32 = fastest.get((call.operator, call.mode, Setting("float32", setting.memory_format)))
        over = q.low / float32 if float32 and call.operator in OURS and setting.dtype in HALVES else None
        rate, copy_rate = call.bytes / q.low, copied[setting.dtype] / copy
        known = (str(shape), str(setting), call.operator, call.variant, call.mode, s.rounds, s.calls)
        seconds = (q.low, q.median, (q.low, q.high), cold)
        return Timing(*known, *seconds, q.low / base, over, rate / 1e9, rate / copy_rate, peak)

    return [timing(*row) for row in zip(series, spreads, cold, memory, strict=True)]


def geometric_means(timings: Iterable[Timing]) -> Means:
    """Averages the ratios to the fastest depthwise convolution over the shapes, by setting, mode and operator."""
    return _means((t, t.ratio) for t in timings if t.operator not in (BASE, COPY))


def means_over_float32(timings: Iterable[Timing]) -> Means:
    """Averages our 16-bit times over our own in float32, over the shapes, by setting, mode and operator."""
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
    """Returns the ``conclusions`` or ``warnings`` of a record's parts, of several with the part that each is of."""
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
