"""Images per second of training and of evaluation: every model against its rigid base, on random images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from dk_bench.models import MODELS
from dk_bench.nn.offsets import offset_parameter_names
from dk_bench.results.environment import collect_device, collect_git, collect_versions

SCHEMA_VERSION = 1
WARM_UP = 2  # steps that are not timed
OFFSET_STD = 0.5  # pixels: offsets at zero would read memory more evenly than trained ones


@dataclass(frozen=True)
class Speed:
    """Images per second, medians over the rounds; ratios to the rigid base; memory in bytes, on CUDA."""

    model: str
    base: str
    train_images_per_second: float
    eval_images_per_second: float
    train_ratio: float
    eval_ratio: float
    peak_memory: int | None


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, autocast: AbstractContextManager) -> None:
    with autocast:
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    model.zero_grad(set_to_none=True)


def _seconds(call: Callable[[], Any], device: torch.device, steps: int) -> float:
    """Seconds a call: the median over ``steps``."""
    times = []
    for number in range(WARM_UP + steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def spread_offsets(model: nn.Module, seed: int = 0) -> None:
    """Sets the biases of the offset generators at random, so that taps leave their places as in a trained model."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(offset_parameter_names(model)):
            if name.endswith("bias"):
                parameter = parameters[name]
                parameter.copy_(OFFSET_STD * torch.randn(parameter.shape, generator=generator))


def measure(name: str, device: torch.device, batch: int, size: int, bfloat16: bool, steps: int) -> tuple[float, ...]:
    """Images per second of training (forward, backward) and evaluation, and the peak memory in bytes or None."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    spread_offsets(model)
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % model.num_classes

    def autocast() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()

    def evaluate() -> None:
        with torch.inference_mode(), autocast():
            model(images)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train = batch / _seconds(lambda: _step(model.train(), images, labels, autocast()), device, steps)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    model.eval()
    return train, batch / _seconds(evaluate, device, steps), peak


def bench_models(
    names: Iterable[str], device: torch.device, *, batch: int, size: int, bfloat16: bool, steps: int,
    on_model: Callable[[str], Any] = lambda name: None,
) -> dict[str, Any]:
    """Times every model, after its rigid base, and returns the record. Raises KeyError for a name that is not ours."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    bases: dict[str, tuple[float, ...]] = {}
    speeds = []
    for name in names:
        base = MODELS[name].base
        if base not in bases:
            on_model(base)
            bases[base] = measure(base, device, batch, size, bfloat16, steps)
        on_model(name)
        train, evaluation, peak = bases[base] if name == base else measure(name, device, batch, size, bfloat16, steps)
        base_train, base_evaluation, _ = bases[base]
        speeds.append(
            Speed(name, base, train, evaluation, train / base_train, evaluation / base_evaluation, peak))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "model speeds",
        "started": started,
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": collect_device(device),
        "versions": collect_versions(),
        "git": collect_git(),
        "settings": {
            "batch": batch, "size": size, "precision": "bfloat16 autocast" if bfloat16 else "float32", "steps": steps,
            "memory_format": "channels_last", "offset_std": OFFSET_STD,
        },
        "speeds": [asdict(s) for s in speeds],
    }
