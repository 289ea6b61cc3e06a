"""Local deformable kernels on any convolution as a function: its signature, fake tensors and derivatives."""

import torch
from torch import Tensor

from dk_bench import reference
from dk_bench.functional import onnx, unfolded_product
from dk_bench.functional.composed import register_composed
from dk_bench.functional.convolution_rules import autocast_convolution, check_offset_values, map_convolution
from dk_bench.functional.deform_kernel_conv import deform_kernel_conv
from dk_bench.functional.operators import Operator, empty_in_format_of
from dk_bench.functional.registration import register
from dk_bench.functional.unfold_bound import bound_in_bytes, bytes_of_a_position
from dk_bench.reference.checks import IntPair, as_pairs
from dk_bench.reference.dense_deform_kernel import check_dense_deform_kernel

_op = torch.ops.dk_bench.dense_deform_kernel


def dense_deform_kernel(
    input: Tensor,
    kernel_offset: Tensor | None,
    weight: Tensor,
    *,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    clip: bool = True,
    data_offset: Tensor | None = None,
    memory: int | None = None,
) -> Tensor:
    """Convolves with a kernel that is sampled anew at every position, for any number of groups, 1x1 too.

    Equation 7 of Gao et al. (ICLR 2020), which the paper has for depthwise convolutions alone (footnote 4). The input
    is unfolded over the scope, a piece at a time, and PyTorch multiplies the pieces by the kernel; the backward pass
    unfolds anew. Depthwise convolutions are :func:`deform_kernel_conv`, which unfolds nothing.

    Args:
        input: (N, Cin, H, W), float32, float64, float16 or bfloat16, any strides; contiguous or channels_last give an
            output of the same memory format, and channels_last is the faster one.
        kernel_offset, data_offset: (N, 2 * Kh * Kw, Hout, Wout), channels (dy, dx) a tap, taps row-major, in pixels of
            the scope and of the input; input's dtype, or float32 beside a 16-bit input; None for zero.
        weight: (Cout, Cin / groups, Sh, Sw), the kernel over the scope; input's dtype.
        kernel_size, stride, padding, dilation, clip: as in :func:`dk_bench.reference.dense_deform_kernel`, which is
            also what this computes.
        memory: bytes that what is unfolded at a time may take. None: those of the environment variable
            DK_BENCH_UNFOLD_BYTES, or 64 MiB.

    Returns:
        (N, Cout, Hout, Wout) in input's dtype; sums are float32 (float64 for float64).

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit, or (on the CPU) an offset is NaN, or
            memory does not hold what is unfolded for one position; the message names the argument. On CUDA a NaN offset
            gives NaN outputs.
        TypeError: kernel_size, stride, padding or dilation is not an int or a pair of ints, or memory not an int.
    """
    geometry = as_pairs(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    operands = input, data_offset, kernel_offset, weight
    depthwise = input.dim() == weight.dim() == 4 and tuple(weight.shape[:2]) == (input.shape[1], 1)
    memory = bound_in_bytes(memory, 0 if depthwise else bytes_of_a_position(input, weight))
    if depthwise:
        size, stride, padding, dilation = geometry
        settings = {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation, "clip": clip}
        return deform_kernel_conv(*operands, **settings)
    if onnx.is_exporting():
        return onnx.dense_deform_kernel(*operands, *geometry, clip)
    return _op(*operands, *geometry, clip, memory)


def _fake(input, data_offset, kernel_offset, weight, *settings):
    *geometry, _clip, _memory = settings
    size = check_dense_deform_kernel(input, data_offset, kernel_offset, weight, [tuple(pair) for pair in geometry])
    return empty_in_format_of(input, (input.shape[0], weight.shape[0], *size))


def _specification(input, data_offset, kernel_offset, weight, *, memory, **settings):
    return reference.dense_deform_kernel(input, kernel_offset, weight, data_offset=data_offset, **settings)


# Tangents of offsets, and second derivatives, go by the reference, slowly and whole, whatever the bound of memory.
_operator = Operator("dense_deform_kernel", _specification, linear=(0, 3), packed=())
register(_operator, _fake, *map_convolution(_operator), autocast_convolution, check_values=check_offset_values)
register_composed(_operator, _fake, unfolded_product.forward, unfolded_product.backward, "unfold_columns")
