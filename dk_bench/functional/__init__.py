"""The operators as functions, compiled (C++, CUDA); semantics are those of :mod:`dk_bench.reference`. Begin with
__init__.py, which has three of the functions; registration.py says how torch treats the operators.

They have derivatives of every kind (reverse and forward mode, ``torch.func``, ``vmap``, any order; see Derivatives in
docs/operators.md) and work under ``torch.compile``, autocast and fake tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dk_bench.functional import flops, onnx, registration  # noqa: F401  (loads the library and registers what torch asks of it)
from dk_bench.functional.deform_roi_pool import deform_roi_pool
from dk_bench.reference import sample_kernel as _sample_kernel
from dk_bench.reference.checks import IntPair, as_pair

torch.fx.wrap("_sample_kernel")  # its checks look at shapes: symbolic tracing keeps it as a call

__all__ = ["deform_kernel_conv", "deform_roi_pool", "local_deform_kernel", "sample_kernel"]


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
    """Local deformable kernel, depthwise (Gao et al., ICLR 2020, equation 7): every position samples its own kernel.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16, any strides; contiguous or channels_last give an
            output of the same memory format.
        kernel_offset: (N, 2 * Kh * Kw, Hout, Wout) in pixels of the scope, channels (dy, dx) a tap, taps row-major;
            input's dtype, or float32 beside a 16-bit input.
        weight: (C, 1, Sh, Sw), the kernel over the scope; input's dtype.
        kernel_size: (Kh, Kw), the number of taps; any of S and K may be the larger.
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``.
        clip: keep taps inside the scope (the paper's k + dk in K). Otherwise the kernel is zero outside.

    Returns:
        (N, C, Hout, Wout) in input's dtype; sums are float32 (float64 for float64).

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit, or (on the CPU) an offset is NaN; the
            message names the argument. On CUDA a NaN offset gives NaN outputs, as raising would cost a synchronisation;
            what infinite operands give there is in docs/operators.md, What differs on CUDA.
        TypeError: kernel_size, stride, padding or dilation is not an int or a pair of ints.
    """
    return deform_kernel_conv(
        input,
        None,
        kernel_offset,
        weight,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        clip=clip,
    )


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
    """Depthwise convolution that moves its taps on the data (DCN), in its kernel's scope (DK), or both.

    Section 3.4 of Gao et al. (ICLR 2020); data offsets as in Dai et al. (ICCV 2017). Offsets that are None are zero.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16.
        data_offset: (N, 2 * Kh * Kw, Hout, Wout) in pixels of the input, or None. Pixels outside the image are zero.
        kernel_offset: (N, 2 * Kh * Kw, Hout, Wout) in pixels of the scope, or None.
        weight: (C, 1, Sh, Sw).
        kernel_size, stride, padding, dilation, clip: as in :func:`local_deform_kernel`.

    Returns:
        (N, C, Hout, Wout).

    Raises:
        RuntimeError, TypeError: as :func:`local_deform_kernel`.
    """
    compute = onnx.deform_kernel_conv if onnx.is_exporting() else torch.ops.dk_bench.deform_kernel_conv
    return compute(
        input,
        data_offset,
        kernel_offset,
        weight,
        as_pair("kernel_size", kernel_size),
        as_pair("stride", stride),
        as_pair("padding", padding),
        as_pair("dilation", dilation),
        clip,
    )


def sample_kernel(weight: Tensor, kernel_offset: Tensor, *, kernel_size: IntPair, clip: bool = True) -> Tensor:
    """Global deformable kernel (Gao et al., ICLR 2020, section 3.3): one sampled kernel an image.

    A matrix product of the taps' interpolation coefficients and the weight, so plain PyTorch is the fast way.

    Args:
        weight: (Cout, Cin / groups, Sh, Sw), the kernel over the scope; any floating dtype.
        kernel_offset: (N, 2 * Kh * Kw) in pixels of the scope, channels (dy, dx) a tap; weight's dtype, or float32
            beside a 16-bit weight.
        kernel_size: (Kh, Kw).
        clip: keep taps inside the scope.

    Returns:
        (N, Cout, Cin / groups, Kh, Kw) in weight's dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    return _sample_kernel(weight, kernel_offset, kernel_size=kernel_size, clip=clip)
