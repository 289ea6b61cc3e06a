"""Optimisers by timm's names, over groups of parameters that have their own learning rates and weight decays."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info

from dk_bench.config import Config, OptimConfig
from dk_bench.config.optim_section import LOOKAHEAD
from dk_bench.errors import UserError
from dk_bench.training.sharded import CLIPPED, not_split

OWN_KEYS = {"lr": "optim.lr", "weight_decay": "optim.weight_decay", "momentum": "optim.momentum"}  # not optim.kwargs'
CAUTION = "caution"  # in optim.kwargs: scales a step by how many of the parameter's numbers agree with the gradient
# Those that move every number of a parameter by its own gradients alone. Others go by norms, means or shapes of whole
# parameters; of other packages' nothing is known.
OF_SINGLE_NUMBERS = frozenset(
    "adabelief adadelta adagrad adam adamax adamc adamw adamwlegacy adan adanw adopt adoptc adoptw laprop lapropc lion "
    "lionc madgrad madgradw momentum nadam nadamc nadamlegacy nadamw nesterov nesterovw radabelief radam radamlegacy "
    "radamw rmsprop rmsproptf rmsproptfc rmsproptfw sgd sgdc sgdw".split()
)


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
    _check_steps(config)


def _check_steps(config: OptimConfig) -> None:
    """Raises UserError for arguments with which the optimiser cannot be made, or not step: many look at them only then.
    kron's first step takes minutes, and those of bitsandbytes and apex step on GPUs alone."""
    weights = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer([{"params": [weights]}], config)
    name = config.optimizer.removeprefix(LOOKAHEAD)
    if "kron" in name or name.startswith(("bnb", "fused")):
        return
    weights.grad = torch.full((2, 2), 0.5)
    try:
        for _ in range(2):  # one may only look on in its first
            optimizer.step()
    except (ValueError, TypeError, RuntimeError, AssertionError, LookupError, ArithmeticError, AttributeError) as error:
        reason = f"which cannot step with {config.kwargs or 'its defaults'}: {error}"
        raise UserError(reason, key="optim.optimizer", value=config.optimizer) from error


def check_split(config: Config) -> None:
    """Raises UserError where steps go by whole parameters, of which a device has a part under ``fsdp``."""
    optimizer, caution = config.optim.optimizer, config.optim.kwargs.get(CAUTION)
    whole = "which goes by whole parameters: a device has a part of each"
    if optimizer.removeprefix(LOOKAHEAD) not in OF_SINGLE_NUMBERS:
        raise not_split(f"with key 'optim.optimizer' {optimizer!r}, {whole}")
    if caution:
        raise not_split(f"with key 'optim.kwargs.{CAUTION}' {caution!r}, {whole}")
    if config.trainer.gradient_clip_algorithm == "agc":
        raise not_split(CLIPPED)


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Returns the optimiser of groups that say their own ``lr`` and ``weight_decay``. Raises UserError for arguments of
    a value that it refuses."""
    try:
        return create_optimizer_v2(groups, config.optimizer, config.lr, momentum=config.momentum, **config.kwargs)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        made_with = config.kwargs or "its defaults"
        reason = f"which cannot be made with {made_with} and learning rate {config.lr:g}: {error}"
        raise UserError(reason, key="optim.optimizer", value=config.optimizer) from error
