"""Deformable RoI pooling in plain PyTorch, written to be read: the specification of the compiled operator.

Dai et al. (ICCV 2017, section 2.2) average the pixels of each bin of a box and move the bins:

    y(i, j) = sum over p in bin(i, j) of x(p0 + p + dp_ij) / n_ij,   dp_ij = gamma * offset_ij * (height, width)

The sum over pixels is here that of RoIAlign (He et al., ICCV 2017): bilinear samples on a grid of gh x gw points in the
bin, at its cells' middles. Samples up to a pixel outside the map read its edge, those further out count as zero; both
are divided by. A grid's bilinear samples are a product of two axes, so a bin is ``rows @ map @ columns``, with one
vector of coefficients over the map's rows and one over its columns. Without offset and mask all this is
``torchvision.ops.roi_align``; position-sensitive and aligned, ``torchvision.ops.ps_roi_align``.

Derivatives at knots (a sample exactly on a pixel) are those to the right; where the edge is repeated they are zero.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dk_bench.reference.checks import IntPair, NotFinite, as_pair, check_input, check_like, compute_dtype
from dk_bench.reference.sample_kernel import clip_to


class RoISettings(NamedTuple):
    """The arguments of :func:`deform_roi_pool` that are no tensors, in the operator's order.

    Attributes:
        output_size: (Ph, Pw).
        spatial_scale: pixels of the map a pixel of the image: 1 / the map's stride.
        sampling_ratio: samples a bin along each axis; 0 for as many as the bin has pixels, rounded up.
        gamma: what offsets are multiplied by, 0.1 in the paper.
        aligned: subtract half a pixel from the boxes' corners, so that they mean the same on every map. Otherwise boxes
            are at least one pixel of the map large.
        position_sensitive: C = Cout * Ph * Pw, and bin (i, j) of output channel c reads channel (c * Ph + i) * Pw + j.
    """

    output_size: IntPair
    spatial_scale: float = 1.0
    sampling_ratio: int = 0
    gamma: float = 0.1
    aligned: bool = True
    position_sensitive: bool = False


def axis_coefficients(start: Tensor, extent: Tensor, bins: int, index: int, sampling_ratio: int, size: int) -> Tensor:
    """Tells how much of each of an axis's ``size`` pixels is in the average over the samples of bin ``index`` of
    ``bins``: (size,), summing to at most 1. ``start`` and ``extent``, scalars, are the moved box's, in pixels of the
    map; a ``sampling_ratio`` of 0 is for one sample a pixel.
    """
    bin_size = extent / bins
    samples = sampling_ratio if sampling_ratio > 0 else max(0, math.ceil(bin_size.item()))
    if samples == 0:  # a box whose corners are swapped
        return start.new_zeros(size)
    steps = torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5
    coordinate = start + index * bin_size + steps * bin_size / samples
    inside = (coordinate >= -1) & (coordinate <= size)
    coordinate = clip_to(coordinate, size - 1)
    low = coordinate.detach().floor()
    high = (low + 1).clamp(max=size - 1)
    fraction = coordinate - low
    pixels = torch.arange(size, dtype=start.dtype, device=start.device).unsqueeze(1)
    coefficients = torch.where(pixels == low, 1 - fraction, 0) + torch.where(pixels == high, fraction, 0)
    return torch.where(inside, coefficients, 0).sum(1) / samples


def map_box(roi: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (y, x, height, width), in pixels of the map, of a row (image, x1, y1, x2, y2)."""
    shift = 0.5 if aligned else 0.0  # a pixel's middle lies at a whole coordinate of the map
    x1, y1, x2, y2 = (roi[1:] * spatial_scale - shift).unbind()
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = height.clamp(min=1), width.clamp(min=1)
    return y1, x1, height, width


def deform_roi_pool(
    input: Tensor, rois: Tensor, offset: Tensor | None = None, mask: Tensor | None = None, **settings: Any
) -> Tensor:
    """Averages over the bins of boxes, which move: deformable RoI pooling (Dai et al., ICCV 2017, section 2.2).

    Each of a box's Ph x Pw bins is moved as a whole by gamma * (the box's height, width) * (its offset).

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16; contiguous or channels_last, the output likewise.
        rois: (R, 5), rows (image, x1, y1, x2, y2) in pixels of the image; input's dtype, or float32 beside a 16-bit
            input. They get no gradient, and may have no tangent. Boxes may be empty or lie outside the image; R and N
            may be 0.
        offset: (R, 2 * G, Ph, Pw), channels (dy, dx) a group, as fractions of the box's size, or None for zero. The
            output's channels are cut into G groups, which move apart (position-sensitive pooling: one a class).
        mask: (R, 1, Ph, Pw), a factor on each bin's output (Zhu et al., CVPR 2019, "DCN v2"), or None for one. Both
            have input's dtype, or float32 beside a 16-bit input.
        settings: :class:`RoISettings`, by name.

    Returns:
        (R, Cout, Ph, Pw) in input's dtype; coordinates and sums are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or setting does not fit; the message names the argument.
        TypeError: output_size is not an int or a pair of ints.
    """
    settings = RoISettings(**settings)
    settings = settings._replace(output_size=as_pair("output_size", settings.output_size))
    channels = check_deform_roi_pool(input, rois, offset, mask, settings)
    pooled = _pool(input.to(compute_dtype(input)), rois, offset, settings)
    if not pooled:
        return torch.zeros(0, channels, *settings.output_size, dtype=input.dtype, device=input.device)
    output = torch.stack(pooled).view(len(rois), *settings.output_size, channels).permute(0, 3, 1, 2)
    return (output if mask is None else output * mask.to(output.dtype)).to(input.dtype)


