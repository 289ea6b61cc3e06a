"""Inputs of layers: a batch of images, or one image, as ``torch.nn.Conv2d`` takes them."""

import torch
from torch import Tensor


def as_batch(input: Tensor, channels: int, weight: Tensor, module: str) -> Tensor:
    """Returns a module's input as a batch: (N, C, H, W) as it is, (C, H, W) with an N of 1. Raises RuntimeError for
    a C that is not ``channels``, and a dtype that is not the weight's, unless autocast makes them equal."""
    if input.dim() not in (3, 4) or input.shape[-3] != channels or 0 in input.shape[-2:]:
        raise RuntimeError(
            f"input: {module} expected (N, {channels}, H, W) or (C, H, W) = ({channels}, H, W) with H, W >= 1, got "
            f"shape {tuple(input.shape)}"
        )
    if input.dtype != weight.dtype and (autocast_dtype(input) is None or autocast_dtype(weight) is None):
        raise RuntimeError(f"input: {module} expected dtype {weight.dtype} as its weight has, got {input.dtype}")
    return input if input.dim() == 4 else input.unsqueeze(0)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Tells what autocast turns the tensor into; None where it is off or leaves it alone, as it does float64."""
    kind = tensor.device.type
    if kind == "meta" or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def check_features(pooled: Tensor, channels: int, size: tuple[int, int], module: str) -> Tensor:
    """Returns the boxes' features as they are. Raises RuntimeError unless they are (R, channels, *size)."""
    if pooled.dim() != 4 or tuple(pooled.shape[1:]) != (channels, *size):
        raise RuntimeError(
            f"pooled: {module} expected (R, {channels}, {size[0]}, {size[1]}), got shape {tuple(pooled.shape)}"
        )
    return pooled


def as_given(output: Tensor, dim: int) -> Tensor:
    """Returns the output of a batch, without its N where the input, of ``dim`` axes, had none."""
    return output if dim == 4 else output.squeeze(0)
