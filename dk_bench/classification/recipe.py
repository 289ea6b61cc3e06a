"""The paper's optimiser: SGD in groups of parameters, linear warm-up from zero, cosine to zero."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dk_bench.config import OptimConfig
from dk_bench.nn import offset_parameter_names
from dk_bench.training.own_trainer import check_same_steps


def offset_lr_multiplier(config: OptimConfig, model_name: str) -> float:
    """Tells what the learning rate of offset generators is multiplied with.

    ``auto`` is the paper's choice: 0.1 for the MobileNet-V2 family, 0.01 for ResNet-50-DW, and for any other model.
    """
    if config.offset_lr_multiplier == "auto":
        return 0.1 if "mobilenetv2" in model_name else 0.01
    return float(config.offset_lr_multiplier)


def parameter_groups(model: nn.Module, config: OptimConfig, model_name: str) -> list[dict]:
    """Returns the trainable parameters in up to four groups: (offset generators or not) x (weight decay or not).

    Weight decay acts on weights; biases and normalisation layers, whose parameters have one dimension, go without, as
    timm has it. The paper gives the decay (4e-5) and not what it acts on.
    """
    offsets = offset_parameter_names(model)
    multiplier = offset_lr_multiplier(config, model_name)
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_offset, decays = name in offsets, parameter.ndim > 1
        label = f"{'offset' if is_offset else 'base'}{'' if decays else '_no_decay'}"
        settings = {
            "name": label,
            "lr": config.lr * (multiplier if is_offset else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        groups.setdefault(label, {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Returns the factor on the learning rate at a step: linear from 0 to 1 at ``warmup_steps``, then a cosine to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


class WarmupCosine(LambdaLR):
    """`schedule` as a scheduler of every group, to be stepped after every optimiser step."""

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> None:
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        super().__init__(optimizer, lambda step: schedule(step, warmup_steps, total_steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on. Raises UserError for a schedule of another length, which would end elsewhere than at zero."""
        held, same = state_dict.get("total_steps"), "batches, epochs and accumulated gradients"
        check_same_steps(held, self.total_steps, "optimiser steps", same)
        super().load_state_dict(state_dict)


def build_optimizer(
    model: nn.Module, config: OptimConfig, model_name: str, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, WarmupCosine]:
    """Returns SGD over `parameter_groups`, and its schedule, to be stepped after every optimiser step."""
    optimizer = torch.optim.SGD(parameter_groups(model, config, model_name), lr=config.lr, momentum=config.momentum)
    warmup, total = round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    return optimizer, WarmupCosine(optimizer, warmup, total)
