"""Local deformable kernels on convolutions that are not depthwise, in plain PyTorch: an unfolding, then a product."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dk_bench.reference.checks import IntPair, Pair, as_pairs, check_input, check_like
from dk_bench.reference.deform_kernel_conv import check_offsets
from dk_bench.reference.scope_unfold import unfold_over_scope


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
) -> Tensor:
    """Convolves with a kernel that is sampled anew at every position, for any number of groups, 1x1 too.

    out[n, o, p] = sum over c and s of W[o, c, s] Z[n, c, s, p], within groups, with Z of
    :func:`dk_bench.reference.scope_unfold`. With sums in another order this is equation 7 of Gao et al. (ICLR 2020),
    sum over c and k of x_k[n, c, p] W'[n, o, c, k, p], which the paper has for depthwise convolutions alone.

    Args:
        input: (N, Cin, H, W), float32, float64, float16 or bfloat16.
        kernel_offset, data_offset, kernel_size, stride, padding, dilation, clip: as in
            :func:`dk_bench.reference.deform_kernel_conv`; offsets that are None are zero.
        weight: (Cout, Cin / groups, Sh, Sw), the kernel over the scope, from which the number of groups follows;
            input's dtype.

    Returns:
        (N, Cout, Hout, Wout) in input's dtype; sums are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or value does not fit; the message names the argument.
        TypeError: kernel_size, stride, padding or dilation is not an int or a pair of ints.
    """
    geometry = as_pairs(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    size = check_dense_deform_kernel(input, data_offset, kernel_offset, weight, geometry)
    scope, share = tuple(weight.shape[2:]), weight.shape[1]
    unfolded = unfold_over_scope(input, data_offset, kernel_offset, scope, geometry, size, clip)
    kernel = weight.to(unfolded.dtype).flatten(2).unflatten(0, (input.shape[1] // share, -1))
    output = torch.einsum("ngcshw,gocs->ngohw", unfolded.unflatten(1, (-1, share)), kernel)
    return output.flatten(1, 2).to(input.dtype)


def check_dense_deform_kernel(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    geometry: Sequence[Pair],  # kernel_size, stride, padding, dilation
) -> Pair:
    """Raises ValueError that names the argument that does not fit; returns (Hout, Wout)."""
    check_input(input)
    channels = input.shape[1]
    if weight.dim() != 4 or 0 in weight.shape or channels == 0 or channels % weight.shape[1]:
        raise ValueError(
            f"weight: expected (Cout, Cin / groups, Sh, Sw), all at least 1, with Cin / groups a divisor of the "
            f"{channels} channels of input, got shape {tuple(weight.shape)}"
        )
    if weight.shape[0] % (groups := channels // weight.shape[1]):
        raise ValueError(
            f"weight: expected Cout to be a multiple of the {groups} groups, which follow from {channels} channels of "
            f"input and Cin / groups = {weight.shape[1]}, got shape {tuple(weight.shape)}"
        )
    check_like("weight", weight, input)
    return check_offsets(input, data_offset, kernel_offset, geometry)
