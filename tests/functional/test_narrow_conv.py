"""The convolution with few outputs that offset generators run as: torch's, with every derivative."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from dk_bench.functional import narrow_conv
from dk_bench.functional.narrow_conv import narrow_conv2d
from dk_bench.nn import LocalMask, LocalOffset

op = torch.ops.dk_bench.narrow_conv
weight_gradient_op = torch.ops.dk_bench.narrow_conv_weight_gradient
GEOMETRY = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}
gradient = torch.ops.aten.convolution_backward


@pytest.fixture(params=[True, False], ids=["ours", "torch"])
def ours(request, monkeypatch):
    """Both ways, also on a processor where the other one is taken."""
    monkeypatch.setattr(narrow_conv, "_has_wide_vectors", lambda: request.param)
    return request.param


def operands(channels: int = 16, outputs: int = 18, size=(6, 7), kernel=(3, 3), images: int = 3):
    generator = torch.Generator().manual_seed(0)
    shapes = (images, channels, *size), (outputs, channels, *kernel)
    made = (torch.randn(s, generator=generator).contiguous(memory_format=torch.channels_last) for s in shapes)
    return *made, torch.randn(outputs, generator=generator)


def same(actual, expected) -> None:
    """Up to the order in which float32 values of about one are summed."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(40))
def test_random_case(seed):
    """Output and weight gradient are those of float64, for any number of threads to the bit."""
    r = random.Random(seed)
    geometry = {
        "stride": (r.choice((1, 2)), r.choice((1, 3))),
        "padding": (r.choice((0, 1, 3)), r.choice((0, 2))),
        "dilation": (r.choice((1, 2)), r.choice((1, 1, 3))),
    }
    kernel = (r.choice((1, 3, 5)), r.choice((1, 2, 3)))
    least = [geometry["dilation"][a] * (kernel[a] - 1) + 1 - 2 * geometry["padding"][a] for a in (0, 1)]
    size = tuple(max(1, v) + r.randrange(14) for v in least)
    x, weight, bias = operands(r.choice((16, 48)), r.choice((1, 5, 9, 18, 36, 50)), size, kernel, r.choice((1, 2, 9)))
    if r.random() < 0.5:
        weight = weight.contiguous()
    wide = [t.double() for t in (x, weight, bias)]
    expected = F.conv2d(*wide, **geometry)
    grad = torch.randn_like(expected, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    mask = (False, True, False)
    expected_gradient = gradient(grad.double(), *wide[:2], None, *geometry.values(), False, (0, 0), 1, mask)[1]
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        try:
            torch.set_num_threads(threads)
            results.append(
                (op(x, weight, bias, *geometry.values()), weight_gradient_op(grad, x, weight, *geometry.values()))
            )
        finally:
            torch.set_num_threads(before)
    for first, second, e in zip(*results, (expected, expected_gradient), strict=True):
        assert torch.equal(first, second) and first.shape == e.shape
        assert (first - e).abs().max() <= 2e-6 * (1 + e.abs().max())
    assert results[0][0].stride(1) == 1


@pytest.mark.parametrize("wanted", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 1)])
def test_gradients(ours, wanted):
    given = [t.requires_grad_(bool(want)) for t, want in zip(operands(), wanted, strict=True)]
    leaves = [t for t in given if t.requires_grad]
    output, expected = narrow_conv2d(*given, **GEOMETRY), F.conv2d(*given, **GEOMETRY)
    assert ("NarrowConv" in type(output.grad_fn).__name__) == ours
    grad = torch.randn_like(output)
    same(output, expected)
    for layout in (grad, grad.contiguous()):
        same(
            torch.autograd.grad(output, leaves, layout, retain_graph=True),
            torch.autograd.grad(expected, leaves, grad, retain_graph=True),
        )


def test_second_derivatives_and_batches_of_gradients(ours):
    given = [t.requires_grad_() for t in operands()]
    results = []
    for function in (narrow_conv2d, F.conv2d):
        output = function(*given, **GEOMETRY)
        first = torch.autograd.grad(output.sin().sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().mean() for g in first), given, allow_unused=True)
        grads = torch.stack([torch.ones_like(output), output.detach()])
        batch = torch.autograd.grad(function(*given, **GEOMETRY), given, grads, is_grads_batched=True)
        results.append([*first, *second, *batch])
    for a, e in zip(*results, strict=True):
        assert (a - e).abs().max() <= 1e-4 * e.abs().max()


