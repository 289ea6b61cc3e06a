"""Deformable kernels as modules (Gao et al., ICLR 2020, section 3)."""

from contextlib import nullcontext

import torch
from torch import Tensor

from dk_bench.functional import dense_deform_kernel, sample_kernel
from dk_bench.nn.base import ScopedKernel2d, add_bias
from dk_bench.nn.offsets import GlobalOffset, LocalOffset
from dk_bench.nn.per_image import conv2d_per_image

for _step in ("_sampled", "add_bias", "conv2d_per_image", "dense_deform_kernel"):
    torch.fx.wrap(_step)


class GlobalDeformKernel2d(ScopedKernel2d):
    """Global deformable kernel: every image samples its own kernel from the scope (section 3.3).

    Any number of groups; 1x1 kernels run as a batched matrix product, depthwise ones by an operator of ours where it is
    compiled, others as one grouped convolution.

    Args:
        scope: (Sh, Sw), the size of the stored kernel; at least kernel_size.
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``torch.nn.Conv2d``.
        clip: keep taps inside the scope.
        grid: where the taps start: "centred" in the scope, one sample apart, or "spread" over all of it; they start
            there by the offset generator's bias.

    Shape: (N, Cin, H, W) to (N, Cout, Hout, Wout); N may be 0; contiguous or channels_last, the output likewise.

    Raises ValueError or TypeError, which name the argument, for one that is out of range.
    """

    def add_offsets(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.kernel_offset = GlobalOffset(self.in_channels, self.kernel_size, device, dtype)

    def convolve(self, input: Tensor) -> Tensor:
        kernel = _sampled(self.weight, self.kernel_offset(input), self.kernel_size, self.clip)
        return conv2d_per_image(input, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _sampled(weight: Tensor, kernel_offset: Tensor, kernel_size: tuple[int, int], clip: bool) -> Tensor:
    """Samples in the weight's own precision, so that autocast rounds once."""
    kind = weight.device.type
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):  # which does not know "meta"
        return sample_kernel(weight, kernel_offset.to(weight.dtype), kernel_size=kernel_size, clip=clip)


class DeformKernel2d(ScopedKernel2d):
    """Local deformable kernel: every position samples its own kernel from the scope (section 3.3).

    ``DeformKernel2d((4, 4), 64, 64, 3, 1, 1, groups=64)`` takes the place of a depthwise 3x3 convolution, as in the
    paper; any other number of groups that divides the channels goes too, and 1x1 kernels. What is not depthwise runs
    as an unfolding over the scope and a matrix product, see :func:`dk_bench.functional.dense_deform_kernel`.

    Arguments and errors are those of :class:`GlobalDeformKernel2d`.

    Shape: (N, Cin, H, W) to (N, Cout, Hout, Wout); N may be 0; contiguous or channels_last, the output likewise.
    """

    def add_offsets(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.kernel_offset = LocalOffset(self.in_channels, **self.geometry, device=device, dtype=dtype)

    def convolve(self, input: Tensor) -> Tensor:
        output = dense_deform_kernel(input, self.kernel_offset(input), self.weight, clip=self.clip, **self.geometry)
        return add_bias(output, self.bias)


LocalDeformKernel2d = DeformKernel2d
"""Another name of :class:`DeformKernel2d`."""


class DeformKernelConv2d(ScopedKernel2d):
    """Local deformable kernel on deformed data (section 3.4): taps move in the scope and on the input.

    Kernel offsets and data offsets come from two generators, and both are learnt.

    Arguments, shapes and errors are those of :class:`DeformKernel2d`.
    """

    def add_offsets(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        generator = {"in_channels": self.in_channels, **self.geometry, "device": device, "dtype": dtype}
        self.kernel_offset, self.data_offset = LocalOffset(**generator), LocalOffset(**generator)

    def convolve(self, input: Tensor) -> Tensor:
        output = dense_deform_kernel(
            input,
            self.kernel_offset(input),
            self.weight,
            clip=self.clip,
            data_offset=self.data_offset(input),
            **self.geometry,
        )
        return add_bias(output, self.bias)
