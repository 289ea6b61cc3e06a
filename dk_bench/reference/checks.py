"""Checks of operator arguments, shared by the reference and the fake kernels (the compiled operators repeat them)."""

from __future__ import annotations

import torch
from torch import Tensor

IntPair = int | tuple[int, int]

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def as_pair(name: str, value: IntPair) -> tuple[int, int]:
    """Returns an int or a pair of ints as a pair (height, width).

    Raises:
        TypeError: the value is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(type(v) is int for v in value):
        return tuple(value)
    raise TypeError(f"{name}: expected an int or a pair of ints, got {value!r}")


def output_size(
    input_size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """(Hout, Wout) of a convolution.

    Raises:
        ValueError: an argument is out of range, or the kernel does not fit into the padded input.
    """
    for name, pair, low in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
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


def check_local(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Checks the arguments of ``deform_kernel_conv`` and returns (Hout, Wout).

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    _check_input(input)
    if weight.dim() != 4 or weight.shape[0] != input.shape[1] or weight.shape[1] != 1 or 0 in weight.shape[2:]:
        raise ValueError(
            f"weight: expected (C, 1, Sh, Sw) with C = {input.shape[1]} channels as in input and Sh, Sw >= 1, "
            f"got shape {tuple(weight.shape)}"
        )
    _check_like("weight", weight, input, (input.dtype,))
    size = output_size(tuple(input.shape[2:]), kernel_size, stride, padding, dilation)
    expected = (input.shape[0], 2 * kernel_size[0] * kernel_size[1], *size)
    for name, offset in (("data_offset", data_offset), ("kernel_offset", kernel_offset)):
        if offset is None:
            continue
        if tuple(offset.shape) != expected:
            raise ValueError(f"{name}: expected shape (N, 2 Kh Kw, Hout, Wout) = {expected}, got {tuple(offset.shape)}")
        _check_like(name, offset, input, offset_dtypes(input.dtype))
    return size


def check_per_image(
    input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Checks the arguments of ``depthwise_conv_per_image`` and returns (Hout, Wout).

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    _check_input(input)
    if weight.dim() != 4 or weight.shape[:2] != input.shape[:2] or 0 in weight.shape[2:]:
        raise ValueError(
            f"weight: expected (N, C, Kh, Kw) with N = {input.shape[0]} images and C = {input.shape[1]} channels as in "
            f"input and Kh, Kw >= 1, got shape {tuple(weight.shape)}"
        )
    _check_like("weight", weight, input, (input.dtype,))
    return output_size(tuple(input.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation)


def check_sample_kernel(weight: Tensor, kernel_offset: Tensor, kernel_size: tuple[int, int]) -> None:
    """Checks the arguments of ``sample_kernel``.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    if min(kernel_size) < 1:
        raise ValueError(f"kernel_size: expected values of at least 1, got {kernel_size}")
    if weight.dim() != 4 or 0 in weight.shape[2:]:
        raise ValueError(
            f"weight: expected (Cout, Cin / groups, Sh, Sw) with Sh, Sw >= 1, got shape {tuple(weight.shape)}"
        )
    if weight.dtype not in FLOATING:
        raise ValueError(f"weight: expected a floating dtype, got {weight.dtype}")
    taps = kernel_size[0] * kernel_size[1]
    if kernel_offset.dim() != 2 or kernel_offset.shape[1] != 2 * taps:
        raise ValueError(
            f"kernel_offset: expected shape (N, 2 Kh Kw) = (N, {2 * taps}), got {tuple(kernel_offset.shape)}"
        )
    _check_like("kernel_offset", kernel_offset, weight, offset_dtypes(weight.dtype))


def _check_input(input: Tensor) -> None:
    if input.dim() != 4:
        raise ValueError(f"input: expected (N, C, H, W), got shape {tuple(input.shape)}")
    if 0 in input.shape[2:]:
        raise ValueError(f"input: expected H, W >= 1, got shape {tuple(input.shape)}")
    if input.dtype not in FLOATING:
        raise ValueError(f"input: expected a floating dtype, got {input.dtype}")


def offset_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Offsets come in the input's dtype; beside a 16-bit input float32 ones are taken too, and are better."""
    return (dtype, torch.float32) if dtype in (torch.float16, torch.bfloat16) else (dtype,)


def _check_like(name: str, tensor: Tensor, other: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d) for d in dtypes)
        raise ValueError(f"{name}: expected dtype {wanted}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected device {other.device}, got {tensor.device}")
