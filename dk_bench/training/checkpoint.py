"""Building models by name, and reading back what training left. Checkpoints hold plain data alone."""

from __future__ import annotations

import difflib
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dk_bench.config import ModelConfig, config_from_dict
from dk_bench.errors import UserError
from dk_bench.models import MODELS, deform

MODEL_PREFIX = "model."  # LitClassifier's attribute: where the timm model's weights are in a checkpoint


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The timm model, with weights from ``config.checkpoint`` where that is set.

    The checkpoint is of the same model, or of the rigid base of one of ours, which is then deformed.

    Raises UserError for a name timm does not know (with near ones), arguments the model does not take, and a
    checkpoint that cannot be read or is of another model.
    """
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f", did you mean {' or '.join(close)}?" if close else "; `dk-bench models` lists ours"
        raise UserError(f"key 'model.name' is {config.name!r}, which timm does not know{hint}")
    if not config.checkpoint:
        return _create(config.name, config, num_classes)
    checkpoint = read_checkpoint(config.checkpoint)
    ours = MODELS.get(config.name)
    from_base = ours and checkpoint["hyper_parameters"]["config"]["model"]["name"] == ours.base
    held_name = ours.base if from_base else config.name
    check_same_model(checkpoint, held_name, num_classes, config.checkpoint)
    model = _create(held_name, config, num_classes)
    load_weights(model, checkpoint, config.checkpoint)
    return deform(model, ours.spec) if from_base else model


def _create(name: str, config: ModelConfig, num_classes: int) -> nn.Module:
    kwargs = dict(config.kwargs)
    if config.drop_path_rate:  # not every model takes the argument
        kwargs["drop_path_rate"] = config.drop_path_rate
    try:
        return timm.create_model(name, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be made with {kwargs or 'its defaults'}: {error}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that `train` left, its tensors on the CPU; nothing in it can run code.

    Raises UserError for a file that is missing, is no checkpoint, holds more than plain data, or is not ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: no checkpoint can be read there: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint of plain data: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or not {"config", "classes"} <= set(checkpoint.get("hyper_parameters", ())):
        raise UserError(f"{path}: not a checkpoint of dk_bench, which holds the configuration and the classes' names")
    return checkpoint


def check_same_model(checkpoint: dict[str, Any], name: str, num_classes: int, path: str | Path) -> None:
    """Raises UserError where the checkpoint is of another model, or of as many other classes, than expected."""
    held = checkpoint["hyper_parameters"]
    held_name, held_classes = held["config"]["model"]["name"], len(held["classes"])
    if (held_name, held_classes) != (name, num_classes):
        raise UserError(
            f"{path}: checkpoint of {held_name} with {held_classes} classes, expected {name} with {num_classes} classes"
        )


def load_model(path: str | Path) -> nn.Module:
    """The trained timm model in a checkpoint, in evaluation mode on the CPU. With EMA it is the averaged one.

    Raises UserError as `read_checkpoint` does.
    """
    checkpoint = read_checkpoint(path)
    held = checkpoint["hyper_parameters"]
    config = config_from_dict(held["config"], source=str(path)).model
    config.checkpoint = None  # where training began does not matter any more, nor need that file exist
    model = build_model(config, len(held["classes"]))
    load_weights(model, checkpoint, path)
    return model.eval()


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Puts a checkpoint's weights into the timm model. Raises UserError unless every one fits."""
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(MODEL_PREFIX)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        held = checkpoint["hyper_parameters"]["config"]["model"]["name"]
        lines = " ".join(str(error).split())
        raise UserError(f"{path}: its weights ({held}) do not fit {type(model).__name__}: {lines[:300]}") from error
