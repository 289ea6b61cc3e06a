"""Runs a model on meta tensors: shapes and operators of its forward pass, without its arithmetic or memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from math import log2

import torch
from torch import Tensor, nn

from dk_bench.nn import RigidStart2d


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
def run_meta(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Runs a forward pass of an image of input_size (C, H, W), in evaluation mode, and computes its shapes alone. The
    model itself keeps its state: parameters and buffers are exchanged for meta tensors during the call."""
    held = chain(model.named_parameters(), model.named_buffers())
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in held}
    dtype = next(model.parameters()).dtype
    with evaluating(model):
        torch.func.functional_call(model, state, (torch.empty(1, *input_size, device="meta", dtype=dtype),))


def default_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Returns the (C, H, W) that a timm model was made for; (3, 224, 224) where it does not say."""
    channels, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    return getattr(model, "in_chans", None) or channels, height, width


def output_strides(model: nn.Module) -> dict[str, int]:
    """Returns the output stride of each convolution, rigid or ours, that runs in the forward pass, by its name.

    The output stride is the input's height over the height that the convolution puts out, as the nearest power of two,
    so that heights that do not divide (225 to 113 to 57) change nothing.
    """
    size = default_input_size(model)
    strides: dict[str, int] = {}

    def record(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        strides[name] = 2 ** round(log2(size[1] / output.shape[-2]))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | RigidStart2d):
                hooks.enter_context(module.register_forward_hook(partial(record, name)))
        run_meta(model, size)
    return strides
