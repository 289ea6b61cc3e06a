"""Optimisers by timm's names, over groups of parameters that have their own learning rates and weight decays."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info

from dk_bench.config import OptimConfig
from dk_bench.config.optim_section import LOOKAHEAD
from dk_bench.errors import UserError

OWN_KEYS = {"lr": "optim.lr", "weight_decay": "optim.weight_decay", "momentum": "optim.momentum"}  # not optim.kwargs'


def check_optimizer(config: OptimConfig) -> None:
    """Raises UserError for an optimiser that is not installed here or that cannot be resumed, and for arguments that it
    does not take."""
    name = config.optimizer.removeprefix(LOOKAHEAD)
    if get_optimizer_info(name).second_order:
        reason = "whose second derivatives are drawn from a generator that no checkpoint holds; expected another"
        raise UserError(reason, key="optim.optimizer", value=config.optimizer)
    try:
        takes = set(inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters)
    except (ImportError, AssertionError) as error:  # of another package, which may need a GPU
        raise UserError(
            f"which timm does not find here: {error}", key="optim.optimizer", value=config.optimizer
        ) from error
    for key, value in config.kwargs.items():
        if key in OWN_KEYS:
            raise UserError(f"expected key '{OWN_KEYS[key]}'", key=f"optim.kwargs.{key}", value=value)
        if key not in takes:
            known = ", ".join(sorted(takes - {"params", *OWN_KEYS}))
            raise UserError(f"which {name} does not take; it takes {known}", key=f"optim.kwargs.{key}", value=value)
    make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}], config)


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Returns the optimiser of groups that say their own ``lr`` and ``weight_decay``. Raises UserError for arguments of
    a value that it refuses."""
    try:
        return create_optimizer_v2(groups, config.optimizer, config.lr, momentum=config.momentum, **config.kwargs)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        made_with = config.kwargs or "its defaults"
        reason = f"which cannot be made with {made_with} and learning rate {config.lr:g}: {error}"
        raise UserError(reason, key="optim.optimizer", value=config.optimizer) from error
