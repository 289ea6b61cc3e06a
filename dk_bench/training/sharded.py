"""Training with parameters, gradients and the optimiser's state split among the devices: Lightning's FSDP.

Our groups of parameters go by names and shapes, which parameters do not have once they are split, and a checkpoint is
to be the same file under every strategy.
"""

import copy
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.optim import Optimizer

from dk_bench.errors import UserError
from dk_bench.training.weights import read_plain

FSDP_WRAPPED_MODULE = "_fsdp_wrapped_module"  # as torch calls what it wraps, in names of parameters too
CLIPPED = "where gradients are clipped: a device sees a part of each"


class Sharded(FSDPStrategy):
    """Writes and reads checkpoints as one device does: whole tensors, the optimiser's numbered by its groups. Lightning
    numbers them in the model's order, and takes those of other strategies to be numbered so."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns all weights on the first process, on others none."""
        with self._whole(rank0_only=True):
            return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the whole state on the first process, on others none."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning wraps it
        with self._whole(rank0_only=True):
            state = FSDP.optim_state_dict(self.model, optimizer).get("state", {})
        numbers = {name: number for number, name in enumerate(self._names(optimizer))}
        named = {numbers[name]: value for name, value in state.items()} if self.is_global_zero else {}
        return {"state": dict(sorted(named.items())), "param_groups": optimizer.state_dict()["param_groups"]}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint of any strategy, on every process, and puts in what of it is split."""
        checkpoint = read_plain(checkpoint_path)
        read = dict(checkpoint)
        self.lightning_module.on_load_checkpoint(read)
        with self._whole(rank0_only=False):
            self.model.load_state_dict(read["state_dict"])
            for optimizer, held in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
                names = self._names(optimizer)
                state = {names[n]: _in_order(value) for n, value in held["state"].items()}
                groups = [group | {"params": [names[n] for n in group["params"]]} for group in held["param_groups"]]
                whole = {"state": state, "param_groups": groups}
                optimizer.load_state_dict(FSDP.optim_state_dict_to_load(self.model, optimizer, whole))
        return checkpoint

    def _whole(self, *, rank0_only: bool) -> Any:
        settings = {"offload_to_cpu": self.root_device.type != "cpu", "rank0_only": rank0_only}
        configs = FullStateDictConfig(**settings), FullOptimStateDictConfig(**settings)
        return FSDP.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *configs)

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Returns the names of an optimiser's parameters, in the order of its groups."""
        found = self.model.named_parameters()
        names = {id(parameter): name.replace(f"{FSDP_WRAPPED_MODULE}.", "") for name, parameter in found}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _in_order(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a parameter's state with tensors that lie in memory row by row, as `bare_copy` has parameters lie."""
    return {name: value.contiguous() if torch.is_tensor(value) else value for name, value in state.items()}


def check_sharded(trainer: pl.Trainer) -> None:
    """Raises UserError for what of a trainer does not go together with split parameters."""
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
        raise not_split("where weights are averaged: an average is of whole ones")
    if trainer.gradient_clip_val is not None:
        raise not_split(CLIPPED)


def not_split(where: str) -> UserError:
    """Returns the error for what needs whole parameters: ``where`` says when, and why."""
    return UserError(f"expected ddp {where}", key="trainer.strategy", value="fsdp")


def bare_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a model, that is not split yet, with names and shapes alone. The model's own parameters lie row
    by row afterwards: torch splits them as they lie in memory, and the optimiser's state in one order only."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return copy.deepcopy(model).to("meta")


def put_in(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, bare: nn.Module) -> None:
    """Puts parameters, by their names, in place of those of a `bare_copy` that an optimiser was built for."""
    names = {id(parameter): name for name, parameter in bare.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[id(parameter)]] for parameter in group["params"]]
