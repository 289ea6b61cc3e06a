"""Images per second of training and of evaluation: models beside their rigid base, on random images.

All models of a base are built and warmed up, and then take turns, step by step, in rounds of changing order, so that a
machine that slows down slows all alike. What counts is the lower quartile over the rounds, since disturbances only ever
add time; ratios are ratios of lower quartiles. A training step is what Lightning runs: gradients set to None, forward,
cross-entropy, backward, a step of SGD with momentum and weight decay. Its learning rate is zero, which takes as long as
any other and leaves offsets where they are.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from dk_bench.analysis.bench.clock import Clock, Spread, in_rounds, spread
from dk_bench.analysis.bench.recording import bench_record
from dk_bench.analysis.bench.timings import uneven
from dk_bench.config import OptimConfig
from dk_bench.models import MODELS
from dk_bench.nn.offsets import offset_parameter_names

SCHEMA_VERSION = 2
ROUNDS = 15
WARM_UP = 2  # steps of each kind before the first round
SERIES_SECONDS = 0.25  # of steps of one model; one step where the base's take longer
OFFSET_STD = 0.5  # pixels: offsets at zero would read memory more evenly than trained ones
Heard = Callable[[str], Any]  # is told what comes next
CONCLUSION = (
    "{model} at {size}: {train_images_per_second:.0f} images/s in training ({train_ratio:.2f}x {base}), "
    "{eval_images_per_second:.0f} in evaluation ({eval_ratio:.2f}x)"
)
VARIANTS = ("", "_dk", "_gdk", "_dcn", "_dcn_dk", "_scc", "_scc_dk")
DENSE_VARIANTS, POINTWISE_VARIANTS = VARIANTS[:5], ("", "_dk", "_dk_pw", "_dk_lpw")


@dataclass(frozen=True)
class ModelSet:
    """Models, by name, and the batches they are timed on: so many images of ``size`` x ``size`` pixels."""

    models: tuple[str, ...]
    batch: int
    size: int


#: What is timed on the CPU unless models are asked for: the operators and their rivals, in a tiny and a mobile model,
#: and on dense and on 1x1 convolutions of small ones.
CPU_SETS = (
    ModelSet(tuple(f"test_resnetdw{variant}" for variant in VARIANTS), 64, 64),
    ModelSet(tuple(f"mobilenetv2_100{variant}" for variant in VARIANTS), 16, 160),
    ModelSet(tuple(f"small_resnet{variant}" for variant in DENSE_VARIANTS), 64, 32),
    ModelSet(tuple(f"small_resnetdw{variant}" for variant in POINTWISE_VARIANTS), 64, 32),
)


@dataclass
class TimedModel:
    """A model and its two kinds of steps; before each kind the model's mode is switched."""

    name: str
    model: nn.Module
    train: Callable[[], Any]
    evaluate: Callable[[], Any]
    peak_memory: int | None = None


@torch.no_grad()
def set_as_trained(model: nn.Module) -> None:
    """Sets what starts at zero: biases of offset generators at random, so that taps leave their places as in a trained
    model; scales of normalisation layers to one, as behind them every gradient would be zero."""
    generator = torch.Generator().manual_seed(0)
    for name in sorted(offset_parameter_names(model)):
        if name.endswith("bias"):
            bias = model.get_parameter(name)
            bias.copy_(OFFSET_STD * torch.randn(bias.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            module.weight.fill_(1)


def make_model(name: str, device: torch.device, batch: int, size: int, bfloat16: bool) -> TimedModel:
    """Returns a model with random weights and its steps on a batch, warmed up. Peak memory is of all of these."""
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    torch.manual_seed(0)
    model = timm.create_model(name)
    set_as_trained(model)
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % model.num_classes
    config = OptimConfig()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, config.momentum, weight_decay=config.weight_decay)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)

    def train() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        with torch.inference_mode(), autocast():
            model(images)

    timed = TimedModel(name, model, train, evaluate)
    _warm_up(timed, device, before)
    return timed