def _pool(input: Tensor, rois: Tensor, offset: Tensor | None, settings: RoISettings) -> list[Tensor]:
    """Returns the averages (Cout / G,) of all boxes' bins, row-major, and of their groups of channels."""
    size, sensitive = settings.output_size, settings.position_sensitive
    rois = rois.detach().to(input.dtype)
    offset = input.new_zeros(len(rois), 2, *size) if offset is None else offset.to(input.dtype)
    offset = offset.unflatten(1, (-1, 2))  # (R, G, 2, Ph, Pw)
    groups = offset.shape[1]
    pooled = []
    for roi, moves in zip(rois, offset, strict=True):
        planes = input[int(roi[0])].unflatten(0, (groups, -1, *(size if sensitive else ())))
        y, x, height, width = map_box(roi, settings.spatial_scale, settings.aligned)
        for i, j, group in itertools.product(range(size[0]), range(size[1]), range(groups)):
            read = planes[group, :, i, j] if sensitive else planes[group]  # (Cout / G, H, W)
            dy, dx = moves[group, :, i, j]
            top, left = y + settings.gamma * height * dy, x + settings.gamma * width * dx
            rows = axis_coefficients(top, height, size[0], i, settings.sampling_ratio, input.shape[2])
            columns = axis_coefficients(left, width, size[1], j, settings.sampling_ratio, input.shape[3])
            pooled.append(rows @ read @ columns)
    return pooled


def check_deform_roi_pool(
    input: Tensor, rois: Tensor, offset: Tensor | None, mask: Tensor | None, settings: RoISettings
) -> int:
    """Raises ValueError that names the argument that does not fit; returns the number of output channels."""
    check_input(input)
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois: expected shape (R, 5), an image and two corners a row, got {tuple(rois.shape)}")
    check_like("rois", rois, input, or_float32=True)
    _check_settings(settings)
    channels, size = input.shape[1], settings.output_size
    if settings.position_sensitive:
        if channels % math.prod(size):
            raise ValueError(
                f"input: position-sensitive pooling expects a multiple of Ph Pw = {math.prod(size)} channels, got "
                f"{channels}"
            )
        channels //= math.prod(size)
    if offset is not None:
        if offset.dim() != 4 or offset.shape[1] < 2 or offset.shape[1] % 2 or channels % (offset.shape[1] // 2):
            raise ValueError(
                f"offset: expected shape (R, 2 G, Ph, Pw) with G a divisor of the {channels} output channels, got "
                f"{tuple(offset.shape)}"
            )
        _check_bins("offset", "(R, 2 G, Ph, Pw)", offset, (rois.shape[0], offset.shape[1], *size), input)
    if mask is not None:
        _check_bins("mask", "(R, 1, Ph, Pw)", mask, (rois.shape[0], 1, *size), input)
    return channels


def _check_settings(settings: RoISettings) -> None:
    size, scale = settings.output_size, settings.spatial_scale
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"output_size: expected values of at least 1, got {size}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"spatial_scale: expected a number above 0, got {scale}")
    if settings.sampling_ratio < 0:
        raise ValueError(f"sampling_ratio: expected 0 (adaptive) or more, got {settings.sampling_ratio}")
    if not math.isfinite(settings.gamma):
        raise ValueError(f"gamma: expected a finite number, got {settings.gamma}")


def check_boxes(rois: Tensor, images: int) -> None:
    """Raises ValueError, which names the row, where one of the boxes (R, 5) names an image that is not there, or
    (NotFinite) has a coordinate that is not finite. Takes them to the CPU."""
    for row, (image, *corners) in enumerate(rois.tolist()):
        if not 0 <= image < images:
            raise ValueError(f"rois: row {row} names image {image:g} of {images}; expected 0 to {images - 1}")
        if not all(map(math.isfinite, corners)):
            raise NotFinite(f"rois: row {row} has a coordinate that is NaN or infinite")


def _check_bins(name: str, layout: str, tensor: Tensor, expected: tuple[int, ...], input: Tensor) -> None:
    if tensor.dim() != 4:
        raise ValueError(f"{name}: expected shape {layout}, got {tuple(tensor.shape)}")
    for d, wanted in enumerate(expected):
        if tensor.shape[d] != wanted:
            raise ValueError(
                f"{name}: expected shape {layout} with size {wanted} in dimension {d}, got {tuple(tensor.shape)}"
            )
    check_like(name, tensor, input, or_float32=True)
