"""Times of the operators beside PyTorch's depthwise convolution, torchvision's deformable one and a copy.

All calls of a shape are timed in turn, round after round, so that a machine that slows down slows all alike. Times are
medians over the rounds; ratios are ratios of medians. On CUDA a round is a graph of several calls, so that it tells the
GPU's time and not that of launching; what launching costs is told apart, as host overhead.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dk_bench.analysis.bench_calls import (
    BASE,
    COPY,
    FORWARD,
    KERNEL_SIZE,
    OFFSET_STD,
    OURS,
    SCOPE,
    SLOW,
    TORCHVISION,
    TRAIN,
    Call,
    Setting,
    Shape,
    make_calls,
)
from dk_bench.results.environment import collect_device, collect_git, collect_versions

SCHEMA_VERSION = 2
SLOW_REPEATS = 3
GRAPH_CALLS = 10  # in one graph, on CUDA
OVERHEAD_CALLS = 200
RESNET50DW = ((128, 56), (256, 28), (512, 14), (1024, 7))  # channels and height of its depthwise convolutions
BATCH = {"cpu": 4, "cuda": 64}
SETTINGS = {
    "cpu": (Setting(),),
    "cuda": tuple(Setting(d, m) for d in ("bfloat16", "float16", "float32") for m in ("channels_last", "contiguous")),
}


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over ``repeats`` rounds; memory is the most bytes held at once beyond the operands, or None."""

    shape: str
    setting: str
    operator: str
    variant: str
    mode: str
    repeats: int
    median: float
    quartiles: tuple[float, float]
    ratio: float  # to the fastest depthwise convolution of the same shape, dtype and mode
    gigabytes_per_second: float  # of the bytes a call cannot do without
    copy_share: float  # of the rate at which a copy of the input moves its bytes
    peak_memory: int | None


def make_round(call: Callable[[], Any], device: torch.device) -> tuple[Callable[[], float], bool]:
    """A function that returns the seconds of one call, and whether it runs a CUDA graph."""
    if device.type != "cuda":
        def on_cpu() -> float:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin

        return on_cpu, False
    replay, calls = _capture(call)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def on_cuda() -> float:
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls

    return on_cuda, calls > 1


def _capture(call: Callable[[], Any]) -> tuple[Callable[[], Any], int]:
    """A CUDA graph of several calls, or the call itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_CALLS):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, 1
    return graph.replay, GRAPH_CALLS


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes a call holds at once beyond what was held before; None where the system does not tell (the CPU's
    is the resident set's high-water mark, which Linux alone lets a process reset)."""
    call()  # what is made once, at the first call, is not counted
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        trim = ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim  # memory kept for reuse would hide what is used
        trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError, TypeError):
        return None


def _resident(field: str) -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
    return int(line.split()[1]) * 1024


