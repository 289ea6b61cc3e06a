"""Deformable RoI pooling in plain PyTorch, written to be read: the specification of the compiled operator.

Dai et al. (ICCV 2017, section 2.2) average the pixels of each bin of a box and move the bins:

    y(i, j) = sum over p in bin(i, j) of x(p0 + p + dp_ij) / n_ij,   dp_ij = gamma * offset_ij * (height, width)

The sum over pixels is here that of RoIAlign (He et al., ICCV 2017): bilinear samples on a grid of gh x gw points in the
bin, at its cells' middles. Samples up to a pixel outside the map read its edge, those further out count as zero; both
are divided by. A grid's bilinear samples are a product of two axes, so a bin is ``rows @ map @ columns``, with one
vector of coefficients over the map's rows and one over its columns.

Derivatives at knots (a sample exactly on a pixel) are those to the right; where the edge is repeated they are zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dk_bench.reference.checks import IntPair, as_pair
from dk_bench.reference.deform_kernel_conv import _compute_dtype
from dk_bench.reference.roi_checks import check_roi_pool

__all__ = ["deform_roi_pool"]


def axis_coefficients(start: Tensor, extent: Tensor, bins: int, index: int, sampling_ratio: int, size: int) -> Tensor:
    """Tells how much of each pixel along one axis is in the average over a bin's samples.

    Args:
        start, extent: scalars, where the moved box begins and how long it is, in pixels of the map.
        bins, index: number of bins along the axis, and which of them.
        sampling_ratio: number of samples, or 0 for one a pixel: ceil(extent / bins).
        size: number of pixels of the map.

    Returns:
        (size,), summing to at most 1.
    """
    bin_size = extent / bins
    samples = sampling_ratio if sampling_ratio > 0 else max(0, math.ceil(bin_size.item()))
    if samples == 0:  # a box whose corners are swapped
        return start.new_zeros(size)
    steps = torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5
    coordinate = start + index * bin_size + steps * bin_size / samples
    inside = (coordinate >= -1) & (coordinate <= size)
    coordinate = coordinate.clamp(0, size - 1)
    low = coordinate.detach().floor()
    high = (low + 1).clamp(max=size - 1)
    fraction = coordinate - low
    pixels = torch.arange(size, dtype=start.dtype, device=start.device).unsqueeze(1)
    zero = torch.zeros_like(fraction)
    coefficients = torch.where(pixels == low, 1 - fraction, zero) + torch.where(pixels == high, fraction, zero)
    return torch.where(inside, coefficients, zero).sum(1) / samples


def map_box(roi: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, x, height, width), in pixels of the map, of a row (image, x1, y1, x2, y2)."""
    shift = 0.5 if aligned else 0.0  # a pixel's middle lies at a whole coordinate of the map
    x1, y1, x2, y2 = (roi[1:] * spatial_scale - shift).unbind()
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = height.clamp(min=1), width.clamp(min=1)
    return y1, x1, height, width


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    output_size: IntPair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    aligned: bool = True,
    position_sensitive: bool = False,
) -> Tensor:
    """Average pooling of the bins of boxes, each moved by its offset.

    See :func:`dk_bench.functional.deform_roi_pool`.
    """
    size = as_pair("output_size", output_size)
    channels = check_roi_pool(input, rois, offset, mask, size, spatial_scale, sampling_ratio, gamma, position_sensitive)
    compute = _compute_dtype(input)
    dtype, (input, rois) = input.dtype, (input.to(compute), rois.detach().to(compute))
    if offset is None:
        offset = input.new_zeros(len(rois), 2, *size)
    offset = offset.to(compute).unflatten(1, (-1, 2))  # (R, G, 2, Ph, Pw)
    groups, bins = offset.shape[1], size if position_sensitive else ()
    pooled = []
    for roi, moves in zip(rois, offset, strict=True):
        planes = input[int(roi[0])].unflatten(0, (groups, channels // groups, *bins))
        y, x, height, width = map_box(roi, spatial_scale, aligned)
        for i in range(size[0]):
            for j in range(size[1]):
                for group in range(groups):
                    read = planes[group, :, i, j] if position_sensitive else planes[group]  # (Cout / G, H, W)
                    dy, dx = moves[group, :, i, j]
                    top, left = y + gamma * height * dy, x + gamma * width * dx
                    rows = axis_coefficients(top, height, size[0], i, sampling_ratio, input.shape[2])
                    columns = axis_coefficients(left, width, size[1], j, sampling_ratio, input.shape[3])
                    pooled.append(rows @ read @ columns)
    if not pooled:
        return torch.zeros(0, channels, *size, dtype=dtype, device=input.device)
    output = torch.stack(pooled).view(len(rois), *size, channels).permute(0, 3, 1, 2)
    return (output if mask is None else output * mask.to(compute)).to(dtype)
