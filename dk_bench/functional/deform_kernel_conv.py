"""The depthwise deformable convolution as a function: taps that move on the data, in the kernel's scope, or both."""

import torch
from torch import Tensor

from dk_bench import reference
from dk_bench.functional import onnx
from dk_bench.functional.convolution_rules import autocast_convolution, check_offset_values, map_convolution
from dk_bench.functional.operators import Operator, empty_in_format_of
from dk_bench.functional.registration import register
from dk_bench.reference.checks import IntPair, as_pairs
from dk_bench.reference.deform_kernel_conv import check_deform_kernel_conv

_op = torch.ops.dk_bench.deform_kernel_conv


def local_deform_kernel(
    input: Tensor,
    kernel_offset: Tensor,
    weight: Tensor,
    *,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    clip: bool = True,
) -> Tensor:
    """Samples a kernel at every position: the local deformable kernel, depthwise (Gao et al., ICLR 2020, equation 7).

    Arguments, result and errors are those of :func:`deform_kernel_conv`, without data offsets.
    """
    geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation, "clip": clip}
    return deform_kernel_conv(input, None, kernel_offset, weight, **geometry)


def deform_kernel_conv(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    *,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    clip: bool = True,
) -> Tensor:
    """Convolves depthwise with taps that move on the data (DCN), in the kernel's scope (DK), or both.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16, any strides; contiguous or channels_last give an
            output of the same memory format.
        data_offset, kernel_offset: (N, 2 * Kh * Kw, Hout, Wout), channels (dy, dx) a tap, taps row-major, in pixels of
            the input and of the scope; input's dtype, or float32 beside a 16-bit input; None for zero.
        weight: (C, 1, Sh, Sw), the kernel over the scope; input's dtype.
        kernel_size, stride, padding, dilation, clip: as in :func:`dk_bench.reference.deform_kernel_conv`, which is
            also what this computes.

    Returns:
        (N, C, Hout, Wout) in input's dtype; sums are float32 (float64 for float64).

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit, or (on the CPU) an offset is NaN; the
            message names the argument. On CUDA a NaN offset gives NaN outputs, as raising would cost a synchronisation;
            what infinite operands give there is in docs/operators.md, What differs on CUDA.
        TypeError: kernel_size, stride, padding or dilation is not an int or a pair of ints.
    """
    geometry = as_pairs(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    compute = onnx.deform_kernel_conv if onnx.is_exporting() else _op
    return compute(input, data_offset, kernel_offset, weight, *geometry, clip)


def _fake(input, data_offset, kernel_offset, weight, *settings):
    *geometry, _clip = settings
    size = check_deform_kernel_conv(input, data_offset, kernel_offset, weight, [tuple(pair) for pair in geometry])
    return empty_in_format_of(input, (*input.shape[:2], *size))


# With data offsets, dL/dinput on CUDA is a sum by atomics unless told otherwise; the CPU's sums are always ordered.
# Tangents of offsets go by the reference, slowly.
_operator = Operator("deform_kernel_conv", reference.deform_kernel_conv, linear=(0, 3))
register(_operator, _fake, *map_convolution(_operator), autocast_convolution, check_values=check_offset_values)
