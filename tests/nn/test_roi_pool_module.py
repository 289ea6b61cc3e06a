"""Deformable RoI pooling as a module, with the head that says where its bins look."""

from __future__ import annotations

import pytest
import torch
from roi_cases import random_boxes
from torchvision.ops import roi_align

from dk_bench.nn import DeformRoIPool, OffsetGenerator, RoIOffsetHead, offset_parameter_names


@pytest.mark.parametrize("modulated", [False, True])
def test_module_starts_as_roi_align_and_learns(modulated):
    torch.manual_seed(0)
    module = DeformRoIPool(4, 3, 0.25, 2, modulated=modulated, hidden=16)
    x, rois = torch.randn(2, 4, 12, 12), random_boxes(6, 2, 40, torch.Generator().manual_seed(0)).float()
    expected = roi_align(x, rois, 3, 0.25, 2, True)
    torch.testing.assert_close(module(x, rois), expected, rtol=1e-6, atol=1e-6)
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(3):
        optimiser.zero_grad()
        module(x, rois).square().sum().backward()
        optimiser.step()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())
    assert (module(x, rois) - expected).abs().max() > 1e-3
    assert offset_parameter_names(module) == {"head.data_offset.weight", "head.data_offset.bias"}
    assert isinstance(module.head.data_offset, OffsetGenerator)


def test_module_has_the_papers_layers():
    with torch.device("meta"):
        head = RoIOffsetHead(256, 7, modulated=True)
    shapes = [tuple(p.shape) for name, p in head.named_parameters() if name.endswith("weight")]
    assert shapes == [(1024, 256 * 49), (1024, 1024), (3 * 49, 1024)]
    offset, mask = RoIOffsetHead(2, (2, 3), modulated=True, hidden=4)(torch.randn(5, 2, 2, 3))
    assert offset.shape == (5, 2, 2, 3) and not offset.any() and mask.shape == (5, 1, 2, 3) and mask.eq(1).all()


@pytest.mark.parametrize("images, boxes", [(2, 0), (0, 0)])
def test_module_without_boxes(images, boxes):
    module = DeformRoIPool(4, 3, hidden=8, modulated=True)
    module(torch.randn(images, 4, 6, 6), torch.empty(boxes, 5)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_module_under_autocast():
    torch.manual_seed(0)
    module, x = DeformRoIPool(4, 3, hidden=8), torch.randn(1, 4, 6, 6)
    torch.nn.init.normal_(module.head.data_offset.bias)
    rois = torch.tensor([[0.0, 1, 1, 5, 4]])
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, rois)
    torch.testing.assert_close(out, module(x, rois), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"in_channels": 0}, ValueError, "in_channels: expected an int of at least 1, got 0"),
        ({"hidden": 1.5}, ValueError, "hidden: expected an int of at least 1, got 1.5"),
        ({"output_size": 0}, ValueError, "output_size: expected values of at least 1, got 0"),
        ({"output_size": "7"}, TypeError, "output_size: expected an int or a pair of ints, got '7'"),
    ],
    ids=str,
)
def test_module_names_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        DeformRoIPool(**{"in_channels": 4, "output_size": 3, **change})
