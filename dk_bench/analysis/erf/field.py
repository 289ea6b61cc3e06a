"""Effective receptive fields as maps, and the numbers that describe one.

A field is the gradient of one output unit to the image (`erf.gradient.unit_gradient`), summed over the image's
channels: signed, or by its magnitudes (absolute). All numbers are of the raw gradient, never of its logarithm or its
positive part. Distances are in pixels, from a centre that is given, usually the unit's own place.
"""

import math
from typing import NamedTuple

import numpy as np


class Measures(NamedTuple):
    """Numbers of one field."""

    sigma: float  # standard deviation along an axis, of the gradient's magnitude about the centre; a Gaussian's own
    radius: float  # of the disc about the centre that holds half of the energy (the squared gradient)
    area: int  # the least number of pixels that hold half of the energy


def measure(field: np.ndarray, centre: tuple[float, float]) -> Measures:
    """Returns all numbers of a field (H, W) about a centre (y, x) in pixels. Raises ValueError for a field that is not
    a map, is zero everywhere or not finite."""
    return Measures(sigma(field, centre), energy_radius(field, centre), area(field))


def sigma(field: np.ndarray, centre: tuple[float, float]) -> float:
    """Returns the root mean square distance to the centre, weighed by the gradient's magnitude, over root two."""
    weight = np.abs(_checked(field))
    return math.sqrt(float((weight * _squared_distance(field.shape, centre)).sum() / weight.sum()) / 2)


def energy_radius(field: np.ndarray, centre: tuple[float, float]) -> float:
    """Returns the radius of the smallest disc about the centre with half of the energy."""
    energy = np.square(_checked(field)).ravel()
    distance = _squared_distance(field.shape, centre).ravel()
    order = np.argsort(distance, kind="stable")
    return math.sqrt(float(distance[order][_half_way(energy[order])]))


def area(field: np.ndarray) -> int:
    """Returns the least number of pixels, wherever they lie, with half of the energy."""
    return _half_way(np.sort(np.square(_checked(field)).ravel())[::-1]) + 1


def share_inside(field: np.ndarray, mask: np.ndarray) -> float:
    """Returns the share of the energy inside a mask (H, W) of bool, to be seen beside the mask's share of the pixels.
    Raises ValueError as :func:`measure`, and for a mask of another shape."""
    energy = np.square(_checked(field))
    if mask.shape != field.shape:
        raise ValueError(f"mask: expected the field's shape {field.shape}, got {mask.shape}")
    return float(energy[mask.astype(bool)].sum() / energy.sum())


def replknet_sides(field: np.ndarray, shares: tuple[float, ...] = (0.2, 0.3, 0.5, 0.99)) -> dict[float, float]:
    """Tells what RepLKNet's tool prints (Ding et al., CVPR 2022, table 10), for comparison with figures made by it: of
    the logarithm of a field of positive gradients, summed over images, for each share the area ratio of the smallest
    centred square that holds it; 1.0 where none does.

    Args:
        field: (S, S), the sum over images and channels of the gradient's positive part, of the middle unit.
    """
    field = np.log10(_checked(field) + 1)
    side = field.shape[0]
    middle = side // 2
    found = dict.fromkeys(shares, 1.0)
    for reach in reversed(range(1, middle)):
        inner = field[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
        held = inner.sum() / field.sum()
        found |= {share: ((2 * reach + 1) / side) ** 2 for share in shares if held > share}
    return found


def _checked(field: np.ndarray) -> np.ndarray:
    if field.ndim != 2:
        raise ValueError(f"field: expected (H, W), got the shape {field.shape}")
    if not np.isfinite(field).all() or not field.any():
        raise ValueError("field: expected finite values that are not all zero")
    return field.astype(np.float64)


def _squared_distance(shape: tuple[int, ...], centre: tuple[float, float]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2


def _half_way(values: np.ndarray) -> int:
    """Returns the index of the value at which the running sum reaches half of the total."""
    total = np.cumsum(values)
    return int(np.searchsorted(total, total[-1] / 2))
