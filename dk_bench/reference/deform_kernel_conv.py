"""Deformable kernels in plain PyTorch, written to be read: the specification of the compiled operators.

Notation (Gao et al., ICLR 2020, section 3.2): a convolution stores a kernel W over a *scope* S (Sh x Sw) and applies
K (Kh x Kw) *taps* of it. A rigid convolution reads W at fixed taps k; a deformable kernel moves each tap by a learned
*kernel offset* dk inside the scope and reads W there by bilinear sampling:

    W'[k] = sum over s in S of B(k + dk, s) W[s],   B(c, s) = max(0, 1 - |cy - sy|) max(0, 1 - |cx - sx|)

The three operators differ in where the offsets come from. All offsets are in pixels; channel ``2 t`` holds dy and
channel ``2 t + 1`` dx of tap ``t = i * Kw + j`` (torchvision's order).

The specification is differentiable any number of times by autograd, runs on any device in any floating dtype, and
needs memory of order N x C x taps x positions. Use :mod:`dk_bench.functional` for speed.

Derivatives at knots (B has a kink wherever a coordinate is an integer): the derivative is the one to the right,
except at the upper edge of a clipped scope, where it is the one to the left, so that a tap on the edge, which is where
zero-initialised offsets put it when S = K, can still move inwards. The clip passes the derivative on its bounds
and blocks it outside.
"""

