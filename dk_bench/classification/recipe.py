"""What trains a classifier: groups of parameters, an optimiser over them, and its schedule.

The paper's is SGD with a linear warm-up from zero and a cosine to zero. docs/recipes.md tells what else there is.
"""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dk_bench.classification.optimizers import make_optimizer
from dk_bench.classification.schedules import TimmSchedule, WarmupCosine, check_rates, is_papers
from dk_bench.config import OptimConfig
from dk_bench.nn import offset_parameter_names


def offset_lr_multiplier(config: OptimConfig, model_name: str) -> float:
    """Tells what the learning rate of offset generators is multiplied with.

    ``auto`` is the paper's choice: 0.1 for the MobileNet-V2 family, 0.01 for ResNet-50-DW, and for any other model.
    """
    if config.offset_lr_multiplier == "auto":
        return 0.1 if "mobilenetv2" in model_name else 0.01
    return float(config.offset_lr_multiplier)


def parameter_groups(model: nn.Module, config: OptimConfig, model_name: str) -> list[dict[str, Any]]:
    """Returns the trainable parameters in groups: (offset generators or not) x (weight decay or not) x layers.

    Weight decay acts on weights; biases and normalisation layers, whose parameters have one dimension, go without, as
    timm has it. The paper gives the decay (4e-5) and not what it acts on. Under another optimiser, or with layer decay,
    what the model's ``no_weight_decay`` names goes without, too. Layers are told apart where ``optim.layer_decay`` is
    set. A group's ``lr`` is its own; under one of timm's schedules it is ``optim.lr``, which the schedule multiplies
    with the group's ``lr_scale``. The groups that learn at the full rate come first.
    """
    offsets, rules = offset_parameter_names(model), _rules(model, config)
    multiplier, by_timm = offset_lr_multiplier(config, model_name), not is_papers(config)
    layers = sorted({scale for scale, _ in rules.values()})
    learns = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: dict[str, dict] = {}
    for name, parameter in sorted(learns, key=lambda pair: -rules[pair[1]][0]):
        (scale, decays), is_offset = rules[parameter], name in offsets
        decays = decays and (config.offset_weight_decay or not is_offset)
        label = f"{'offset' if is_offset else 'base'}{'' if decays else '_no_decay'}"
        label += f"_{layers.index(scale)}" if len(layers) > 1 else ""
        scale *= multiplier if is_offset else 1.0
        rate = {"lr": config.lr, "lr_scale": scale} if by_timm else {"lr": config.lr * scale}
        settings = {"name": label, **rate, "weight_decay": config.weight_decay if decays else 0.0}
        groups.setdefault(label, {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def _rules(model: nn.Module, config: OptimConfig) -> dict[nn.Parameter, tuple[float, bool]]:
    """Tells of every trainable parameter its layer's scale of the learning rate, and whether it decays."""
    if config.optimizer == OptimConfig().optimizer and config.layer_decay is None:
        return {parameter: (1.0, parameter.ndim > 1) for parameter in model.parameters() if parameter.requires_grad}
    spared = getattr(model, "no_weight_decay", set)()
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)
    else:
        groups = param_groups_layer_decay(model, 1.0, spared, layer_decay=config.layer_decay)
    return {p: (group.get("lr_scale", 1.0), group["weight_decay"] > 0) for group in groups for p in group["params"]}


def build_optimizer(
    model: nn.Module, config: OptimConfig, model_name: str, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Returns the optimiser over `parameter_groups`, and its schedule, to be stepped after every optimiser step. Raises
    UserError as `dk_bench.classification.optimizers` and `dk_bench.classification.schedules` do."""
    optimizer = make_optimizer(parameter_groups(model, config, model_name), config)
    if not is_papers(config):
        check_rates(config, steps_per_epoch)
        return optimizer, TimmSchedule(optimizer, config, steps_per_epoch)
    warmup, total = round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    return optimizer, WarmupCosine(optimizer, warmup, total)