def bench_shape(
    shape: Shape, setting: Setting, device: torch.device, repeats: int
) -> tuple[list[Timing], list[dict[str, str]]]:
    """Times every call on one shape and setting, in turn in each round. Second: the calls left out, and why."""
    every = make_calls(shape, setting, device)
    reasons = [_why_not(call) for call in every]
    calls = [call for call, reason in zip(every, reasons, strict=True) if reason is None]
    left_out = [
        {"shape": str(shape), "setting": str(setting), "operator": call.operator, "mode": call.mode, "reason": reason}
        for call, reason in zip(every, reasons, strict=True) if reason is not None
    ]
    memory = [peak_memory(call.function, device) for call in calls]  # and the calls are warm
    rounds = [make_round(call.function, device)[0] for call in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(repeats):
        for call, times, round_ in zip(calls, seconds, rounds, strict=True):
            if call.operator not in SLOW or number < SLOW_REPEATS:
                times.append(round_())
    medians = [statistics.median(times) for times in seconds]
    copy_rate = next(c.bytes / m for c, m in zip(calls, medians, strict=True) if c.operator == COPY)
    fastest = {
        mode: min(m for c, m in zip(calls, medians, strict=True) if (c.operator, c.mode) == (BASE, mode))
        for mode in (FORWARD, TRAIN)
    }

    def timing(call: Call, times: list[float], median: float, peak: int | None) -> Timing:
        low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        rate = call.bytes / median
        return Timing(
            str(shape), str(setting), call.operator, call.variant, call.mode, len(times), median, (low, high),
            median / fastest[call.mode], rate / 1e9, rate / copy_rate, peak)

    return [timing(*row) for row in zip(calls, seconds, medians, memory, strict=True)], left_out


def _why_not(call: Call) -> str | None:
    """Why others' call cannot be timed here, None if it can: torchvision's convolution has no bfloat16 everywhere, and
    the reference needs much memory. What ours raise is raised."""
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
        if call.operator not in (*OURS, BASE) or "native" in call.variant or "contiguous" in call.variant:
            continue
        series = []
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(OVERHEAD_CALLS):
                call.function()
            series.append((time.perf_counter() - begin) / OVERHEAD_CALLS)
            if device.type == "cuda":
                torch.cuda.synchronize()
        overhead[f"{call.operator} {call.mode}"] = min(series)
    return overhead


def geometric_means(timings: Iterable[Timing]) -> dict[str, dict[str, dict[str, float]]]:
    """Over the shapes, by setting, mode and operator: the ratio to the fastest depthwise convolution."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for t in timings:
        if t.operator not in (BASE, COPY):
            ratios.setdefault((t.setting, t.mode, t.operator), []).append(t.ratio)
    means: dict[str, dict[str, dict[str, float]]] = {}
    for (setting, mode, operator), values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        means.setdefault(setting, {FORWARD: {}, TRAIN: {}})[mode][operator] = mean
    return means


def conclusions(means: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The geometric means in words."""
    lines = []
    for setting, modes in means.items():
        for mode, operators in modes.items():
            lines += [f"{setting}: {operator} {mode}: {mean:.2f}x {BASE}" for operator, mean in operators.items()]
        if TORCHVISION not in modes[FORWARD]:
            continue
        faster = modes[FORWARD][TORCHVISION] / modes[FORWARD]["depthwise DCN"]
        lines.append(f"{setting}: depthwise DCN {FORWARD}: {faster:.1f}x as fast as {TORCHVISION} with groups=C")
    return lines


def _left_out_words(left_out: dict[str, str]) -> str:
    return "{setting}, {shape}: {operator} {mode} is left out: {reason}".format(**left_out)


def bench_operators(
    shapes: Iterable[Shape], settings: Iterable[Setting], device: torch.device, repeats: int,
    on_shape: Callable[[str], Any] = lambda what: None,
) -> dict[str, Any]:
    """Times every operator on every shape and setting and returns the record; ``on_shape`` hears of each at first."""
    started = datetime.now(timezone.utc)
    shapes, settings = list(shapes), list(settings)
    timings: list[Timing] = []
    left_out: list[dict[str, str]] = []
    for setting in settings:
        for shape in shapes:
            on_shape(f"{shape}, {setting}")
            timed, without = bench_shape(shape, setting, device, repeats)
            timings += timed
            left_out += without
    means = geometric_means(timings)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "operator times",
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": collect_device(device),
        "versions": collect_versions(),
        "git": collect_git(),
        "settings": {
            "shapes": [asdict(shape) for shape in shapes], "kernel_size": KERNEL_SIZE, "scope": SCOPE,
            "offset_std": OFFSET_STD, "stored": [asdict(setting) for setting in settings], "repeats": repeats,
        },
        "timings": [asdict(t) for t in timings],
        "left_out": left_out,
        "host_overhead": host_overhead(device),
        "geometric_means": means,
        "conclusions": [*conclusions(means), *map(_left_out_words, left_out)],
    }
