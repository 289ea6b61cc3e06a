"""Deformable convolution (Dai et al., ICCV 2017), the paper's strong baseline: taps move on the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from dk_bench._arguments import IntPair
from dk_bench.functional import deform_kernel_conv
from dk_bench.nn.base import RigidStart2d, add_bias
from dk_bench.nn.offsets import LocalOffset

__all__ = ["DeformConv2d"]


class DeformConv2d(RigidStart2d):
    """Deformable convolution, version 1: no modulation, one group of offsets.

    Depthwise (groups == in_channels == out_channels) it runs on this package's operator, otherwise on torchvision's,
    which computes 16-bit inputs in float32.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``torch.nn.Conv2d``.

    Shape: (N, Cin, H, W) to (N, Cout, Hout, Wout); N may be 0.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype
        )
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.data_offset = LocalOffset(
            in_channels, self.kernel_size, self.stride, self.padding, self.dilation, device, dtype
        )
        self.reset_parameters()

    @torch.no_grad()
    def load_rigid(self, kernel: Tensor, bias: Tensor | None) -> None:
        self.weight.copy_(kernel)
        if bias is not None:
            self.bias.copy_(bias)
        self.data_offset.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        offset = self.data_offset(input)
        if self.is_depthwise:
            output = deform_kernel_conv(
                input, offset, None, self.weight,
                kernel_size=self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation,
            )
            return add_bias(output, self.bias)
        return self._dense(input, offset)

    def _dense(self, input: Tensor, offset: Tensor) -> Tensor:
        given = input.dtype
        compute = torch.float64 if given == torch.float64 else torch.float32
        input, offset, weight = (t.to(compute) for t in (input, offset, self.weight))
        bias = None if self.bias is None else self.bias.to(compute)
        output = deform_conv2d(input, offset, weight, bias, self.stride, self.padding, self.dilation)
        return output.to(given)
