"""Runs a model on meta tensors: shapes and operators of its forward pass, without its arithmetic or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from math import log2

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Sets the model to evaluation and gives every module its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def run_meta(model: nn.Module, input_size: tuple[int, int, int], batch: int = 1) -> None:
    """Returns one forward pass of images of input_size (C, H, W), in evaluation mode, of which only the shapes are
    computed.

    The model itself keeps its state: parameters and buffers are exchanged for meta tensors during the call.
    """
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    dtype = next(model.parameters()).dtype
    with evaluating(model):
        images = torch.empty(batch, *input_size, device="meta", dtype=dtype)
        torch.func.functional_call(model, state, (images,))


def default_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) that a timm model was made for; (3, 224, 224) where it does not say."""
    channels, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    return getattr(model, "in_chans", None) or channels, height, width


def output_strides(model: nn.Module) -> dict[str, int]:
    """Name of each ``torch.nn.Conv2d`` that runs in the forward pass to its output stride.

    The output stride is the input's height over the height that the convolution puts out, as the nearest power of two,
    so that heights that do not divide (225 to 113 to 57) change nothing.
    """
    size = default_input_size(model)
    strides: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(_recorder(strides, name, size[1])))
    try:
        run_meta(model, size)
    finally:
        for hook in hooks:
            hook.remove()
    return strides


def _recorder(strides: dict[str, int], name: str, height: int) -> Callable[[nn.Module, tuple, Tensor], None]:
    def record(module: nn.Module, args: tuple, output: Tensor) -> None:
        strides[name] = 2 ** round(log2(height / output.shape[-2]))

    return record
