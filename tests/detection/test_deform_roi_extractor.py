"""The RoI extractor with deformable pooling: one line of an mmdet config, RoIAlign at the start, then it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from dk_bench.detection.roi_extractor import DeformRoIExtractor
from dk_bench.errors import UserError
from dk_bench.nn import offset_parameter_names

TINY = Path(__file__).parents[2] / "configs" / "det" / "_base_" / "tiny.py"
ROI_ALIGN = {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 0}
STRIDES = [4, 8]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def extractor(**changes) -> DeformRoIExtractor:
    arguments = {"roi_layer": ROI_ALIGN, "out_channels": 6, "featmap_strides": STRIDES, "hidden": 16, **changes}
    return DeformRoIExtractor(**arguments)


def levels(dtype=torch.float32) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, 6, 256 // stride, 256 // stride, dtype=dtype, requires_grad=True) for stride in STRIDES)


def boxes(count: int = 12) -> torch.Tensor:
    """Small ones for the first level and large ones for the second, some of them beyond the image."""
    size = torch.tensor([40.0, 180.0]).repeat(count)[:count, None] * (0.5 + torch.rand(count, 2))
    corner = torch.rand(count, 2) * 200 - 30
    return torch.cat((torch.arange(count)[:, None] % 2, corner, corner + size), 1)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("scale", [None, 1.5])
def test_starts_as_mmdets_extractor(scale, modulated):
    rigid = SingleRoIExtractor(ROI_ALIGN, 6, STRIDES)
    feats, rois = levels(), boxes()
    assert set(rigid.map_roi_levels(rois, 2).tolist()) == {0, 1}
    expected = rigid(feats, rois, scale)
    torch.testing.assert_close(extractor(modulated=modulated)(feats, rois, scale), expected, rtol=1e-5, atol=1e-5)


def test_takes_a_single_level():
    feats, rois = levels()[:1], boxes()
    expected = SingleRoIExtractor(ROI_ALIGN, 6, [4])(feats, rois)
    torch.testing.assert_close(extractor(featmap_strides=[4])(feats, rois), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_learns(modulated):
    ours, feats, rois = extractor(modulated=modulated), levels(), boxes()
    assert offset_parameter_names(ours) == {"offset_head.data_offset.weight", "offset_head.data_offset.bias"}
    before = ours(feats, rois)
    optimiser = torch.optim.SGD(ours.parameters(), lr=1.0)
    for _ in range(3):
        optimiser.zero_grad()
        ours(feats, rois).square().sum().backward()
        optimiser.step()
    assert all(p.grad.abs().max() > 0 for p in (*ours.parameters(), *feats))
    assert (ours(feats, rois) - before).abs().max() > 1e-3


@pytest.mark.parametrize("which", ["none", "small", "swapped"])
def test_every_parameter_takes_part_whatever_the_boxes(which):
    """As distributed training needs it: also where a level, or every level, has no boxes."""
    ours, feats = extractor(modulated=True), levels()
    rois = {
        "none": torch.empty(0, 5),
        "small": boxes()[::2],
        "swapped": torch.tensor([[0.0, 50, 10, 20, 90], [1, 10, 10, 60, 70]]),
    }[which]
    out = ours(feats, rois)
    assert out.shape == (len(rois), 6, 3, 3)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (*ours.parameters(), *feats))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_boxes_are_not_rounded_to_16_bits(dtype):
    ours, feats, rois = extractor(), levels(torch.float64), boxes()
    exact = ours.double()(feats, rois)
    out = ours.to(dtype)([f.to(dtype) for f in feats], rois)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)


def detector(**changes):
    config = Config.fromfile(TINY)
    config.merge_from_dict({"model.roi_head.bbox_roi_extractor": changes})
    return MODELS.build(config.model)


def test_one_line_of_a_config():
    """The line changes the extractor alone; a step gives finite losses and gradients, and a prediction runs."""
    model = detector(type="dk_bench.DeformRoIExtractor", hidden=32)
    ours = model.roi_head.bbox_roi_extractor
    assert isinstance(ours, DeformRoIExtractor)
    assert [layer.keywords["spatial_scale"] for layer in ours.roi_layers] == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert ours.offset_head.data_offset.weight.shape == (2 * 7 * 7, 32)
    sample = DetDataSample(
        metainfo={
            "img_shape": (64, 64),
            "ori_shape": (64, 64),
            "scale_factor": (1.0, 1.0),
            "pad_shape": (64, 64),
            "batch_input_shape": (64, 64),
        }
    )
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8, 40, 44]]), labels=torch.tensor([1]))
    images = torch.randn(1, 3, 64, 64)
    losses = model.loss(images, [sample])
    total = sum(
        value.sum() if isinstance(value, torch.Tensor) else sum(v.sum() for v in value)
        for key, value in losses.items()
        if "loss" in key
    )
    total.backward()
    assert total.isfinite() and ours.offset_head.data_offset.bias.grad.abs().max() > 0
    with torch.no_grad():
        (found,) = model.eval().predict(images, [sample])
    assert found.pred_instances.bboxes.isfinite().all()


@pytest.mark.parametrize(
    "layer, message",
    [
        ({"type": "RoIPool", "output_size": 7}, "roi_layer: expected type='RoIAlign'.*RoIPool"),
        ({"type": "RoIAlign"}, "roi_layer: expected type='RoIAlign', output_size"),
        ({**ROI_ALIGN, "pool_mode": "max"}, "roi_layer: expected .*at most sampling_ratio, aligned, got .*pool_mode"),
    ],
)
def test_bad_layer_is_named(layer, message):
    with pytest.raises(UserError, match=message):
        extractor(roi_layer=layer)


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="hidden: expected an int of at least 1, got 0"):
        extractor(hidden=0)
