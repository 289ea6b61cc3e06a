"""Deformable RoI pooling as a module: RoIAlign, a head that says where each bin should look, and the moved bins."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dk_bench.functional import deform_roi_pool
from dk_bench.nn.convolution import check_count, checked_pair
from dk_bench.nn.inputs import check_features
from dk_bench.nn.offsets import RoIOffset
from dk_bench.reference.checks import IntPair

for _step in ("check_features", "deform_roi_pool"):
    torch.fx.wrap(_step)

OPTIONS = ("output_size", "spatial_scale", "sampling_ratio", "gamma", "aligned")  # of the operator


class RoIOffsetHead(nn.Module):
    """Offsets of a box's bins, and factors on them if modulated, from the box's pooled features.

    Two hidden layers of 1024 and a zero-initialised one, fully connected, as Zhu et al. (CVPR 2019, section 3.2) have
    it; Dai et al. (ICCV 2017) have the last layer alone. The factors are twice a sigmoid, so that they start at 1, for
    the reason given at :class:`dk_bench.nn.LocalMask`. The last layer is ``data_offset``, an
    :class:`~dk_bench.nn.OffsetGenerator`; the paper trains it at a hundredth of the learning rate.

    Args:
        in_channels: channels of the pooled features.
        output_size: (Ph, Pw), the bins.
        modulated: predict factors too.
        hidden: width of the hidden layers.

    Shape: (R, C, Ph, Pw) to offsets (R, 2, Ph, Pw) and factors (R, 1, Ph, Pw) or None; R may be 0.

    Raises ValueError or TypeError, which name the argument, for one that is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        output_size: IntPair,
        modulated: bool = False,
        hidden: int = 1024,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("hidden", hidden)
        self.output_size = checked_pair("output_size", output_size, 1)
        self.in_channels, self.modulated = in_channels, modulated
        bins = prod(self.output_size)
        like = {"device": device, "dtype": dtype}
        self.hidden = nn.Sequential(
            nn.Linear(in_channels * bins, hidden, **like),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, **like),
            nn.ReLU(inplace=True),
        )
        self.data_offset = RoIOffset(hidden, (3 if modulated else 2) * bins, **like)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled = check_features(pooled, self.in_channels, self.output_size, type(self).__name__)
        moves = self.data_offset(self.hidden(pooled.flatten(1))).unflatten(1, (-1, *self.output_size))
        return moves[:, :2], 2 * torch.sigmoid(moves[:, 2:]) if self.modulated else None


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling with its offsets' head (Dai et al., ICCV 2017; modulated: Zhu et al., CVPR 2019).

    Starts as RoIAlign with the same arguments.

    Args:
        in_channels: channels of the maps.
        output_size, spatial_scale, sampling_ratio, gamma, aligned: as in :func:`dk_bench.functional.deform_roi_pool`.
        modulated, hidden: as in :class:`RoIOffsetHead`.

    Shape: maps (N, C, H, W) and boxes (R, 5) to (R, C, Ph, Pw); N and R may be 0.

    Raises ValueError or TypeError, which name the argument, for one that is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        output_size: IntPair,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
        aligned: bool = True,
        modulated: bool = False,
        hidden: int = 1024,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head = RoIOffsetHead(in_channels, output_size, modulated, hidden, device, dtype)
        self.output_size = self.head.output_size
        self.spatial_scale, self.sampling_ratio = spatial_scale, sampling_ratio
        self.gamma, self.aligned = gamma, aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return self.pool(input, rois, *self.head(self.pool(input, rois)))

    def pool(self, input: Tensor, rois: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Returns the module's pooling with given offsets and factors; RoIAlign without."""
        return deform_roi_pool(input, rois, offset, mask, **self._options())

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._options().items())
