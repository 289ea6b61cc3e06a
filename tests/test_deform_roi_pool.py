"""Deformable RoI pooling: against its reference, RoIAlign at zero offsets, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import ps_roi_align, roi_align

from dk_bench import reference_roi
from dk_bench.functional.deform_roi_pool import deform_roi_pool


def operands(seed, dtype=torch.float64, position_sensitive=False, channels=4, rois=5):
    generator = torch.Generator().manual_seed(seed)
    bins = (2, 3)
    inputs = channels * bins[0] * bins[1] if position_sensitive else channels
    x = torch.randn(2, inputs, 9, 11, generator=generator, dtype=torch.float64)
    corners = 44 * torch.rand(rois, 2, 2, generator=generator, dtype=torch.float64) - 4  # some outside the image
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    if rois > 3:
        boxes[0, 2:] = boxes[0, :2]  # empty
        boxes[1] += 1000  # outside
    index = torch.randint(0, 2, (rois, 1), generator=generator).double()
    offset = torch.randn(rois, 2, *bins, generator=generator, dtype=torch.float64)
    mask = torch.rand(rois, 1, *bins, generator=generator, dtype=torch.float64)
    given = [t.to(dtype) for t in (x, torch.cat([index, boxes], 1), offset, mask)]
    settings = {"output_size": bins, "spatial_scale": 0.25, "position_sensitive": position_sensitive}
    return given, settings


def gradients(function, given, settings):
    x, rois, offset, mask = given
    leaves = [t.detach().clone().requires_grad_() for t in (x, offset, mask)]
    out = function(leaves[0], rois, leaves[1], leaves[2], **settings)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, weights)]


@pytest.mark.parametrize("seed", range(60))
def test_random_cases(seed):
    given, settings = operands(seed, position_sensitive=seed % 3 == 0, channels=1 + seed % 5, rois=1 + seed % 6)
    settings |= {"sampling_ratio": seed % 4, "aligned": seed % 2 == 0, "gamma": 0.1 * (1 + seed % 2)}
    if seed % 5 == 0:
        given[0] = given[0].contiguous(memory_format=torch.channels_last)
    actual = gradients(deform_roi_pool, given, settings)
    expected = gradients(reference_roi.deform_roi_pool, given, settings)
    for name, a, e in zip(("output", "input", "offset", "mask"), actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_zero_offsets_are_roi_align(aligned, sampling_ratio):
    (x, rois, offset, _), settings = operands(1)
    ours = deform_roi_pool(x, rois, 0 * offset, aligned=aligned, sampling_ratio=sampling_ratio, **settings)
    theirs = roi_align(x, rois, (2, 3), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_zero_offsets_are_position_sensitive_roi_align():
    (x, rois, _, _), settings = operands(2, position_sensitive=True)
    rois[0, 3:] += 1  # ps_roi_align has no empty boxes
    ours = deform_roi_pool(x, rois, aligned=True, sampling_ratio=2, **settings)
    torch.testing.assert_close(ours, ps_roi_align(x, rois, (2, 3), 0.25, 2), rtol=1e-9, atol=1e-9)


def test_gradcheck():
    (x, rois, offset, mask), settings = operands(3, rois=3)

    def function(x, offset, mask):
        return deform_roi_pool(x, rois, offset, mask, sampling_ratio=2, **settings)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (x, offset, mask)])


@pytest.mark.parametrize(("name", "value", "message"), [
    ("rois", torch.zeros(3, 4), "rois: expected"),
    ("offset", torch.zeros(3, 2, 2, 2), "offset: expected"),
    ("mask", torch.zeros(5, 2, 2, 3), "mask: expected"),
    ("input", torch.zeros(4, 9, 11), "input: expected"),
])
def test_fault_is_named(name, value, message):
    given, settings = operands(4, torch.float32)
    arguments = dict(zip(("input", "rois", "offset", "mask"), given, strict=True))
    with pytest.raises((RuntimeError, ValueError), match=message):
        deform_roi_pool(**{**arguments, name: value}, **settings)
