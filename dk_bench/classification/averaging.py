"""The average of the weights that section ``ema`` asks for, by Lightning's callbacks."""

import itertools
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dk_bench.config import EmaConfig
from dk_bench.errors import UserError

STEPS = (0, 1, 2, 3, 10, 1000)  # at which two averages are compared


class LosslessAveraging(WeightAveraging):
    """Averages in the weights' precision or a finer one, and gives both back after a validation as they were.

    Lightning copies the module before a precision as ``bf16-true`` converts it, and then exchanges average and weights
    by copying each into the other, which rounds where their types differ.
    """

    _kept: list[Tensor] | None = None  # the weights, while the model holds an average of another type

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._kept = None
        if stage == "fit" and trainer.precision == "64-true":
            self._average_model.module.double()

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        average, current = _tensors(self._average_model.module), _tensors(pl_module)
        if self._kept is not None:
            _copy(self._kept, current)
            self._kept = None
        elif all(one.dtype == other.dtype for one, other in zip(average, current, strict=True)):
            super()._swap_models(pl_module)
        else:
            self._kept = [tensor.clone() for tensor in current]
            _copy(average, current)


class PlainAveraging(LosslessAveraging, EMAWeightAveraging):
    """Exponential moving average of weights that keeps ``decay`` of itself at every step."""

    state_key = EMAWeightAveraging.__qualname__  # of checkpoints, as they go on in Lightning's own

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        averaged = self._kwargs["avg_fn"]
        self._kwargs["avg_fn"] = lambda average, weights, steps: averaged(average, weights.to(average.dtype), steps)


class WarmAveraging(LosslessAveraging):
    """Exponential moving average of weights that forgets quickly at first, as timm's ModelEmaV3 with ``use_warmup``.

    The first step's weights are the average's. After n of them it keeps ``decay``, or at most
    1 - (1 + n / gamma) ^ -power of itself.
    """

    def __init__(self, decay: float, gamma: float = 1.0, power: float = 2 / 3) -> None:
        def averaged(average: Tensor, weights: Tensor, steps: Tensor) -> Tensor:
            taken = (1 + steps / gamma).pow(-power).clamp(min=1 - decay)  # on the weights' device: no step waits for it
            return average + taken * (weights - average)

        super().__init__(avg_fn=averaged)


def weight_averaging(config: EmaConfig) -> WeightAveraging | None:
    """Returns the callback that averages the weights as ``config`` says; None where it says nothing."""
    if config.decay is None:
        return None
    if config.warmup:
        return WarmAveraging(config.decay, config.warmup_gamma, config.warmup_power)
    return PlainAveraging(config.decay)


def check_averaging(config: EmaConfig, trainer: pl.Trainer) -> None:
    """Raises UserError, before a fit, for callbacks that average otherwise than ``config`` says, and for one whose
    exchange of weights and average would round."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    own = weight_averaging(config)
    if own and not (len(found) == 1 and _course(found[0]) == _course(own)):
        raise UserError(f"key 'ema.decay' is {config.decay}: expected Trainer(callbacks=[{_called_in_words(config)}])")
    rounds = trainer.precision != "32-true" and not trainer.precision.endswith("mixed")
    if rounds and not all(isinstance(callback, LosslessAveraging) for callback in found):
        kinds = f"{__name__}.{PlainAveraging.__name__} or {WarmAveraging.__name__}"
        raise UserError(
            f"Trainer(precision={trainer.precision!r}) and callback {type(found[0]).__name__}, which would round the "
            f"weights at every validation: expected {kinds}"
        )


def _called_in_words(config: EmaConfig) -> str:
    """Returns the callback of `weight_averaging` as it is written in Python."""
    if config.warmup:
        return f"{__name__}.{WarmAveraging.__name__}({config.decay}, {config.warmup_gamma}, {config.warmup_power})"
    return f"{__name__}.{PlainAveraging.__name__}({config.decay})"


def _course(callback: WeightAveraging) -> list[Any]:
    """Returns what tells averages apart: when they take weights up, and what becomes of a number then."""
    taken = [callback.should_update(step_idx=step) for step in STEPS], callback.should_update(epoch_idx=0)
    model = nn.Linear(1, 1, bias=False).double()
    average = AveragedModel(model, use_buffers=callback._use_buffers, **callback._kwargs)
    after = []
    for step in STEPS:
        average.n_averaged.fill_(step)
        with torch.no_grad():
            average.module.weight.fill_(1)
            model.weight.fill_(0)
        average.update_parameters(model)
        after.append(round(average.module.weight.item(), 9))
    return [taken, callback._use_buffers, after]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.data for tensor in itertools.chain(module.parameters(), module.buffers())]


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for one, other in zip(source, target, strict=True):
        other.copy_(one)
