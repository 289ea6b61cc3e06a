"""Deformable kernels in plain PyTorch, written to be read: the specification of the compiled operators.

Notation (Gao et al., ICLR 2020, section 3.2): a convolution stores a kernel W over a *scope* S (Sh x Sw) and applies
K (Kh x Kw) *taps* of it. A rigid convolution reads W at fixed taps k; a deformable kernel moves each tap by a learned
*kernel offset* dk inside the scope and reads W there by bilinear sampling:

    W'[k] = sum over s in S of B(k + dk, s) W[s],   B(c, s) = max(0, 1 - |cy - sy|) max(0, 1 - |cx - sx|)

The three operators differ in where the offsets come from. All offsets are in pixels; channel ``2 t`` holds dy and
channel ``2 t + 1`` dx of tap ``t = i * Kw + j`` (torchvision's order).

Everything here is differentiable any number of times by autograd, runs on any device in any floating dtype, and
needs memory of order N x C x taps x positions. Use :mod:`dk_bench.functional` for speed.

Derivatives at knots (B has a kink wherever a coordinate is an integer): the derivative is the one to the right,
except at the upper edge of a clipped scope, where it is the one to the left, so that a tap on the edge, which is where
zero-initialised offsets put it when S = K, can still move inwards. The clip passes the derivative on its bounds
(as ``torch.clamp`` does) and blocks it outside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dk_bench.reference.checks import IntPair, as_pair, check_local, check_per_image, check_sample_kernel


def hat(coordinate: Tensor, size: int, clip: bool) -> Tensor:
    """Coefficients of linear interpolation in one axis: B of the paper's equation 6, one factor of it.

    Args:
        coordinate: any shape, in pixels of an axis whose samples lie at 0, 1, ..., size - 1.
        size: number of samples.
        clip: move coordinates outside [0, size - 1] to its ends. Otherwise samples outside count as zero.

    Returns:
        coordinate's shape + (size,): for each coordinate the weight of every sample; at most two are not zero.
    """
    if clip and size == 1:  # a scope of one sample leaves nothing to choose: 1, with derivative 0
        return (coordinate.clamp(0, 0) * 0 + 1).unsqueeze(-1)
    if clip:
        coordinate = coordinate.clamp(0, size - 1)
    lower = coordinate.detach().floor()
    if clip:
        lower = lower.clamp(max=size - 2)
    fraction = (coordinate - lower).unsqueeze(-1)
    steps = torch.arange(size, device=coordinate.device, dtype=coordinate.dtype) - lower.unsqueeze(-1)
    zero = torch.zeros_like(fraction)
    return torch.where(steps == 0, 1 - fraction, zero) + torch.where(steps == 1, fraction, zero)


def tap_weights(kernel_offset: Tensor, kernel_size: tuple[int, int], scope: tuple[int, int], clip: bool) -> Tensor:
    """B of the paper, for every tap: (N, 2 * Kh * Kw, *) offsets to (N, Kh * Kw, *, Sh * Sw) coefficients.

    The taps' resting place is the middle of the scope: tap (i, j) rests at (i + (Sh - Kh) / 2, j + (Sw - Kw) / 2).
    """
    (kh, kw), (sh, sw) = kernel_size, scope
    like = {"device": kernel_offset.device, "dtype": kernel_offset.dtype}
    rest_y = (torch.arange(kh, **like) + (sh - kh) / 2).repeat_interleave(kw)
    rest_x = (torch.arange(kw, **like) + (sw - kw) / 2).repeat(kh)
    offset = kernel_offset.unflatten(1, (kh * kw, 2))
    shape = (1, kh * kw) + (1,) * (offset.dim() - 3)
    along_y = hat(offset[:, :, 0] + rest_y.view(shape), sh, clip)
    along_x = hat(offset[:, :, 1] + rest_x.view(shape), sw, clip)
    return (along_y.unsqueeze(-1) * along_x.unsqueeze(-2)).flatten(-2)


def sample_kernel(weight: Tensor, kernel_offset: Tensor, *, kernel_size: IntPair, clip: bool = True) -> Tensor:
    """Global deformable kernel: one sampled kernel an image. See :func:`dk_bench.functional.sample_kernel`."""
    kernel_size = as_pair("kernel_size", kernel_size)
    check_sample_kernel(weight, kernel_offset, kernel_size)
    compute = _compute_dtype(weight)
    coefficients = tap_weights(kernel_offset.to(compute), kernel_size, tuple(weight.shape[2:]), clip)
    sampled = torch.einsum("nks,ois->noik", coefficients, weight.to(compute).flatten(2))
    return sampled.unflatten(-1, kernel_size).to(weight.dtype)


def sample_input(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """x_k: what every tap reads, (N, C, Kh * Kw, Hout, Wout), zero outside the image.

    Tap (i, j) of output (h, w) reads the input at (h * stride - padding + i * dilation, ...), moved by its data
    offset if there is one (deformable convolution, Dai et al., ICCV 2017, equation 2).
    """
    n, c, height, width = input.shape
    (kh, kw), (ho, wo) = kernel_size, output_size
    like = {"device": input.device, "dtype": input.dtype}
    tap_y = torch.arange(kh, **like).repeat_interleave(kw).view(-1, 1, 1) * dilation[0]
    tap_x = torch.arange(kw, **like).repeat(kh).view(-1, 1, 1) * dilation[1]
    y = torch.arange(ho, **like).view(1, -1, 1) * stride[0] - padding[0] + tap_y
    x = torch.arange(wo, **like).view(1, 1, -1) * stride[1] - padding[1] + tap_x
    y, x = torch.broadcast_tensors(y, x)  # (taps, Hout, Wout)
    y, x = (t.expand(n, -1, -1, -1) for t in (y, x))
    if data_offset is not None:
        offset = data_offset.unflatten(1, (kh * kw, 2))
        y, x = y + offset[:, :, 0], x + offset[:, :, 1]
    y0, x0 = y.detach().floor(), x.detach().floor()
    fy, fx = y - y0, x - x0
    along_y, along_x = ((y0, 1 - fy), (y0 + 1, fy)), ((x0, 1 - fx), (x0 + 1, fx))
    if data_offset is None:  # taps rest on pixels
        along_y, along_x = along_y[:1], along_x[:1]
    flat = F.pad(input.flatten(2), (0, 1))  # the last value is what lies outside
    sampled = input.new_zeros(())
    for corner_y, weight_y in along_y:
        for corner_x, weight_x in along_x:
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            index = torch.where(inside, corner_y * width + corner_x, height * width).long().flatten(1)
            values = flat.gather(2, index.unsqueeze(1).expand(-1, c, -1)).view(n, c, *y.shape[1:])
            coefficient = torch.where(inside, weight_y * weight_x, 0)
            sampled = sampled + values * coefficient.unsqueeze(1)
    return sampled


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
    """Depthwise convolution whose taps move on the data, in the kernel's scope, or both.

    out[n, c, p] = sum over k of x_k[n, c, p] W'[n, c, k, p]. See :func:`dk_bench.functional.deform_kernel_conv`.
    """
    geometry = [
        as_pair(name, value)
        for name, value in (
            ("kernel_size", kernel_size),
            ("stride", stride),
            ("padding", padding),
            ("dilation", dilation),
        )
    ]
    output_size = check_local(input, data_offset, kernel_offset, weight, *geometry)
    compute = _compute_dtype(input)
    (kh, kw), scope = geometry[0], tuple(weight.shape[2:])
    if data_offset is not None:
        data_offset = data_offset.to(compute)
    if kernel_offset is None:
        kernel_offset = torch.zeros((input.shape[0], 2 * kh * kw, *output_size), device=input.device, dtype=compute)
    read = sample_input(input.to(compute), data_offset, *geometry, output_size)
    coefficients = tap_weights(kernel_offset.to(compute), geometry[0], scope, clip)
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
    """Local deformable kernel, depthwise: one sampled kernel a position.

    See :func:`dk_bench.functional.local_deform_kernel`.
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


def depthwise_conv_per_image(
    input: Tensor, weight: Tensor, *, stride: IntPair = 1, padding: IntPair = 0, dilation: IntPair = 1
) -> Tensor:
    """Depthwise convolution where image n has the kernel weight[n]: input (N, C, H, W), weight (N, C, Kh, Kw).

    out[n, c, p] = sum over k of x_k[n, c, p] W[n, c, k]. What global deformable kernels end in.
    """
    geometry = [
        as_pair(name, value) for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation))
    ]
    output_size = check_per_image(input, weight, *geometry)
    compute = _compute_dtype(input)
    read = sample_input(input.to(compute), None, tuple(weight.shape[2:]), *geometry, output_size)
    kernel = weight.to(compute).flatten(2)[..., None, None]
    return (read * kernel).sum(2).to(input.dtype)


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """float16 and bfloat16 are stored, never computed with: coordinates and sums are float32."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
