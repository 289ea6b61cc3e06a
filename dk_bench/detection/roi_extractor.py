"""Deformable RoI pooling as an mmdet RoI extractor, over the levels of a feature pyramid.

    bbox_roi_extractor=dict(type="dk_bench.DeformRoIExtractor")

in a model with RoIAlign is all that a configuration needs: ``roi_layer`` and all else stay as its base has them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor

from dk_bench.errors import UserError
from dk_bench.functional import deform_roi_pool
from dk_bench.nn import RoIOffsetHead
from dk_bench.registry import MODELS

_KEYS = ("type", "output_size", "sampling_ratio", "aligned")


@MODELS.register_module()
class DeformRoIExtractor(SingleRoIExtractor):
    """Pools each box from the level of its size (as mmdet's SingleRoIExtractor), with bins that move.

    Offsets are fractions of the box's size, so that one head (:class:`dk_bench.nn.RoIOffsetHead`) serves all levels. At
    the start the features are RoIAlign's. ``offset_head.data_offset`` wants a lower learning rate (paper: a hundredth).

    Args:
        roi_layer: mmdet's dictionary for a RoIAlign layer: type (RoIAlign), output_size, sampling_ratio (0) and aligned
            (True).
        out_channels, featmap_strides, finest_scale, init_cfg: as in SingleRoIExtractor.
        gamma: what offsets are multiplied by.
        modulated: learn a factor on each bin too (DCN v2).
        hidden: width of the head's two hidden layers.

    Shape: levels of (N, C, Hi, Wi) and boxes (R, 5) to (R, C, Ph, Pw) in the levels' dtype; R may be 0.

    Raises:
        UserError: roi_layer is of another type or has a key that is not named above.
        ValueError, TypeError: another argument is out of range; the message names it.
    """

    def __init__(
        self,
        roi_layer: dict[str, Any],
        out_channels: int,
        featmap_strides: list[int],
        finest_scale: int = 56,
        gamma: float = 0.1,
        modulated: bool = False,
        hidden: int = 1024,
        init_cfg: Any = None,
    ) -> None:
        super().__init__({**roi_layer, "gamma": gamma}, out_channels, featmap_strides, finest_scale, init_cfg)
        self.offset_head = RoIOffsetHead(out_channels, roi_layer["output_size"], modulated, hidden)

    def build_roi_layers(self, layer_cfg: dict[str, Any], featmap_strides: list[int]) -> list[Callable[..., Tensor]]:
        """Returns the pooling of each level, which has no parameters; mmdet's constructor calls this."""
        given = {key: value for key, value in layer_cfg.items() if key != "gamma"}
        if given.get("type") != "RoIAlign" or "output_size" not in given or not given.keys() <= set(_KEYS):
            expected = f"type='RoIAlign', output_size and at most {', '.join(_KEYS[2:])}"
            raise UserError(f"roi_layer: expected {expected}, got {given}")
        settings = {"sampling_ratio": 0, "aligned": True, **layer_cfg}
        settings.pop("type")
        return [partial(deform_roi_pool, spatial_scale=1 / stride, **settings) for stride in featmap_strides]

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Returns the boxes' features; ``rois`` are (image, x1, y1, x2, y2) in pixels of the image."""
        rois = rois.to(torch.float64 if feats[0].dtype == torch.float64 else torch.float32)  # 16 bits would move them
        # mmdet has no level for a box whose corners are swapped along one axis: the square root is NaN.
        levels = self.map_roi_levels(rois, len(feats)).clamp(0, len(feats) - 1)
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        return self._pool(feats, rois, levels, *self.offset_head(self._pool(feats, rois, levels)))

    def _pool(self, feats: tuple[Tensor, ...], rois: Tensor, levels: Tensor, *moves: Tensor | None) -> Tensor:
        # A level without boxes takes part too, so that every parameter is in the graph of every step.
        chosen = [(levels == level).nonzero().squeeze(1) for level in range(len(feats))]
        pooled = [
            layer(feature, *(None if t is None else t[index] for t in (rois, *moves)))
            for layer, feature, index in zip(self.roi_layers[: len(feats)], feats, chosen, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(chosen).argsort()]
