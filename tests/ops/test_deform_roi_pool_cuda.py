"""Deformable RoI pooling on CUDA: its kernels run by the emulator on the host, and, where there is a GPU, by that."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from emulation import emulated_function, load_emulated
from roi_cases import SETTINGS, Case, check_against_reference, make_tensors, random_case

from dk_bench.functional import deform_roi_pool
from dk_bench.functional.loading import HAS_CUDA

needs_gpu = pytest.mark.skipif(not (HAS_CUDA and torch.cuda.is_available()), reason="needs a GPU and the operators")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    load_emulated("roi", tmp_path_factory)


Emulated = emulated_function("dk_bench_emulated_roi", 4, constants=(1,))


def emulated_pool(*operands, output_size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive):
    settings = output_size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive
    return Emulated.apply(*operands, *settings)


def small(dtype=torch.float32) -> tuple[list, torch.Tensor]:
    boxes = ("inside", "across", "empty")
    return make_tensors(Case(3, 2, 4, 2, (6, 7), boxes, True, True, SETTINGS, dtype, dtype, ("contiguous",) * 4))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("seed", range(112))
def test_random_case(seed):
    check_against_reference(random_case(seed), emulated_pool)


@pytest.mark.usefixtures("emulated")
def test_more_outputs_than_a_block_has_threads():
    boxes = ("inside", "across", "whole") * 4
    case = Case(2, 2, 40, 2, (6, 7), boxes, True, True, SETTINGS, torch.float32, torch.float32, ("channels_last",) * 4)
    check_against_reference(case, emulated_pool)
    check_against_reference(
        replace(case, settings={**SETTINGS, "position_sensitive": True}, out_channels=14), emulated_pool
    )


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("column, value", [(0, 2.0), (0, -1.0), (0, torch.nan), (3, torch.nan), (2, torch.inf)])
def test_bad_box_shows(column, value):
    """Raising would cost a synchronisation; the box's outputs become NaN instead, and nothing is read or written."""
    operands, grad = small()
    rois = operands[1].clone()
    rois[1, column] = value
    operands = [operands[0].detach(), rois, *(t.detach() for t in operands[2:])]
    out = emulated_pool(*operands, **SETTINGS)
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()
    gradients = torch.ops.dk_bench_emulated_roi.backward(grad, *operands, *SETTINGS.values())
    good = [t if i == 0 else t[[0, 2]] for i, t in enumerate(operands)]
    expected = torch.ops.dk_bench_emulated_roi.backward(grad[[0, 2]], *good, *SETTINGS.values())
    assert torch.equal(gradients[0], expected[0])


@pytest.mark.usefixtures("emulated")
def test_nan_offset_shows():
    operands, _ = small()
    offset = operands[2].detach().clone()
    offset[1, 2, 0, 1] = torch.nan  # of the second of two groups
    out = emulated_pool(operands[0].detach(), operands[1], offset, None, **SETTINGS)
    assert out[1, 2:, 0, 1].isnan().all() and out.isnan().sum() == 2


@pytest.mark.usefixtures("emulated")
def test_every_choice_of_gradients():
    """What is left out is empty, and the rest keeps its bits."""
    operands, grad = small()
    operands = [t.detach() for t in operands]
    full = torch.ops.dk_bench_emulated_roi.backward(grad, *operands, *SETTINGS.values())
    for mask in itertools.product((True, False), repeat=3):
        part = torch.ops.dk_bench_emulated_roi.backward(grad, *operands, *SETTINGS.values(), False, False, mask)
        for wanted, p, f in zip(mask, part, full, strict=True):
            assert torch.equal(p, f) if wanted else p.shape == (0,)


@pytest.mark.usefixtures("emulated")
def test_deterministic_algorithms_are_refused_or_warned_of(monkeypatch):
    operands, grad = small()
    out = emulated_pool(*operands, **SETTINGS)
    expected = torch.autograd.grad(out, operands[0], grad, retain_graph=True)[0]
    message = "deform_roi_pool_backward: no deterministic algorithm on CUDA"
    monkeypatch.setattr(Emulated, "determinism", (True, False))
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(out, operands[0], grad, retain_graph=True)
    monkeypatch.setattr(Emulated, "determinism", (True, True))
    with pytest.warns(UserWarning, match=message):
        assert torch.equal(torch.autograd.grad(out, operands[0], grad)[0], expected)


@pytest.mark.usefixtures("emulated")
def test_gathered_gradients_are_deterministic():
    """Those of offset and mask alone are not refused."""
    operands, grad = small()
    arguments = (grad, *(t.detach() for t in operands), *SETTINGS.values())
    backward = torch.ops.dk_bench_emulated_roi.backward
    chosen = backward(*arguments, True, False, (False, True, True))
    assert all(torch.equal(a, b) for a, b in zip(chosen[1:], backward(*arguments)[1:], strict=True))


@pytest.mark.cuda
@needs_gpu
def test_random_cases_on_a_gpu():
    for seed in range(160):
        check_against_reference(random_case(seed), device="cuda")


@pytest.mark.cuda
@needs_gpu
def test_deterministic_algorithms_refuse_the_scatter():
    operands, grad = small()
    there = [t.detach().cuda().requires_grad_(t.requires_grad) for t in operands]
    out = deform_roi_pool(*there, **SETTINGS)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deform_roi_pool_backward: no deterministic algorithm on CUDA"):
            torch.autograd.grad(out, there[0], grad.cuda(), retain_graph=True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="deform_roi_pool_backward: no deterministic algorithm on CUDA"):
            torch.autograd.grad(out, there[0], grad.cuda(), retain_graph=True)
    finally:
        torch.use_deterministic_algorithms(False)
