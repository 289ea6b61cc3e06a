"""Times of the operators beside PyTorch's depthwise convolution, torchvision's deformable one and a copy.

All calls of a shape take turns, in every setting that is compared; `dk_bench.analysis.bench.clock` says how they are
timed. Ratios are to the fastest way that PyTorch has for the same shape, dtype and mode: in either memory format, by
oneDNN or cuDNN or by its own kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from dk_bench.analysis.bench.calls import (
    BASE,
    COPY,
    FORWARD,
    KERNEL_SIZE,
    NATIVE,
    OFFSET_STD,
    OURS,
    SCOPE,
    SLOW,
    Call,
    Setting,
    Shape,
    make_calls,
    make_group,
)
from dk_bench.analysis.bench.clock import (
    LEAST_ROUNDS,
    Series,
    Spread,
    cold_times,
    in_rounds,
    make_series,
    peak_memory,
    spread,
)
from dk_bench.analysis.bench.conclusions import conclusions, geometric_means, means_over_float32, uneven
from dk_bench.runs.environment import collect_device, collect_git, collect_versions
from dk_bench.runs.machine import Watch, collect_machine, disturbances, own_instruction_set

SCHEMA_VERSION = 3
OVERHEAD_CALLS = 200
RESNET50DW = ((128, 56), (256, 28), (512, 14), (1024, 7))  # channels and height of its depthwise convolutions
BATCH = {"cpu": 4, "cuda": 64}
HALVES = ("bfloat16", "float16")
SETTINGS = {
    "cpu": (Setting(), Setting(memory_format="contiguous"), *map(Setting, HALVES)),
    "cuda": tuple(Setting(d, m) for d in (*HALVES, "float32") for m in ("channels_last", "contiguous")),
}


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


def bench_shape(
    shape: Shape, settings: Sequence[Setting], device: torch.device, rounds: int
) -> tuple[list[Timing], list[dict[str, str]]]:
    """Times every call on one shape and these settings, in turn in each round. Second: the calls left out, and why."""
    every = make_group(shape, settings, device)
    reasons = [_why_not(call) for call in every]
    calls = [call for call, reason in zip(every, reasons, strict=True) if reason is None]
    left_out = [
        {"shape": str(shape), "setting": str(c.setting), "operator": c.operator, "mode": c.mode, "reason": reason}
        for c, reason in zip(every, reasons, strict=True)
        if reason is not None
    ]
    memory = []
    for call in calls:
        with call.context():
            memory.append(peak_memory(call.function, device))
    series = make_series(calls, device, rounds)
    times = in_rounds([s.seconds for s in series], [s.rounds for s in series])
    cold = cold_times(series) if device.type == "cpu" else [None] * len(series)
    return _timings(shape, series, times, cold, memory), left_out


def _timings(
    shape: Shape,
    series: Sequence[Series],
    times: Sequence[list[float]],
    cold: Iterable[float | None],
    memory: Iterable[int | None],
) -> list[Timing]:
    spreads = [spread(t) for t in times]
    fastest: dict[tuple[Any, ...], float] = {}  # by operator and mode, with dtype alone and with the memory format
    for s, q in zip(series, spreads, strict=True):
        for stored in (s.call.setting.dtype, s.call.setting):
            key = s.call.operator, s.call.mode, stored
            fastest[key] = min(q.low, fastest.get(key, q.low))
    copied = {s.call.setting.dtype: s.call.bytes for s in series if s.call.operator == COPY}

    def timing(s: Series, q: Spread, cold: float | None, peak: int | None) -> Timing:
        call, setting = s.call, s.call.setting
        base, copy = fastest[BASE, call.mode, setting.dtype], fastest[COPY, FORWARD, setting.dtype]
        float32 = fastest.get((call.operator, call.mode, Setting("float32", setting.memory_format)))
        over = q.low / float32 if float32 and call.operator in OURS and setting.dtype in HALVES else None
        rate, copy_rate = call.bytes / q.low, copied[setting.dtype] / copy
        return Timing(
            str(shape),
            str(setting),
            call.operator,
            call.variant,
            call.mode,
            s.rounds,
            s.calls,
            q.low,
            q.median,
            (q.low, q.high),
            cold,
            q.low / base,
            over,
            rate / 1e9,
            rate / copy_rate,
            peak,
        )

    return [timing(*row) for row in zip(series, spreads, cold, memory, strict=True)]


def _why_not(call: Call) -> str | None:
    """Tells why others' call cannot be timed here, None if it can: torchvision's convolution has no bfloat16
    everywhere, and the reference needs much memory. What ours raise is raised."""
    if call.operator not in SLOW:
        return None
    try:
        call.function()
    except (NotImplementedError, torch.OutOfMemoryError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def host_overhead(device: torch.device) -> dict[str, float]:
    """Seconds the host spends on one eager call of a tiny operand, by operator and mode: the best of three series."""
    overhead: dict[str, float] = {}
    for call in make_calls(Shape(8, 4, 1), Setting(), device):
        if call.operator not in (*OURS, BASE) or call.variant == NATIVE:
            continue
        series = []
        for _ in range(3):
            with call.context():
                begin = time.perf_counter()
                for _ in range(OVERHEAD_CALLS):
                    call.function()
                series.append((time.perf_counter() - begin) / OVERHEAD_CALLS)
            if device.type == "cuda":
                torch.cuda.synchronize()
        overhead[f"{call.operator} {call.mode}"] = min(series)
    return overhead


def _warnings(timings: Iterable[Timing], watched: dict[str, float | None], device: torch.device) -> list[str]:
    """Tells what says that the times are not those of a quiet machine, in sentences."""
    others = disturbances(watched, torch.get_num_threads()) if device.type == "cpu" else []
    return [*others, *uneven([(t.seconds, t.median) for t in timings if t.rounds > LEAST_ROUNDS])]


def bench_operators(
    shapes: Iterable[Shape],
    settings: Iterable[Setting],
    device: torch.device,
    rounds: int,
    on_shape: Callable[[str], Any] = lambda what: None,
) -> dict[str, Any]:
    """Times every operator on every shape and setting and returns the record; ``on_shape`` hears of each at first.

    On the CPU all settings of a shape take turns, on CUDA, for the sake of its memory, those of one dtype. The record
    has one part, of the instruction set that this process uses; `bench.instruction_sets` joins several.
    """
    started, shapes, settings = datetime.now(timezone.utc), list(shapes), list(settings)
    machine, watch = collect_machine(), Watch()
    timings: list[Timing] = []
    left_out: list[dict[str, str]] = []
    groups = [[s for s in settings if s.dtype == dtype] for dtype in dict.fromkeys(s.dtype for s in settings)]
    for group in [settings] if device.type == "cpu" else groups:
        for shape in shapes:
            on_shape(f"{shape}, {', '.join(map(str, group))}")
            timed, without = bench_shape(shape, group, device, rounds)
            timings += timed
            left_out += without
    watched = watch.finish()
    part = {
        "instruction_set": own_instruction_set(),
        "machine": machine,
        "watched": watched,
        "timings": [asdict(t) for t in timings],
        "left_out": left_out,
        "host_overhead": host_overhead(device),
        "geometric_means": geometric_means(timings),
        "over_float32": means_over_float32(timings),
        "warnings": _warnings(timings, watched, device),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "operator times",
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": collect_device(device),
        "versions": collect_versions(),
        "git": collect_git(),
        "settings": {
            "shapes": [asdict(shape) for shape in shapes],
            "kernel_size": KERNEL_SIZE,
            "scope": SCOPE,
            "offset_std": OFFSET_STD,
            "stored": [asdict(setting) for setting in settings],
            "rounds": rounds,
        },
        "parts": [part | {"conclusions": conclusions(part)}],
    }
