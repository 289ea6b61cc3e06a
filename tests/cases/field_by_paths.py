"""Effective receptive fields by the paper's equations instead of by autograd (Gao et al., ICLR 2020, section 3).

The convolutions of the paper's section 3 have one channel and no bias. A unit j of a layer reads the layer below at
places j + k, and weighs what it reads there by W[k]. So it sees pixel i by every *path*, a sequence of taps whose
places lead down from j to i, and its field is the sum over those paths of the products of what they weigh:

    R(i; j) = sum over paths (k_n, ..., k_1) of  [j + k_n + ... + k_1 = i]  W_n[k_n] ... W_1[k_1]

What adapts a field is then seen at once. Data offsets (deformable convolution) change where a path leads, and B,
linear interpolation, shares a path out among the pixels around its end. Kernel offsets (deformable kernels) leave the
places and change what a tap weighs. Rectified units pass a path or block it.

    rigid      place  j + k        weight  W[k]
    DCN        place  j + k + dk   weight  W[k]
    local DK   place  j + k        weight  W[k + dk]
    both       place  j + k + dk   weight  W[k + dk']

A field splits at any layer m by which of m's taps a path takes, and each part is what the layers above m see through
that tap, carried on from where the tap reads:

    R(i; j) = sum over k_m of R(i; j + k_m, k_m)                rigid
              sum over k_m of R(i; j + k_m + dj_m, k_m)         DCN: the part moves with its tap's place
              sum over k_m of R(i; j + k_m, k_m + dk_m)         local DK: the part stays, what it weighs changes

Plain Python over every path: small networks only. For real ones there is :mod:`dk_bench.analysis.erf.gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

Place = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """One convolution on one channel.

    Attributes:
        weight: (Sh, Sw), the stored kernel; without kernel offsets its own taps are read in its middle.
        kernel_size: (Kh, Kw), the taps.
        stride, padding: of the convolution, the same along both axes.
        kernel_offset: (Kh, Kw, 2, Hout, Wout), samples; None: the taps rest.
        data_offset: (Kh, Kw, 2, Hout, Wout), pixels; None: the places rest.
        only: the one tap (row, column) that is there; None: all are.
        active: (Hout, Wout), whether a rectified unit passes what it reads; None: all do, the layer is linear.
    """

    weight: np.ndarray
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    kernel_offset: np.ndarray | None = None
    data_offset: np.ndarray | None = None
    only: Place | None = None
    active: np.ndarray | None = None

    def steps(self, unit: Place) -> Iterator[tuple[Place, float]]:
        """Tells where each tap of a unit reads the layer below, and what it weighs; places may lie outside the map."""
        if self.active is not None and not self.active[unit]:
            return
        for tap in [self.only] if self.only else np.ndindex(*self.kernel_size):
            weight = self._weight(tap, unit)
            moved = (0.0, 0.0) if self.data_offset is None else self.data_offset[tap][:, unit[0], unit[1]]
            y, x = (unit[axis] * self.stride - self.padding + tap[axis] + moved[axis] for axis in (0, 1))
            for place, part in _around(y, x):
                yield place, weight * part

    def _weight(self, tap: Place, unit: Place) -> float:
        """Returns the stored kernel where the tap reads it, clipped to the scope: W[k + dk]."""
        moved = (0.0, 0.0) if self.kernel_offset is None else self.kernel_offset[tap][:, unit[0], unit[1]]
        y, x = (
            min(max(tap[axis] + (scope - size) / 2 + moved[axis], 0.0), scope - 1.0)
            for axis, (scope, size) in enumerate(zip(self.weight.shape, self.kernel_size, strict=True))
        )
        # at the edge of the scope a part of zero falls outside
        return sum(part * self.weight[place] for place, part in _around(y, x) if part)


def _around(y: float, x: float) -> Iterator[tuple[Place, float]]:
    """Gives the four samples around a point and the shares of linear interpolation (B)."""
    top, left = math.floor(y), math.floor(x)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        yield (row, column), (1 - abs(y - row)) * (1 - abs(x - column))


def field(layers: list[Layer], sizes: list[tuple[int, int]], unit: Place) -> np.ndarray:
    """Returns the field of a unit of the last layer, R(.; unit): (H, W) of the image.

    Args:
        layers: first to last.
        sizes: (H, W) of what each layer reads, the first is the image's. Outside lies zero (padding): a path that leads
            there ends.
    """
    seen = np.zeros(sizes[0])
    if not layers:
        seen[unit] = 1.0
        return seen
    *below, last = layers
    height, width = sizes[len(below)]
    for (row, column), weight in last.steps(unit):
        if weight and 0 <= row < height and 0 <= column < width:
            seen += weight * field(below, sizes, (row, column))
    return seen


def split(layers: list[Layer], sizes: list[tuple[int, int]], unit: Place, at: int) -> dict[Place, np.ndarray]:
    """Returns R(.; unit) by the taps of layer ``at``, counted from 0: the field with that one tap in the layer's place.

    Their sum is :func:`field`.
    """
    return {
        tap: field([*layers[:at], replace(layers[at], only=tap), *layers[at + 1 :]], sizes, unit)
        for tap in np.ndindex(*layers[at].kernel_size)
    }
