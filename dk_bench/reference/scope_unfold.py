"""The unfolding of an input over the kernel's scope, in plain PyTorch: what dense local deformable kernels multiply.

Z[n, c, s, p] = sum over k of B_k[n, p, s] x_k[n, c, p]: what the taps read, each spread over the scope by its
coefficients of interpolation, where ``torch.nn.functional.unfold`` keeps the taps side by side. All channels share the
offsets, so B has no channel, and a kernel of any number of outputs is one matrix product away.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from dk_bench.reference.checks import IntPair, Pair, as_pairs, check_input, compute_dtype
from dk_bench.reference.deform_kernel_conv import check_offsets, sample_input
from dk_bench.reference.sample_kernel import tap_weights


def scope_unfold(
    input: Tensor,
    kernel_offset: Tensor | None,
    *,
    kernel_size: IntPair,
    scope: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    clip: bool = True,
    data_offset: Tensor | None = None,
) -> Tensor:
    """Unfolds an input over the scope of a deformable kernel, as im2col does over the taps of a rigid one.

    With a kernel (Cout, C * Sh * Sw), whose product with this is a dense local deformable kernel: equation 7 of Gao et
    al. (ICLR 2020), which has it for depthwise convolutions.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16.
        kernel_offset, data_offset, kernel_size, stride, padding, dilation, clip: as in
            :func:`dk_bench.reference.deform_kernel_conv`; offsets that are None are zero.
        scope: (Sh, Sw), the size of the stored kernel; any of scope and kernel_size may be the larger.

    Returns:
        (N, C * Sh * Sw, Hout * Wout), channels (c, sh, sw), in input's dtype; sums are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or value does not fit; the message names the argument.
        TypeError: kernel_size, scope, stride, padding or dilation is not an int or a pair of ints.
    """
    geometry = as_pairs(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    (scope,) = as_pairs(scope=scope)
    size = check_scope_unfold(input, data_offset, kernel_offset, scope, geometry)
    unfolded = unfold_over_scope(input, data_offset, kernel_offset, scope, geometry, size, clip)
    return unfolded.flatten(3).flatten(1, 2).to(input.dtype)


def unfold_over_scope(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    scope: Pair,
    geometry: Sequence[Pair],
    size: Pair,
    clip: bool,
) -> Tensor:
    """Returns Z, (N, C, Sh * Sw, Hout, Wout), in float32 (float64 for float64).

    ``geometry``: kernel_size, stride, padding, dilation; ``size``: (Hout, Wout).
    """
    compute, taps = compute_dtype(input), prod(geometry[0])
    if kernel_offset is None:
        kernel_offset = input.new_zeros(input.shape[0], 2 * taps, *size)
    read = sample_input(input.to(compute), data_offset, geometry, size)
    coefficients = tap_weights(kernel_offset.to(compute), geometry[0], scope, clip)
    return torch.einsum("nckhw,nkhws->ncshw", read, coefficients)


def check_scope_unfold(
    input: Tensor, data_offset: Tensor | None, kernel_offset: Tensor | None, scope: Pair, geometry: Sequence[Pair]
) -> Pair:
    """Raises ValueError that names the argument that does not fit; returns (Hout, Wout)."""
    check_input(input)
    if len(scope) != 2 or min(scope) < 1:
        raise ValueError(f"scope: expected values of at least 1, got {scope}")
    return check_offsets(input, data_offset, kernel_offset, geometry)
