"""Convolution with a kernel of its own for every image: what global DK and conditional convolutions end in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dk_bench.functional.taps import tap_views
from dk_bench.nn.inputs import autocast_dtype


def conv2d_per_image(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """``torch.nn.functional.conv2d`` where image n has kernel[n].

    Args:
        input: (N, Cin, H, W), contiguous or channels_last; the output has the same memory format.
        kernel: (N, Cout, Cin / groups, Kh, Kw).
        bias: (Cout,), (N, Cout) or None.

    Returns:
        (N, Cout, Hout, Wout).
    """
    out_channels = kernel.shape[1]
    channels_last = not input.is_contiguous() and input.stride(1) == 1  # vmap knows no memory formats, but strides
    if kernel.shape[3:] == (1, 1) and groups == 1 and padding == (0, 0):
        output = _matmul_per_image(input[:, :, :: stride[0], :: stride[1]], kernel.flatten(2), channels_last)
    else:
        kept = torch.compiler.is_compiling() or torch.jit.is_tracing()
        output = (_sum_over_taps if kept else _grouped)(input, kernel, stride, padding, dilation, groups)
        if channels_last:
            output = output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return output if bias is None else output + bias.to(output.dtype).unflatten(-1, (out_channels, 1, 1))


def _matmul_per_image(input: Tensor, kernel: Tensor, channels_last: bool) -> Tensor:
    """(N, Cin, H, W) and (N, Cout, Cin) to (N, Cout, H, W): a batched matrix product in the input's own layout."""
    size = input.shape[2:]
    if channels_last:
        output = input.permute(0, 2, 3, 1).flatten(1, 2) @ kernel.transpose(1, 2)
        return output.unflatten(1, size).permute(0, 3, 1, 2)
    return (kernel @ input.flatten(2)).unflatten(2, size)


def _grouped(
    input: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """One convolution whose groups are the images. Groups lie apart in memory, so that channels_last costs a copy."""
    images, out_channels = kernel.shape[:2]
    if images == 0:  # no kernel to use; the sum has the shape of one and keeps the graph connected
        return F.conv2d(input, kernel.sum(0), None, stride, padding, dilation, groups)
    joined = input.reshape(1, -1, *input.shape[2:])
    output = F.conv2d(joined, kernel.flatten(0, 1), None, stride, padding, dilation, images * groups)
    return output.reshape(images, out_channels, *output.shape[2:])


def _sum_over_taps(
    input: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """The same for a graph that is kept: a convolution's number of groups is a constant there, the batch's size not.

    Depthwise kernels multiply, others are matrix products, tap by tap; of 16-bit operands the former are exact, and
    sums are float32.
    """
    if (dtype := autocast_dtype(input)) is not None:  # products element by element have no autocast
        input, kernel = input.to(dtype), kernel.to(dtype)
    total = torch.promote_types(input.dtype, torch.float32)
    depthwise = kernel.shape[2] == 1 and kernel.shape[1] == groups
    output = None
    views = tap_views(input, tuple(kernel.shape[3:]), stride, padding, dilation)
    for view, tap in zip(views, kernel.flatten(3).unbind(3), strict=True):  # (N, Cout, Cin / groups) each
        if depthwise:
            product = view.to(total) * tap.to(total).unsqueeze(3)
        else:
            read = view.unflatten(1, (groups, -1)).flatten(3)  # (N, groups, Cin / groups, positions)
            product = (tap.unflatten(1, (groups, -1)) @ read).flatten(1, 2).unflatten(2, view.shape[2:])
        output = product.to(total) if output is None else output + product.to(total)
    return output.to(input.dtype)
