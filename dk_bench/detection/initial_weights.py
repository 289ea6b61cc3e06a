"""Reads the weights that a detector starts from, and those that a run has left."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from dk_bench.detection.backbone import TimmBackbone
from dk_bench.errors import UserError, located, some
from dk_bench.training.weights import read_plain, weights_in

OF_THE_START = ("init_cfg", "checkpoint", "pretrained")  # settings of mmdet's modules and ours that name weights


def load_start(model: nn.Module, path: str) -> None:
    """Puts weights of a checkpoint, ours or mmdet's of plain data, where names and shapes fit; says what did not.

    Raises UserError for a file that is missing, holds more than plain data, or fits nowhere.
    """
    with located("key 'load_from'"):
        checkpoint = read_plain(path)
    held, own = weights_in(checkpoint), model.state_dict()
    fitting = {name: value for name, value in held.items() if name in own and own[name].shape == value.shape}
    # Those of TimmBackbone as they are: it takes the rigid base's too, and names what does not fit.
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, TimmBackbone))
    fitting |= {name: value for name, value in held.items() if name.startswith(inside)}
    if not fitting:
        raise UserError(f"key 'load_from' is {path!r}: none of its {len(held)} weights fits {type(model).__name__}")
    with located(f"key 'load_from' is {path!r}"):
        model.load_state_dict(fitting, strict=False)
    if left := [name for name in own if name not in fitting]:
        fit = f"fit {len(left)} of the model's {len(own)}, which start anew"
        print(f"{path}: has no weights that {fit}: {some(left)}", file=sys.stderr)
    if unused := len(held) - len(fitting):
        print(f"{path}: {unused} of its {len(held)} weights are not used", file=sys.stderr)


def without_initial_weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's settings by which no weights are read: a checkpoint's follow, and the others need not exist."""
    settings = copy.deepcopy(dict(settings))
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key in OF_THE_START:
            if key in part and not _only_initialises(part[key]):
                part.pop(key)
    return settings


def _only_initialises(value: Any) -> bool:
    """Tells whether an ``init_cfg`` draws weights and reads none."""
    parts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(part, Mapping) and part.get("type") != "Pretrained" for part in parts)