import itertools
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from dk_bench.reference.checks import IntPair, Pair, as_pairs, check_input, check_like, compute_dtype, output_size
from dk_bench.reference.sample_kernel import tap_weights


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

    out[n, c, p] = sum over k of x_k[n, c, p] W'[n, c, k, p]: section 3.4 of Gao et al. (ICLR 2020), with data offsets
    as in Dai et al. (ICCV 2017). Offsets that are None are zero.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16.
        data_offset: (N, 2 * Kh * Kw, Hout, Wout) in pixels of the input, channels (dy, dx) a tap, taps row-major, or
            None. Pixels outside the image are zero.
        kernel_offset: (N, 2 * Kh * Kw, Hout, Wout) in pixels of the scope, in the same order, or None. Both offsets
            have input's dtype, or float32 beside a 16-bit input.
        weight: (C, 1, Sh, Sw), the kernel over the scope; input's dtype.
        kernel_size: (Kh, Kw), the number of taps; any of S and K may be the larger.
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``.
        clip: keep taps inside the scope (the paper's k + dk in K). Otherwise the kernel is zero outside.

    Returns:
        (N, C, Hout, Wout) in input's dtype; sums are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or value does not fit; the message names the argument.
        TypeError: kernel_size, stride, padding or dilation is not an int or a pair of ints.
    """
    geometry = as_pairs(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    size = check_deform_kernel_conv(input, data_offset, kernel_offset, weight, geometry)
    compute = compute_dtype(input)
    if kernel_offset is None:
        kernel_offset = input.new_zeros(input.shape[0], 2 * prod(geometry[0]), *size)
    read = sample_input(input.to(compute), data_offset, geometry, size)
    coefficients = tap_weights(kernel_offset.to(compute), geometry[0], tuple(weight.shape[2:]), clip)
    sampled_kernel = torch.einsum("nkhws,cs->nckhw", coefficients, weight.to(compute).flatten(1))
    return (read * sampled_kernel).sum(2).to(input.dtype)


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
    """Samples a kernel at every position (the paper's equation 7): :func:`deform_kernel_conv` without data offsets."""
    geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation, "clip": clip}
    return deform_kernel_conv(input, None, kernel_offset, weight, **geometry)


def sample_input(input: Tensor, data_offset: Tensor | None, geometry: Sequence[Pair], size: Pair) -> Tensor:
    """Returns x_k, what every tap reads: (N, C, Kh * Kw, Hout, Wout), zero outside the image.

    Tap (i, j) of output (h, w) reads the input at (h * stride - padding + i * dilation, ...), moved by its data
    offset (N, 2 * Kh * Kw, Hout, Wout) if there is one (deformable convolution, Dai et al., ICCV 2017, equation 2).
    ``geometry``: kernel_size, stride, padding, dilation; ``size``: (Hout, Wout).
    """
    (kh, kw), stride, padding, dilation = geometry
    like = {"device": input.device, "dtype": input.dtype}
    tap_y = torch.arange(kh, **like).repeat_interleave(kw).view(-1, 1, 1) * dilation[0]
    tap_x = torch.arange(kw, **like).repeat(kh).view(-1, 1, 1) * dilation[1]
    y = torch.arange(size[0], **like).view(1, -1, 1) * stride[0] - padding[0] + tap_y
    x = torch.arange(size[1], **like).view(1, 1, -1) * stride[1] - padding[1] + tap_x
    y, x = (t.expand(input.shape[0], kh * kw, *size) for t in (y, x))
    if data_offset is not None:
        offset = data_offset.unflatten(1, (kh * kw, 2))
        y, x = y + offset[:, :, 0], x + offset[:, :, 1]
    return _read(input, y, x, corners=1 if data_offset is None else 2)  # without offsets, taps rest on pixels


def _read(input: Tensor, y: Tensor, x: Tensor, corners: int) -> Tensor:
    """Returns the input at the coordinates (N, taps, Hout, Wout), from one or two pixels along each axis."""
    n, c, height, width = input.shape
    y0, x0 = y.detach().floor(), x.detach().floor()
    fy, fx = y - y0, x - x0
    along_y, along_x = ((y0, 1 - fy), (y0 + 1, fy))[:corners], ((x0, 1 - fx), (x0 + 1, fx))[:corners]
    flat = F.pad(input.flatten(2), (0, 1))  # the last value is what lies outside
    sampled = input.new_zeros(())
    for (corner_y, weight_y), (corner_x, weight_x) in itertools.product(along_y, along_x):
        inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
        index = torch.where(inside, corner_y * width + corner_x, height * width).long().flatten(1)
        values = flat.gather(2, index.unsqueeze(1).expand(-1, c, -1)).view(n, c, *y.shape[1:])
        # Each for itself: a product's derivatives would bring in the other, which far outside is inf - inf.
        coefficient = torch.where(inside, weight_y, 0) * torch.where(inside, weight_x, 0)
        sampled = sampled + values * coefficient.unsqueeze(1)
    return sampled


def check_deform_kernel_conv(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    geometry: Sequence[Pair],  # kernel_size, stride, padding, dilation
) -> Pair:
    """Raises ValueError that names the argument that does not fit; returns (Hout, Wout)."""
    check_input(input)
    if weight.dim() != 4 or weight.shape[0] != input.shape[1] or weight.shape[1] != 1 or 0 in weight.shape[2:]:
        raise ValueError(
            f"weight: expected (C, 1, Sh, Sw) with C = {input.shape[1]} channels as in input and Sh, Sw >= 1, "
            f"got shape {tuple(weight.shape)}"
        )
    check_like("weight", weight, input)
    return check_offsets(input, data_offset, kernel_offset, geometry)


def check_offsets(
    input: Tensor, data_offset: Tensor | None, kernel_offset: Tensor | None, geometry: Sequence[Pair]
) -> Pair:
    """Raises ValueError where the geometry or an offset does not fit the images; returns (Hout, Wout)."""
    size = output_size(tuple(input.shape[2:]), *geometry)
    expected = (input.shape[0], 2 * prod(geometry[0]), *size)
    for name, offset in (("data_offset", data_offset), ("kernel_offset", kernel_offset)):
        if offset is None:
            continue
        if tuple(offset.shape) != expected:
            raise ValueError(f"{name}: expected shape (N, 2 Kh Kw, Hout, Wout) = {expected}, got {tuple(offset.shape)}")
        check_like(name, offset, input, or_float32=True)
    return size
