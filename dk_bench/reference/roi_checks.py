"""Checks of deform_roi_pool's arguments for reference and fake kernel (the compiled operator repeats them)."""

from __future__ import annotations

import math

from torch import Tensor

from dk_bench.reference.checks import _check_input, _check_like, offset_dtypes


def check_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    position_sensitive: bool,
) -> int:
    """Checks shapes, dtypes, devices and settings, and returns the number of output channels.

    Raises:
        ValueError: one does not fit; the message names the argument.
    """
    _check_input(input)
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois: expected shape (R, 5), an image and two corners a row, got {tuple(rois.shape)}")
    _check_like("rois", rois, input, offset_dtypes(input.dtype))
    if len(output_size) != 2 or min(output_size) < 1:
        raise ValueError(f"output_size: expected values of at least 1, got {output_size}")
    if not (spatial_scale > 0 and math.isfinite(spatial_scale)):
        raise ValueError(f"spatial_scale: expected a number above 0, got {spatial_scale}")
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio: expected 0 (adaptive) or more, got {sampling_ratio}")
    if not math.isfinite(gamma):
        raise ValueError(f"gamma: expected a finite number, got {gamma}")
    channels, bins = input.shape[1], output_size[0] * output_size[1]
    if position_sensitive and channels % bins:
        raise ValueError(
            f"input: position-sensitive pooling expects a multiple of Ph Pw = {bins} channels, got {channels}"
        )
    channels = channels // bins if position_sensitive else channels
    _check_moves(input, rois, offset, mask, output_size, channels)
    return channels


def check_boxes(rois: Tensor, images: int) -> None:
    """Checks the values of boxes (R, 5), which takes them to the CPU.

    Raises:
        ValueError: a box names an image that is not there, or has a coordinate that is not finite; the message names
            its row.
    """
    for row, (image, *corners) in enumerate(rois.tolist()):
        if not 0 <= image < images:
            raise ValueError(f"rois: row {row} names image {image:g} of {images}; expected 0 to {images - 1}")
        if not all(map(math.isfinite, corners)):
            raise ValueError(f"rois: row {row} has a coordinate that is NaN or infinite")


def _check_moves(
    input: Tensor, rois: Tensor, offset: Tensor | None, mask: Tensor | None, size: tuple[int, int], channels: int
) -> None:
    if offset is not None:
        if offset.dim() != 4 or offset.shape[1] < 2 or offset.shape[1] % 2 or channels % (offset.shape[1] // 2):
            raise ValueError(
                f"offset: expected shape (R, 2 G, Ph, Pw) with G a divisor of the {channels} output channels, got "
                f"{tuple(offset.shape)}"
            )
    shapes = {
        "offset": ("(R, 2 G, Ph, Pw)", offset, None if offset is None else (rois.shape[0], offset.shape[1], *size)),
        "mask": ("(R, 1, Ph, Pw)", mask, (rois.shape[0], 1, *size)),
    }
    for name, (layout, tensor, expected) in shapes.items():
        if tensor is None:
            continue
        if tensor.dim() != 4:
            raise ValueError(f"{name}: expected shape {layout}, got {tuple(tensor.shape)}")
        for d, wanted in enumerate(expected):
            if tensor.shape[d] != wanted:
                raise ValueError(
                    f"{name}: expected shape {layout} with size {wanted} in dimension {d}, got {tuple(tensor.shape)}"
                )
        _check_like(name, tensor, input, offset_dtypes(input.dtype))
