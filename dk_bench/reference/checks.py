"""Checks of arguments that the operators share, for the specification and the fake kernels.

The compiled operators repeat them, with the same words.
"""

import torch
from torch import Tensor

IntPair = int | tuple[int, int]
Pair = tuple[int, int]

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class NotFinite(ValueError, RuntimeError):
    """An operand has a NaN where none may be: a ValueError as all of the specification's, and a RuntimeError as all of
    the operators'. These, compiled ones, raise it outside of inference mode, in which torch calls C++ past Python."""


def as_pair(name: str, value: IntPair) -> Pair:
    """Returns an int or a pair of ints as a pair (height, width). Raises TypeError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(type(v) is int for v in value):
        return tuple(value)
    raise TypeError(f"{name}: expected an int or a pair of ints, got {value!r}")


def as_pairs(**values: IntPair) -> list[Pair]:
    """Returns ints or pairs of ints, given by their names, as `as_pair` does."""
    return [as_pair(name, value) for name, value in values.items()]


def output_size(input_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Returns (Hout, Wout) of a convolution. Raises ValueError where an argument is out of range, or the kernel does
    not fit into the padded input."""
    lows = {"kernel_size": (kernel_size, 1), "stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    for name, (pair, low) in lows.items():
        if pair[0] < low or pair[1] < low:
            raise ValueError(f"{name}: expected values of at least {low}, got {pair}")
    reach = [dilation[a] * (kernel_size[a] - 1) + 1 for a in (0, 1)]
    padded = [input_size[a] + 2 * padding[a] for a in (0, 1)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise ValueError(
            f"input: the padded size {tuple(padded)} is smaller than the {tuple(reach)} pixels that kernel_size "
            f"{kernel_size} with dilation {dilation} reaches over"
        )
    return tuple((padded[a] - reach[a]) // stride[a] + 1 for a in (0, 1))


def check_input(input: Tensor) -> None:
    """Raises ValueError where the input is no batch of images, or not of a floating dtype."""
    if input.dim() != 4:
        raise ValueError(f"input: expected (N, C, H, W), got shape {tuple(input.shape)}")
    if 0 in input.shape[2:]:
        raise ValueError(f"input: expected H, W >= 1, got shape {tuple(input.shape)}")
    if input.dtype not in FLOATING:
        raise ValueError(f"input: expected a floating dtype, got {input.dtype}")


def check_like(name: str, tensor: Tensor, other: Tensor, *, or_float32: bool = False) -> None:
    """Raises ValueError that names the tensor where its dtype or its device is not the other's.

    ``or_float32``: beside 16 bits float32 will do too, and is better: for offsets.
    """
    wide = [torch.float32] if or_float32 and other.dtype.itemsize == 2 else []
    if tensor.dtype not in (other.dtype, *wide):
        wanted = " or ".join(map(str, (other.dtype, *wide)))
        raise ValueError(f"{name}: expected dtype {wanted}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected device {other.device}, got {tensor.device}")


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Returns the dtype of coordinates and sums: float16 and bfloat16 are stored, never computed with."""
    return torch.promote_types(tensor.dtype, torch.float32)
