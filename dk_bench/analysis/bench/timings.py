"""Timings of operators, and their ratios: to PyTorch's depthwise convolution, to float32, to a copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dk_bench.analysis.bench.calls import BASE, COPY, FORWARD, OURS, Setting, Shape
from dk_bench.analysis.bench.clock import Spread, TimedCall, spread

HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Timing:
    """Seconds a call, warm: the lower quartile over ``rounds`` of the mean over a series of ``calls``. ``cold`` is the
    median of calls after the caches were emptied, or None; memory is the most bytes held at once beyond the operands,
    or None."""

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
