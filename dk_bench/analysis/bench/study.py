"""Times of the operators beside the rigid convolution that they take the place of, torchvision's deformable one and a
copy.

All calls of a shape take turns, in every setting that is compared; `dk_bench.analysis.bench.clock` says how they are
timed. Ratios are to the fastest way that PyTorch has for the same shape, dtype and mode: in either memory format, by
oneDNN or cuDNN or by its own kernels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from dk_bench.analysis.bench.calls import NATIVE, MakeCalls, Setting, Shape, make_group
from dk_bench.analysis.bench.clock import LEAST_ROUNDS, cold_times, in_rounds, make_series, peak_memory, seconds_on_host
from dk_bench.analysis.bench.memory import measure_memory
from dk_bench.analysis.bench.operator_sets import OPERATOR_SETS
from dk_bench.analysis.bench.recording import bench_record
from dk_bench.analysis.bench.timings import Timing, conclusions, geometric_means, timings_of, uneven
from dk_bench.functional.unfold_bound import default_bound

SCHEMA_VERSION = 4
OVERHEAD_CALLS = 200


def bench_shape(
    make_calls: MakeCalls, shape: Shape, settings: Sequence[Setting], device: torch.device, rounds: int
) -> tuple[list[Timing], list[dict[str, str]]]:
    """Measures every call on one shape and these settings, in turn; returns also the calls left out, and why."""
    calls, memory, left_out = [], [], []
    for call in make_group(make_calls, shape, settings, device):
        if reason := call.why_not():
            what = {"shape": str(shape), "setting": str(call.setting), "operator": call.operator, "mode": call.mode}
            left_out.append(what | {"reason": reason})
            continue
        calls.append(call)
        with call.context():
            memory.append(peak_memory(call.function, device))
    series = make_series(calls, device, rounds)
    times = in_rounds([s.seconds for s in series], [s.rounds for s in series])
    cold = cold_times(series) if device.type == "cpu" else [None] * len(series)
    return timings_of(shape, zip(series, times, cold, memory, strict=True)), left_out


def host_overhead(make_calls: MakeCalls, device: torch.device) -> dict[str, float]:
    """Returns the host's seconds an eager call of a tiny operand, by operator and mode: the best of three series."""
    overhead: dict[str, float] = {}
    for call in make_calls(Shape(8, 4, 1), Setting(), device):
        if not (call.ours or call.is_base) or call.variant == NATIVE:
            continue
        series = []
        for _ in range(3):
            series.append(seconds_on_host(call, OVERHEAD_CALLS))
            if device.type == "cuda":
                torch.cuda.synchronize()
        overhead[f"{call.operator} {call.mode}"] = min(series)
    return overhead


def bench_operators(
    shapes: Iterable[Shape],
    settings: Iterable[Setting],
    device: torch.device,
    rounds: int,
    on_shape: Callable[[str], Any] = lambda what: None,
    of: str = "depthwise",
) -> dict[str, Any]:
    """Measures every operator of a set on every shape and setting and returns the record; ``on_shape`` hears of each
    at first.

    On the CPU all settings of a shape take turns, on CUDA, for the sake of its memory, those of one dtype. The record
    has one part, of the instruction set that this process uses; `bench.recording` joins several.
    """
    chosen, shapes, settings = OPERATOR_SETS[of], list(shapes), list(settings)
    given = {
        "of": of,
        "shapes": [asdict(shape) for shape in shapes],
        **chosen.about,
        "stored": [asdict(setting) for setting in settings],
        "rounds": rounds,
        "targets": chosen.targets,
        "memory_bound": default_bound() if chosen.bounded else None,
    }
    groups = [[s for s in settings if s.dtype == dtype] for dtype in dict.fromkeys(s.dtype for s in settings)]

    def measure() -> dict[str, Any]:
        timings: list[Timing] = []
        left_out: list[dict[str, str]] = []
        for group in [settings] if device.type == "cpu" else groups:
            for shape in shapes:
                on_shape(f"{shape}, {', '.join(map(str, group))}")
                timed, without = bench_shape(chosen.make_calls, shape, group, device, rounds)
                timings += timed
                left_out += without
        on_shape("memory")
        part = {
            "timings": timings,
            "left_out": left_out,
            "memory": measure_memory(chosen, shapes, settings[0], device),
            "host_overhead": host_overhead(chosen.make_calls, device),
            "geometric_means": geometric_means(timings, "ratio"),
            "over_float32": geometric_means(timings, "over_float32"),
            "warnings": uneven([(t["seconds"], t["median"]) for t in timings if t["rounds"] > LEAST_ROUNDS]),
        }
        return part | {"conclusions": conclusions(part, chosen.targets)}

    return bench_record("operator times", SCHEMA_VERSION, given, device, measure)
