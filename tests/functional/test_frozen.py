"""Operands that need no gradient cost none; and what deterministic algorithms mean to the operators."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from operator_cases import Case, make_tensors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dk_bench.functional import deform_kernel_conv, deform_roi_pool
from dk_bench.nn import DeformKernelConv2d, offset_parameter_names

GEOMETRY = {"kernel_size": (3, 3), "stride": (1, 2), "padding": (1, 1), "dilation": (1, 1), "clip": True}
MASKS = list(itertools.product((True, False), repeat=4))
backward_op = torch.ops.dk_bench.deform_kernel_conv_backward


class Watch(TorchDispatchMode):
    """Keeps the arguments and results of backward operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if "_backward" in func.name() and func.namespace == "dk_bench":
            self.calls.append((args, results))
        return results


def small(offsets: str, dtype=torch.float32, layout: str = "contiguous", channels: int = 70):
    layouts = (layout,) * 5
    return make_tensors(Case(5, 3, channels, (6, 7), (4, 3), offsets, GEOMETRY, dtype, dtype, layouts, False))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offsets", ["none", "data", "kernel", "both"])
def test_every_choice_of_gradients(offsets, dtype, layout):
    """What is left out is empty; the rest keeps its bits, and the fake operator tells the same sizes."""
    operands, grad = small(offsets, dtype, layout)
    operands = [t if t is None else t.detach() for t in operands]
    full = backward_op(grad, *operands, *GEOMETRY.values(), False)
    for mask in MASKS:
        part = backward_op(grad, *operands, *GEOMETRY.values(), False, False, mask)
        for wanted, p, f in zip(mask, part, full, strict=True):
            assert torch.equal(p, f) if wanted else p.shape == (0,)
        with FakeTensorMode() as mode:
            fakes = [t if t is None else mode.from_tensor(t) for t in (grad, *operands)]
            fake = backward_op(*fakes, *GEOMETRY.values(), False, False, mask)
        assert [(t.shape, t.stride(), t.dtype) for t in fake] == [(t.shape, t.stride(), t.dtype) for t in part]


def test_nothing_flows_back():
    """Without positions the chosen gradients are zero, the others empty."""
    operands, grad = small("both")
    none = [t.detach()[:0] for t in operands[:3]] + [operands[3].detach()]
    results = backward_op(grad[:0], *none, *GEOMETRY.values(), False, False, (True, False, True, True))
    assert [r.shape for r in results] == [none[0].shape, (0,), none[2].shape, none[3].shape] and not results[3].any()


def test_wrong_mask_is_named():
    operands, grad = small("both")
    with pytest.raises(RuntimeError, match="output_mask: expected 4 values, got 2"):
        backward_op(grad, *(t.detach() for t in operands), *GEOMETRY.values(), False, False, (True, True))


@pytest.mark.parametrize("mask", MASKS[1:-1])
def test_autograd_asks_for_what_is_needed(mask):
    operands, grad = small("both", channels=3)
    every = torch.autograd.grad(deform_kernel_conv(*operands, **GEOMETRY), operands, grad)
    for t, wanted in zip(operands, mask, strict=True):
        t.requires_grad_(wanted)
    chosen = [t for t in operands if t.requires_grad]
    with Watch() as watch:
        found = torch.autograd.grad(deform_kernel_conv(*operands, **GEOMETRY), chosen, grad)
    ((_, results),) = watch.calls
    assert [r.numel() > 0 for r in results] == list(mask)
    assert all(torch.equal(f, e) for f, e in zip(found, itertools.compress(every, mask), strict=True))


@pytest.mark.parametrize("frozen", ["generators", "kernel", "nothing"])
def test_modules(frozen):
    """A first layer's images, frozen generators and a frozen kernel."""
    module = DeformKernelConv2d(4, 6, 6, 3, padding=1, groups=6)
    generators = set(offset_parameter_names(module))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(
            not (frozen == "generators" and name in generators or frozen == "kernel" and name == "weight")
        )
    with Watch() as watch:
        module(torch.randn(2, 6, 7, 7)).sum().backward()
    ((_, results),) = watch.calls
    moving = frozen != "generators"
    assert [r.numel() > 0 for r in results] == [False, moving, moving, frozen != "kernel"]


@pytest.mark.parametrize("image, kernel", [(True, False), (False, True), (False, False)])
def test_flops_follow(image, kernel):
    operands, grad = small("kernel", channels=3)
    operands[0].requires_grad_(image)
    operands[3].requires_grad_(kernel)
    out = deform_kernel_conv(*operands, **GEOMETRY)
    with FlopCounterMode(display=False) as counter:
        out.backward(grad)
    assert counter.get_total_flops() == (image + kernel) * 2 * 9 * out.numel()


def test_pooling_asks_for_what_is_needed():
    x, rois = torch.randn(1, 2, 6, 6), torch.tensor([[0.0, 1, 1, 5, 5]])
    offset = torch.randn(1, 2, 2, 2, requires_grad=True)
    with Watch() as watch:
        deform_roi_pool(x, rois, offset, output_size=2).sum().backward()
    ((_, results),) = watch.calls
    assert [r.numel() for r in results] == [0, offset.numel(), 0] and offset.grad.abs().max() > 0


@pytest.mark.parametrize("operator", ["conv", "pool"])
def test_deterministic_algorithms(operator):
    """The CPU is deterministic anyway: no error, no warning, the same bits. CUDA's operators are told which is meant.

    Deterministic algorithms also fill new memory with NaN, which shows what is left unwritten.
    """
    if operator == "conv":
        operands, grad = small("both", channels=3)
        arguments, settings, call = operands, GEOMETRY, deform_kernel_conv
    else:
        x, rois = torch.randn(1, 2, 6, 6, requires_grad=True), torch.tensor([[0.0, 1, 1, 5, 5]])
        operands, grad = [x], torch.randn(1, 2, 2, 2)
        arguments, settings, call = [x, rois], {"output_size": 2}, deform_roi_pool
    expected = torch.autograd.grad(call(*arguments, **settings), operands, grad)
    for warn_only in (False, True):
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        try:
            with warnings.catch_warnings(), Watch() as watch:
                warnings.simplefilter("error")
                found = torch.autograd.grad(call(*arguments, **settings), operands, grad)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
        ((given, _),) = watch.calls
        position = 10 if operator == "conv" else 11
        assert (*given[position:], False)[:2] == (True, warn_only)  # trailing defaults are left out
