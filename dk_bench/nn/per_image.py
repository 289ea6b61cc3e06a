"""Convolution with a kernel of its own for every image: what global DK and conditional convolutions end in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    images, out_channels = kernel.shape[:2]
    if images == 0:  # no kernel to use; the sum has the shape of one and keeps the graph connected
        return F.conv2d(input, kernel.sum(0), None, stride, padding, dilation, groups)
    channels_last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    if kernel.shape[3:] == (1, 1) and groups == 1 and padding == (0, 0):
        output = _matmul_per_image(input[:, :, :: stride[0], :: stride[1]], kernel.flatten(2), channels_last)
    else:
        # The images become groups. Groups lie apart in memory, so that channels_last costs a copy in and one out.
        joined = input.reshape(1, -1, *input.shape[2:])
        output = F.conv2d(joined, kernel.flatten(0, 1), None, stride, padding, dilation, images * groups)
        output = output.reshape(images, out_channels, *output.shape[2:])
        if channels_last:
            output = output.contiguous(memory_format=torch.channels_last)
    return output if bias is None else output + bias.to(output.dtype).unflatten(-1, (out_channels, 1, 1))


def _matmul_per_image(input: Tensor, kernel: Tensor, channels_last: bool) -> Tensor:
    """(N, Cin, H, W) and (N, Cout, Cin) to (N, Cout, H, W): a batched matrix product in the input's own layout."""
    size = input.shape[2:]
    if channels_last:
        output = input.permute(0, 2, 3, 1).flatten(1, 2) @ kernel.transpose(1, 2)
        return output.unflatten(1, size).permute(0, 3, 1, 2)
    return (kernel @ input.flatten(2)).unflatten(2, size)