def _warm_up(timed: TimedModel, device: torch.device, before: int) -> None:
    """Takes a few steps, and on CUDA notes the most memory that they hold beyond what was held ``before``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for mode, step in ((True, timed.train), (False, timed.evaluate)):
        timed.model.train(mode)
        for _ in range(WARM_UP):
            step()
    if device.type == "cuda":
        timed.peak_memory = torch.cuda.max_memory_allocated() - before


def time_models(
    models: Sequence[TimedModel], device: torch.device, rounds: int, clock: Clock = time.perf_counter
) -> list[tuple[Spread, Spread]]:
    """Returns the seconds of a training step and of an evaluation of each; the first one is the base, whose steps
    decide how many of all models' make a series."""

    def measure(timed: TimedModel, training: bool, steps: int) -> Callable[[], float]:
        step = timed.train if training else timed.evaluate

        def seconds() -> float:
            timed.model.train(training)
            if steps > 1:
                step()  # a step that is a series by itself is longer than what caches remember
            _synchronise(device)
            begin = clock()
            for _ in range(steps):
                step()
            _synchronise(device)
            return (clock() - begin) / steps

        return seconds

    measures = []
    for training in (True, False):
        steps = max(1, round(SERIES_SECONDS / max(measure(models[0], training, 1)(), 1e-9)))
        measures += [measure(timed, training, steps) for timed in models]
    spreads = list(map(spread, in_rounds(measures, [rounds] * len(measures))))
    return list(zip(spreads[: len(models)], spreads[len(models) :], strict=True))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _bench_base(
    base: str, names: Sequence[str], of: ModelSet, device: torch.device, bfloat16: bool, rounds: int, on_model: Heard
) -> list[dict[str, Any]]:
    """Returns the speeds of the base and of the models that have it, which are timed in turn: seconds a step and images
    per second, of lower quartiles; ratios to the base; memory in bytes, on CUDA."""
    models = []
    for name in dict.fromkeys((base, *names)):
        on_model(name)
        models.append(make_model(name, device, of.batch, of.size, bfloat16))
    on_model(f"{base} and {len(models) - 1} more in turn")
    times = time_models(models, device, rounds)
    speeds = []
    for timed, spreads in zip(models, times, strict=True):
        speed = {"model": timed.name, "base": base, "batch": of.batch, "size": of.size, "rounds": rounds}
        for mode, taken, of_base in zip(("train", "eval"), spreads, times[0], strict=True):
            speed |= {
                f"{mode}_seconds": taken.low,
                f"{mode}_median": taken.median,
                f"{mode}_images_per_second": of.batch / taken.low,
                f"{mode}_ratio": of_base.low / taken.low,
            }
        speeds.append(speed | {"peak_memory": timed.peak_memory})
    return speeds


def bench_models(
    sets: Iterable[ModelSet],
    device: torch.device,
    *,
    bfloat16: bool,
    rounds: int = ROUNDS,
    on_model: Heard = lambda name: None,
) -> dict[str, Any]:
    """Measures every model beside its rigid base and returns the record, with one part, as `bench_operators` does.
    Raises KeyError for a name that is not ours."""
    settings = {
        "precision": "bfloat16 autocast" if bfloat16 else "float32",
        "rounds": rounds,
        "memory_format": "channels_last",
        "offset_std": OFFSET_STD,
        "training_step": "forward, cross-entropy, backward, SGD with momentum and weight decay",
    }

    def measure() -> dict[str, Any]:
        speeds: list[dict[str, Any]] = []
        for of in sets:
            for base in dict.fromkeys(MODELS[name].base for name in of.models):
                names = [name for name in of.models if MODELS[name].base == base]
                speeds += _bench_base(base, names, of, device, bfloat16, rounds, on_model)
        quartiles = [(s[f"{mode}_seconds"], s[f"{mode}_median"]) for mode in ("train", "eval") for s in speeds]
        said = [CONCLUSION.format(**speed) for speed in speeds]
        return {"speeds": speeds, "conclusions": said, "warnings": uneven(quartiles)}

    return bench_record("model speeds", SCHEMA_VERSION, settings, device, measure)
