"""Gradients: against finite differences, and where coordinates are integers (knots) against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dk_bench import functional, reference

BOTH = pytest.mark.parametrize("module", [reference, functional], ids=["reference", "compiled"])


def away_from_knots(*shape: int, rest: float, reach: float) -> Tensor:
    """Offsets for which rest + offset is at least 0.1 away from an integer: finite differences do not cross a kink."""
    whole = torch.randint(-int(reach), int(reach) + 1, shape, dtype=torch.float64)
    return (whole + 0.1 + 0.8 * torch.rand(shape, dtype=torch.float64) - rest % 1).requires_grad_()


def operands(offsets: str, kernel_size, scope, size=(4, 3), out=(4, 3), channels=2):
    torch.manual_seed(0)
    x = torch.randn(1, channels, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels, 1, *scope, dtype=torch.float64, requires_grad=True)
    shape = (1, 2 * kernel_size[0] * kernel_size[1], *out)
    data = away_from_knots(*shape, rest=0, reach=2) if offsets in ("data", "both") else None
    rest = (scope[0] - kernel_size[0]) / 2
    kernel = away_from_knots(*shape, rest=rest, reach=1) if offsets in ("kernel", "both") else None
    return x, data, kernel, weight


SIZES = [((3, 3), (4, 4)), ((1, 3), (2, 2)), ((3, 3), (1, 1))]


@BOTH
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("kernel_size", "scope"), SIZES)
@pytest.mark.parametrize("offsets", ["data", "kernel", "both", "none"])
def test_gradcheck(module, offsets, kernel_size, scope, clip):
    padding = tuple(k // 2 for k in kernel_size)

    def function(*tensors):
        return module.deform_kernel_conv(*tensors, kernel_size=kernel_size, padding=padding, clip=clip)

    fast = module is reference  # one random direction in place of every coordinate
    assert gradcheck(function, operands(offsets, kernel_size, scope, size=(3, 2), out=(3, 2)), fast_mode=fast)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("offsets", ["data", "kernel", "both", "none"])
def test_gradgradcheck(offsets, clip):
    def function(*tensors):
        return functional.deform_kernel_conv(*tensors, kernel_size=(1, 2), padding=(0, 1), stride=(1, 2), clip=clip)

    tensors = operands(offsets, (1, 2), (2, 3), size=(2, 3), out=(2, 2))
    assert gradgradcheck(function, tensors, fast_mode=True)


@BOTH
def test_global_gradcheck(module):
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    offset = away_from_knots(2, 18, rest=0.5, reach=1)
    with torch.no_grad():
        offset[:, 1::2] += 0.5  # along x, S - K is even: taps rest at integers
    assert gradcheck(lambda w, o: module.sample_kernel(w, o, kernel_size=3), (weight, offset))


def kernel_slope(module, weight, dy: float, dx: float, clip: bool) -> tuple[float, list[float]]:
    """One tap over one pixel of value 1: the value read from the kernel, and its derivatives in dy and dx."""
    offset = torch.tensor([dy, dx], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    weight = torch.tensor(weight, dtype=torch.float64)[None, None]
    out = module.local_deform_kernel(
        torch.ones(1, 1, 1, 1, dtype=torch.float64), offset, weight, kernel_size=1, clip=clip
    )
    out.sum().backward()
    return out.item(), offset.grad.flatten().tolist()


COLUMN = [[1.0], [3.0], [10.0]]  # a scope of 3 x 1: the tap rests at y = 1, x = 0


@BOTH
@pytest.mark.parametrize(
    ("dy", "clip", "value", "slope"),
    [
        (-0.5, True, 2, 2),  # between 1 and 3
        (0.0, True, 3, 7),  # on the knot in the middle: to the right, from 3 to 10
        (-1.0, True, 1, 2),  # on the lower bound of the clip: passes, to the right
        (1.0, True, 10, 7),  # on the upper bound: passes, to the left
        (-1.25, True, 1, 0),  # outside: blocked
        (1.25, True, 10, 0),
        (float("inf"), True, 10, 0),
        (float("-inf"), True, 1, 0),
        (0.0, False, 3, 7),
        (1.0, False, 10, -10),  # the last sample: to the right lies zero
        (1.5, False, 5, -10),
        (2.0, False, 0, 0),  # the zero beyond: to the right all is zero
        (-2.0, False, 0, 1),  # the zero before the first sample
        (-2.5, False, 0, 0),
    ],
)
def test_knots_of_the_kernel(module, dy, clip, value, slope):
    """The derivative is that to the right; at the upper edge of a clipped scope that to the left."""
    row = [[v for (v,) in COLUMN]]
    sideways = (0, pytest.approx(0)) if clip else None  # along the axis of size 1
    for weight, at, axis in ((COLUMN, (dy, 0.0), 0), (row, (0.0, dy), 1)):
        read, gradient = kernel_slope(module, weight, *at, clip)
        assert read == pytest.approx(value)
        assert gradient[axis] == pytest.approx(slope)
        if sideways:
            assert gradient[1 - axis] == 0  # a clipped scope of one sample leaves nothing to choose


@BOTH
@pytest.mark.parametrize("offset", [-0.5, 0.0, 0.5])
def test_clipped_scope_of_one_sample_has_no_slope(module, offset):
    assert kernel_slope(module, [[5.0]], offset, offset, clip=True) == (5.0, [0.0, 0.0])


@BOTH
def test_unclipped_scope_of_one_sample_falls_to_zero(module):
    assert kernel_slope(module, [[5.0]], 0.0, 0.25, clip=False) == (3.75, [-3.75, -5.0])


@BOTH
@pytest.mark.parametrize(
    ("dx", "value", "slope"),
    [
        (-2.0, 0, 1),  # the zero before the image: to the right it rises to the first pixel
        (-1.0, 1, 2),  # the first pixel
        (0.0, 3, 7),
        (1.0, 10, -10),  # the last pixel: beyond lies zero
        (1.75, 2.5, -10),
        (2.0, 0, 0),
        (-2.25, 0, 0),
    ],
)
def test_knots_of_the_data(module, dx, value, slope):
    """Pixels 1, 3, 10 and zeros around; the tap of the middle output."""
    for shape, channel in (((1, 1, 1, 3), 1), ((1, 1, 3, 1), 0)):
        x = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64).view(shape)
        offset = torch.zeros(1, 2, *shape[2:], dtype=torch.float64)
        offset[0, channel].view(-1)[1] = dx
        offset.requires_grad_()
        weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        out = module.deform_kernel_conv(x, offset, None, weight, kernel_size=1)
        out.view(-1)[1].backward()
        assert out.view(-1)[1].item() == pytest.approx(value)
        assert offset.grad[0, channel].view(-1)[1].item() == pytest.approx(slope)


@BOTH
def test_zero_offsets_of_a_scope_as_large_as_the_kernel_can_learn(module):
    """Zero-initialised offsets put every tap on a knot, the outer ones on the clip's bounds: all can move."""
    weight = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]], dtype=torch.float64)[None, None]
    offset = torch.zeros(1, 18, 1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    module.local_deform_kernel(x, offset, weight, kernel_size=3).sum().backward()
    down = [[7, 14, 28], [56, 112, 224], [56, 112, 224]]  # to the next row; the last row to the one before
    right = [[1, 2, 2], [8, 16, 16], [64, 128, 128]]
    gradient = offset.grad.view(3, 3, 2)
    assert gradient[..., 0].tolist() == down
    assert gradient[..., 1].tolist() == right
