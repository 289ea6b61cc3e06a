"""Guesses of seconds, from what a model does for an image and what a device can do: each operator takes as long as its
multiply-adds at the device's peak, or as its values at the memory's bandwidth, whichever is longer, over an efficiency.

The efficiency is fitted to records: of rigid models for ordinary operators, of single operators for deformable ones. Of
these the depthwise ones reach a share of the bandwidth that hardly depends on the shape, whatever their multiply-adds.
``efficiency.json`` holds all, by kind of device and precision; ``dk-bench plan --refit`` makes it again.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dk_bench.models.workload import DENSE, DEPTHWISE, PLAIN, Workload
from dk_bench.plan.devices import HALF, Device
from dk_bench.plan.measured import OPERATORS, Speed, bench_records, device_of, read_speeds

FILE = Path(__file__).with_name("efficiency.json")
TRAIN, EVALUATE = "train", "evaluate"
PASSES = {TRAIN: 3, EVALUATE: 1}  # the backward pass computes two gradients of each operator
MODES = {"forward+backward": TRAIN, "forward": EVALUATE}  # as records of operators call them
BYTES = {HALF: 2}  # of a value; otherwise 4
ON_GPU, ON_CPU = "GPU", "CPU"
# Of the host, to start one operator, with its share of what Lightning does: assumptions. A GPU computes meanwhile.
START_SECONDS = {ON_GPU: 6e-6, ON_CPU: 60e-6}

Efficiency = dict[str, dict[str, float]]  # operator's kind -> training or evaluation -> share of a peak
Share = tuple[tuple[str, ...], float]  # of a peak, by the keys under which the file has it


def family(device: Device) -> str:
    """Tells which records' efficiency a device is taken to have."""
    return ON_CPU if device.name == ON_CPU else ON_GPU


def load_efficiency() -> dict[str, dict[str, Efficiency]]:
    """Returns what `fit_efficiency` gave: by family of devices and precision."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def efficiency_of(device: Device, precision: str) -> Efficiency:
    """Returns the efficiency for a device; that of the other precision where none was measured."""
    known = load_efficiency()[family(device)]
    return known.get(precision) or next(iter(known.values()))


def seconds_an_image(
    workload: Workload, device: Device, precision: str, mode: str, efficiency: Mapping[str, Mapping[str, float]]
) -> float:
    """Returns the seconds of a step over many images, for one of them. ``mode`` is `TRAIN` or `EVALUATE`."""
    peak, bandwidth, size = device.teraflops[precision] * 1e12, device.bandwidth * 1e9, BYTES.get(precision, 4)
    seconds = 0.0
    for operation in workload.operations:
        share = efficiency.get(operation.kind, efficiency[PLAIN])[mode]
        by_memory, by_products = operation.moved * size / bandwidth, 2 * operation.macs / peak
        seconds += (by_memory if operation.kind in DEPTHWISE else max(by_memory, by_products)) / share
    return PASSES[mode] * seconds


def with_starts(seconds: float, workload: Workload, device: Device, mode: str, batch: float) -> float:
    """Returns the seconds of an image, of which a step of ``batch`` images computes so many, with starting the step's
    operators: on a CPU that comes on top, on a GPU it is what a step takes at least."""
    kind = family(device)
    starts = PASSES[mode] * len(workload.operations) * START_SECONDS[kind] / batch
    return seconds + starts if kind == ON_CPU else max(seconds, starts)


def fit_efficiency(places: Iterable[Path], workloads: Mapping[tuple[str, int], Workload]) -> dict[str, Any]:
    """Returns the efficiencies that records of models and operators below the places show. ``workloads`` are those of
    the records' rigid models, by name and size."""
    places = list(places)
    return _merged(_of_operators(places), _of_models(read_speeds(places), workloads))


def _of_models(speeds: list[Speed], workloads: Mapping[tuple[str, int], Workload]) -> list[Share]:
    """Returns shares of peaks that rigid models reach, by family, precision, kind and mode."""
    perfect = {PLAIN: {TRAIN: 1.0, EVALUATE: 1.0}}
    found = []
    for speed in speeds:
        if speed.model != speed.base:
            continue
        for mode, rate in ((TRAIN, speed.train), (EVALUATE, speed.evaluate)):
            workload = workloads[speed.model, speed.size]
            share = rate * seconds_an_image(workload, speed.device, speed.precision, mode, perfect)
            found.append(((family(speed.device), speed.precision, PLAIN, mode), share))
    return found


def _of_operators(places: list[Path]) -> list[Share]:
    """Returns shares of the bandwidth, or of the peak where they are nearer to that, that deformable operators reach,
    likewise, in channels_last; depthwise ones of the bandwidth."""
    found = []
    for _, record in bench_records(places, OPERATORS):
        device = device_of(record)
        for timing in record["parts"][0]["timings"] if device else ():  # of the widest instruction set
            dtype, memory_format = timing["setting"].split()
            precision = HALF if dtype in ("bfloat16", "float16") else dtype
            if timing["operator"] in (*DEPTHWISE, *DENSE) and memory_format == "channels_last":
                share = timing["gigabytes_per_second"] / device.bandwidth
                if timing["operator"] in DENSE:
                    share = max(share, timing["gigaflops_per_second"] / 1e3 / device.teraflops[precision])
                key = family(device), precision, timing["operator"], MODES[timing["mode"]]
                found.append((key, share))
    return found


def _merged(*found: list[Share]) -> dict[str, Any]:
    """Returns geometric means over what was found for each key, nested by its parts."""
    shares: dict[tuple[str, ...], list[float]] = {}
    for key, share in (pair for part in found for pair in part):
        shares.setdefault(key, []).append(math.log(share))
    nested: dict[str, Any] = {}
    for key, logs in sorted(shares.items()):
        inner = nested
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
        inner[key[-1]] = round(math.exp(statistics.fmean(logs)), 4)
    return {
        kind: {precision: of for precision, of in by_precision.items() if PLAIN in of}
        for kind, by_precision in nested.items()
    }
