"""Mixed precision, where mmcv's operators know only single: all of them on a CPU, most in bfloat16 on a GPU."""

from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from dk_bench.errors import UserError


def is_needed(precision: str, device: str) -> bool:
    """Tells whether mmcv's operators have to be kept in single precision. In 16-mixed on a GPU they take what mmdet
    gives them."""
    return precision != "32-true" and (device == "cpu" or precision.startswith("bf16"))


def keep_single(model: nn.Module, device: str) -> None:
    """Has modules of mmcv's operators and extractors of regions compute in single precision under autocast, and
    proposals made of it; all else is as autocast has it. A model that is so already stays as it is."""
    if getattr(model, "_keeps_single", False):
        return
    model._keeps_single = True
    for module in model.modules():
        if isinstance(module, BaseRoIExtractor) or type(module).__module__.startswith("mmcv.ops."):
            kept = _Single(device)
            module.register_forward_pre_hook(kept.begin, with_kwargs=True)
            module.register_forward_hook(kept.end, always_call=True)
    if isinstance(head := getattr(model, "rpn_head", None), nn.Module):
        head.register_forward_hook(lambda module, arguments, output: _single(output))


def check_validation(val_cfg: dict[str, Any] | None, device: str) -> None:
    """Raises UserError for validation in half precision on a CPU."""
    if device == "cpu" and (val_cfg or {}).get("fp16"):
        takes = "mmcv's suppression of overlapping boxes takes nothing else there"
        raise UserError(f"expected False on a CPU: {takes}", key="val_cfg.fp16", value=True)


class _Single:
    """Leaves autocast for the time of a module's call."""

    def __init__(self, device: str) -> None:
        self.device, self.contexts = device, []

    def begin(self, module: nn.Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.contexts.append(torch.autocast(self.device, enabled=False))
        self.contexts[-1].__enter__()
        return _single(arguments), _single(named)

    def end(self, *_: Any) -> None:
        self.contexts.pop().__exit__(None, None, None)


def _single(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, list | tuple):
        return type(value)(map(_single, value))
    return {key: _single(one) for key, one in value.items()} if isinstance(value, dict) else value