def test_transforms_and_autocast_are_torchs(ours):
    given = operands()
    expected = F.conv2d(*given, **GEOMETRY)
    same(vmap(lambda x: narrow_conv2d(x, *given[1:], **GEOMETRY))(given[0]), expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(given[0], torch.ones_like(given[0]))
        tangent = forward_ad.unpack_dual(narrow_conv2d(dual, *given[1:], **GEOMETRY)).tangent
    same(tangent, F.conv2d(torch.ones_like(given[0]), given[1], None, **GEOMETRY))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(narrow_conv2d(*given, **GEOMETRY), F.conv2d(*given, **GEOMETRY))
    same(torch.jit.trace(lambda *t: narrow_conv2d(*t, **GEOMETRY), given)(*given), expected)
    same(narrow_conv2d(given[0][0], *given[1:], **GEOMETRY), expected[0])


def test_opcheck():
    x, weight, bias = operands()
    torch.library.opcheck(op, (x, weight, bias, *GEOMETRY.values()), test_utils=("test_schema", "test_faketensor"))
    grad = torch.randn_like(op(x, weight, None, *GEOMETRY.values()))
    torch.library.opcheck(
        weight_gradient_op, (grad, x, weight, *GEOMETRY.values()), test_utils=("test_schema", "test_faketensor")
    )


def test_generators_count_as_convolutions(ours):
    generator = LocalOffset(16, (3, 3), (1, 1), (1, 1), (1, 1)).to(memory_format=torch.channels_last)
    x = operands()[0].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        generator(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * x.numel() * 18 * 9
    with FakeTensorMode() as mode:
        assert torch.ops.dk_bench.narrow_conv(
            mode.from_tensor(x), mode.from_tensor(generator.weight), None, (1, 1), (1, 1), (1, 1)
        ).shape == (3, 18, 6, 7)


FAULTS = [
    (0, torch.randn(3, 16, 6, 7), "input: expected float32 of the CPU in channels_last"),
    (0, operands()[0].double(), "input: expected float32 .* of float64"),
    (0, operands(channels=8)[0], "input: expected channels in multiples of 16, got 8"),
    (1, torch.randn(18, 8, 3, 3), r"weight: expected .* C = 16 channels .* got shape \(18, 8, 3, 3\)"),
    (1, operands()[1].double(), "weight: expected dtype float32, got float64"),
    (2, torch.randn(17), r"bias: expected \(Cout,\) = \(18\), got \(17\)"),
    (3, (0, 1), r"stride: expected values of at least 1, got \(0, 1\)"),
    (5, (5, 1), "input: the padded size .* is smaller than"),
]


@pytest.mark.parametrize(("position", "value", "message"), FAULTS)
def test_fault_is_named(position, value, message):
    arguments = [*operands(), *GEOMETRY.values()]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        op(*arguments)
    if position != 2:
        with pytest.raises(RuntimeError, match=message):
            weight_gradient_op(torch.randn(3, 18, 4, 3), *arguments[:2], *arguments[3:])


def test_sizes_of_one_may_have_any_strides():
    """They are channels_last to PyTorch whatever the step along them, as is one channel of a contiguous gradient."""
    x, weight, bias = operands()
    column, pixel = x[..., 0].mT.contiguous().mT[..., None], x[:1, :, :1, :1]
    for given in (column, pixel, x[:1, :, :1], x[:1, :, :, :1]):
        for outputs in (1, 18):
            kernel, geometry = weight[:outputs, :, :1, :1], ((1, 1), (0, 0), (1, 1))
            expected = F.conv2d(given.double(), kernel.double(), bias[:outputs].double())
            same(op(given, kernel, bias[:outputs], *geometry), expected.float())
            grad = torch.ones(expected.shape).contiguous(memory_format=torch.channels_last)
            for of_output in (grad, grad.contiguous()) if outputs == 1 else (grad,):
                gradient_of_weight = weight_gradient_op(of_output, given, kernel, *geometry)
                same(gradient_of_weight, given.sum((0, 2, 3))[None, :, None, None].expand_as(kernel))


def test_a_mask_of_one_tap_is_trained(ours):
    """Its one channel of outputs is channels_last and contiguous at once."""
    mask = LocalMask(16, (1, 1), (1, 1), (0, 0), (1, 1))
    x = operands()[0]
    mask(x).contiguous().sum().backward()
    same(mask.weight.grad.flatten(), x.sum((0, 2, 3)) / 2)


def test_no_images_and_wrong_gradients():
    x, weight, bias = operands()
    assert op(x[:0], weight, bias, *GEOMETRY.values()).shape == (0, 18, 4, 3)
    with pytest.raises(RuntimeError, match="grad: expected the output's shape"):
        weight_gradient_op(torch.randn(3, 18, 4, 4), x, weight, *GEOMETRY.values())
