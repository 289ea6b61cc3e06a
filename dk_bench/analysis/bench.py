"""Times of the operators beside PyTorch's depthwise convolution and torchvision's deformable one.

All operators of a shape are timed in turn, round after round, so that a machine that slows down slows all alike. Times
are medians over the rounds; the ratios to the depthwise convolution are ratios of medians.
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
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from dk_bench.functional import deform_kernel_conv, local_deform_kernel
from dk_bench.results.environment import collect_device, collect_git, collect_versions

SCHEMA_VERSION = 1
KERNEL_SIZE, SCOPE, OFFSET_STD = 3, 4, 0.5
BASE, TORCHVISION = "depthwise convolution", "torchvision deform_conv2d"
OPERATORS = (BASE, "local DK", "depthwise DCN", "DK+DCN", TORCHVISION)
FORWARD, TRAIN = "forward", "forward+backward"
SLOW_REPEATS = 3  # of torchvision's operator, which takes a hundred times as long


@dataclass(frozen=True)
class Shape:
    """A depthwise 3 x 3 convolution's input: N images of C channels, H x H pixels."""

    channels: int
    size: int
    batch: int = 4

    def __str__(self) -> str:
        return f"{self.channels} x {self.size} x {self.size}"


RESNET50DW = (Shape(128, 56), Shape(256, 28), Shape(512, 14), Shape(1024, 7))


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over ``repeats`` calls; memory is the most bytes held at once beyond the operands, or None."""

    shape: str
    operator: str
    mode: str
    repeats: int
    median: float
    quartiles: tuple[float, float]
    ratio: float  # to the depthwise convolution of the same shape and mode
    peak_memory: int | None


def make_calls(shape: Shape, device: torch.device) -> dict[tuple[str, str], Callable[[], Any]]:
    """The calls to time, by operator and mode; operands are float32, channels_last, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, std: float = 1.0) -> Tensor:
        values = std * torch.randn(*sizes, generator=generator)
        return values.to(device, memory_format=torch.channels_last).requires_grad_()

    n, c, size, taps = shape.batch, shape.channels, shape.size, KERNEL_SIZE**2
    x = normal(n, c, size, size)
    data, kernel = (normal(n, 2 * taps, size, size, std=OFFSET_STD) for _ in range(2))
    rigid, scope = normal(c, 1, KERNEL_SIZE, KERNEL_SIZE), normal(c, 1, SCOPE, SCOPE)
    grad = normal(n, c, size, size).detach()
    ours = {"kernel_size": KERNEL_SIZE, "padding": 1}
    operators: dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]] = {
        BASE: (lambda: F.conv2d(x, rigid, padding=1, groups=c), (x, rigid)),
        "local DK": (lambda: local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope)),
        "depthwise DCN": (lambda: deform_kernel_conv(x, data, None, rigid, **ours), (x, data, rigid)),
        "DK+DCN": (lambda: deform_kernel_conv(x, data, kernel, scope, **ours), (x, data, kernel, scope)),
        TORCHVISION: (lambda: deform_conv2d(x, data, rigid, padding=1), ()),
    }

    def forward(function: Callable[[], Tensor]) -> Callable[[], Any]:
        return torch.no_grad()(function)

    def train(function: Callable[[], Tensor], operands: tuple[Tensor, ...]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(), operands, grad)

    calls = {(name, FORWARD): forward(function) for name, (function, _) in operators.items()}
    return calls | {(name, TRAIN): train(*operator) for name, operator in operators.items() if operator[1]}


def time_call(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


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


def bench_shape(shape: Shape, device: torch.device, repeats: int) -> list[Timing]:
    """Times every operator on one shape, in turn in each round."""
    calls = make_calls(shape, device)
    memory = {key: peak_memory(call, device) for key, call in calls.items()}  # and the calls are warm
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for round_ in range(repeats):
        for key, call in calls.items():
            if key[0] != TORCHVISION or round_ < SLOW_REPEATS:
                seconds[key].append(time_call(call, device))
    timings = []
    for (operator, mode), values in seconds.items():
        median = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        ratio = median / statistics.median(seconds[BASE, mode])
        timings.append(Timing(
            str(shape), operator, mode, len(values), median, (low, high), ratio, memory[operator, mode]))
    return timings


def geometric_means(timings: Iterable[Timing]) -> dict[str, dict[str, float]]:
    """Over the shapes, by mode and operator: the ratio to the depthwise convolution."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for t in timings:
        if t.operator != BASE:
            ratios.setdefault((t.mode, t.operator), []).append(t.ratio)
    means: dict[str, dict[str, float]] = {FORWARD: {}, TRAIN: {}}
    for (mode, operator), values in ratios.items():
        means[mode][operator] = math.exp(statistics.fmean(map(math.log, values)))
    return means


def conclusions(means: dict[str, dict[str, float]]) -> list[str]:
    """The geometric means in words."""
    lines = [
        f"{operator} {mode}: {mean:.2f}x {BASE}" for mode, operators in means.items()
        for operator, mean in operators.items()
    ]
    faster = means[FORWARD][TORCHVISION] / means[FORWARD]["depthwise DCN"]
    return [*lines, f"depthwise DCN {FORWARD}: {faster:.1f}x as fast as {TORCHVISION} with groups=C"]


def bench_operators(
    shapes: Iterable[Shape], device: torch.device, repeats: int, on_shape: Callable[[Shape], Any] = lambda shape: None
) -> dict[str, Any]:
    """Times every operator on every shape and returns the record; ``on_shape`` hears of each shape at its start."""
    started = datetime.now(timezone.utc)
    shapes, timings = list(shapes), []
    for shape in shapes:
        on_shape(shape)
        timings += bench_shape(shape, device, repeats)
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
            "offset_std": OFFSET_STD, "dtype": "float32", "memory_format": "channels_last", "repeats": repeats,
        },
        "timings": [asdict(t) for t in timings],
        "geometric_means": means,
        "conclusions": conclusions(means),
    }
