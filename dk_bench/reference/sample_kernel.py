"""How a kernel is sampled inside its scope, and the global deformable kernel, which is that and nothing else.

Notation, derivatives and costs: see :mod:`dk_bench.reference.deform_kernel_conv`.
"""

import torch
from torch import Tensor

from dk_bench.reference.checks import FLOATING, IntPair, Pair, as_pair, check_like, compute_dtype


def clip_to(coordinate: Tensor, last: int) -> Tensor:
    """Moves coordinates outside [0, last] to its ends; the derivative is 1 on the ends too, where many taps start.

    ``torch.clamp`` does the same in torch 2.11; in 2.15 its derivative is 0 on the ends, and nothing there would learn.
    """
    return torch.where(coordinate < 0, 0, torch.where(coordinate > last, last, coordinate))


def hat(coordinate: Tensor, size: int, clip: bool) -> Tensor:
    """Returns the coefficients of linear interpolation in one axis: one factor of B, the paper's equation 6.

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
        coordinate = clip_to(coordinate, size - 1)
    lower = coordinate.detach().floor()
    if clip:
        lower = lower.clamp(max=size - 2)
    fraction = (coordinate - lower).unsqueeze(-1)
    steps = torch.arange(size, device=coordinate.device, dtype=coordinate.dtype) - lower.unsqueeze(-1)
    return torch.where(steps == 0, 1 - fraction, 0) + torch.where(steps == 1, fraction, 0)


def tap_weights(kernel_offset: Tensor, kernel_size: Pair, scope: Pair, clip: bool) -> Tensor:
    """Returns B of the paper for every tap: (N, 2 * Kh * Kw, *) offsets to (N, Kh * Kw, *, Sh * Sw) coefficients.

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
    """Samples a kernel for every image: the global deformable kernel (Gao et al., ICLR 2020, section 3.3).

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
        TypeError: kernel_size is not an int or a pair of ints.
    """
    kernel_size = as_pair("kernel_size", kernel_size)
    _check(weight, kernel_offset, kernel_size)
    compute = compute_dtype(weight)
    coefficients = tap_weights(kernel_offset.to(compute), kernel_size, tuple(weight.shape[2:]), clip)
    sampled = torch.einsum("nks,ois->noik", coefficients, weight.to(compute).flatten(2))
    return sampled.unflatten(-1, kernel_size).to(weight.dtype)


def _check(weight: Tensor, kernel_offset: Tensor, kernel_size: Pair) -> None:
    if min(kernel_size) < 1:
        raise ValueError(f"kernel_size: expected values of at least 1, got {kernel_size}")
    if weight.dim() != 4 or 0 in weight.shape[2:]:
        raise ValueError(
            f"weight: expected (Cout, Cin / groups, Sh, Sw) with Sh, Sw >= 1, got shape {tuple(weight.shape)}"
        )
    if weight.dtype not in FLOATING:
        raise ValueError(f"weight: expected a floating dtype, got {weight.dtype}")
    taps = kernel_size[0] * kernel_size[1]
    if kernel_offset.dim() != 2 or kernel_offset.shape[1] != 2 * taps:
        raise ValueError(
            f"kernel_offset: expected shape (N, 2 Kh Kw) = (N, {2 * taps}), got {tuple(kernel_offset.shape)}"
        )
    check_like("kernel_offset", kernel_offset, weight, or_float32=True)
