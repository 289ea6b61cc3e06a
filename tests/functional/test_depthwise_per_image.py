"""The compiled depthwise convolution with a kernel for every image: against the reference, derivatives, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch
from per_image_cases import GEOMETRY, MASKS, check_random_case, operands
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transform_cases import check_every_mapping, check_gradients, same

from dk_bench import reference
from dk_bench.nn import CondConv2d, GlobalDeformKernel2d

op = torch.ops.dk_bench.depthwise_conv_per_image
backward_op = torch.ops.dk_bench.depthwise_conv_per_image_backward


@pytest.mark.parametrize("seed", range(120))
def test_random_case(seed):
    check_random_case(seed)


def test_equal_kernels_are_a_convolution():
    x, weight = operands()
    weight = weight[:1].expand(2, -1, -1, -1)
    expected = nn.functional.conv2d(x, weight[0].unsqueeze(1), None, **GEOMETRY, groups=3)
    same(op(x, weight, *GEOMETRY.values()), expected)
    same(reference.depthwise_conv_per_image(x, weight, **GEOMETRY), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_chosen_and_do_not_depend_on_threads(dtype, layout):
    """What is not wanted is empty, the rest keeps its bits; the fake operator tells sizes and strides."""
    given = operands(dtype, layout, channels=130)
    output = op(*given, *GEOMETRY.values())
    grad = torch.randn_like(output)
    full = backward_op(grad, *given, *GEOMETRY.values(), False)
    before = torch.get_num_threads()
    for mask, threads in itertools.product(MASKS, (1, 3)):
        try:
            torch.set_num_threads(threads)
            part = backward_op(grad, *given, *GEOMETRY.values(), False, False, mask)
            assert torch.equal(op(*given, *GEOMETRY.values()), output)
        finally:
            torch.set_num_threads(before)
        for wanted, p, f in zip(mask, part, full, strict=True):
            assert torch.equal(p, f) if wanted else p.shape == (0,)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(t) for t in (grad, *given)]
            fake = backward_op(*fakes, *GEOMETRY.values(), False, False, mask)
        assert [(t.shape, t.stride(), t.dtype) for t in fake] == [(t.shape, t.stride(), t.dtype) for t in part]
    assert output.stride(1) == (1 if layout == "channels_last" else output[0, 0].numel())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout):
    given = operands(torch.float32, layout)
    torch.library.opcheck(op, (*(t.requires_grad_() for t in given), *GEOMETRY.values()))
    grad = torch.randn_like(op(*given, *GEOMETRY.values())).detach()
    torch.library.opcheck(backward_op, (grad, *(t.detach() for t in given), *GEOMETRY.values(), False))


def test_derivatives():
    check_gradients(lambda *t: op(*t, *GEOMETRY.values()), operands())


def test_vmap():
    given = operands()
    check_every_mapping(lambda *t: op(*t, *GEOMETRY.values()), given)
    grad = torch.randn_like(op(*given, *GEOMETRY.values()))
    check_every_mapping(lambda *t: backward_op(*t, *GEOMETRY.values(), False), (grad, *given))


def test_no_images_give_gradients_of_no_images():
    x, weight = (t[:0].requires_grad_() for t in operands())
    op(x, weight, *GEOMETRY.values()).sum().backward()
    assert x.grad.shape == x.shape and weight.grad.shape == weight.shape


def test_autocast():
    x, weight = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op(x, weight, *GEOMETRY.values()), op(x.bfloat16(), weight.bfloat16(), *GEOMETRY.values()))
        assert op(x.double(), weight.double(), *GEOMETRY.values()).dtype == torch.float64


@pytest.mark.parametrize("mask", MASKS)
def test_flops_are_a_convolutions(mask):
    """And once more for each gradient that is wanted."""
    x, weight = operands()
    with FlopCounterMode(display=False) as rigid:
        nn.functional.conv2d(x, weight[0].unsqueeze(1), None, **GEOMETRY, groups=3)
    with FlopCounterMode(display=False) as ours:
        output = op(x, weight, *GEOMETRY.values())
        backward_op(output, x, weight, *GEOMETRY.values(), False, False, mask)
    assert ours.get_total_flops() == (1 + sum(mask)) * rigid.get_total_flops() > 0


FAULTS = [
    (0, torch.randn(3, 5, 6), r"input: expected \(N, C, H, W\), got shape \(3, 5, 6\)"),
    (0, torch.randn(2, 3, 0, 6), "input: expected H, W >= 1"),
    (0, torch.ones(2, 3, 5, 6, dtype=torch.int32), "input: expected a floating dtype"),
    (1, torch.randn(3, 3, 2, 3), r"weight: expected \(N, C, Kh, Kw\) with N = 2 .* got shape \(3, 3, 2, 3\)"),
    (1, torch.randn(2, 4, 2, 3), r"weight: expected .* C = 3 channels .* got shape \(2, 4, 2, 3\)"),
    (1, torch.randn(2, 3, 2, 0), "weight: expected .* Kh, Kw >= 1"),
    (1, torch.randn(2, 3, 2, 3).double(), "weight: expected dtype (torch.)?float32, got (torch.)?float64"),
    (1, torch.randn(2, 3, 6, 3), r"input: the padded size \(7, 6\) is smaller than the \(11, 3\) pixels"),
    (2, (0, 1), r"stride: expected values of at least 1, got \(0, 1\)"),
    (3, (-1, 1), r"padding: expected values of at least 0, got \(-1, 1\)"),
    (4, (1, 0), r"dilation: expected values of at least 1, got \(1, 0\)"),
]


@pytest.mark.parametrize(("position", "value", "message"), FAULTS)
def test_fault_is_named(position, value, message):
    """By the compiled operator, the fake one and the reference."""
    arguments = [*operands(torch.float32), *GEOMETRY.values()]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        op(*arguments)
    with pytest.raises(ValueError, match=message):
        reference.depthwise_conv_per_image(*arguments[:2], **dict(zip(GEOMETRY, arguments[2:], strict=True)))
    with FakeTensorMode() as mode, pytest.raises((RuntimeError, ValueError), match=message):
        op(*(mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in arguments))


class Copies(TorchDispatchMode):
    """Counts the elements that are copied from one place to another."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._reshape_copy):
            self.elements += result.numel()
        return result


@pytest.mark.parametrize(
    ("kind", "options", "kernel_size", "groups"),
    [
        (GlobalDeformKernel2d, {"scope": 4}, 3, 32),
        (CondConv2d, {"experts": 3}, 3, 32),
        (CondConv2d, {"experts": 3}, 1, 1),
    ],
)
def test_a_training_step_rearranges_neither_images_nor_kernels(kind, options, kernel_size, groups):
    """In channels_last, and what comes before the module gets its gradient in that form."""
    module = kind(
        in_channels=32,
        out_channels=32,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
        **options,
    )
    x = torch.randn(4, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    seen = []
    before = x * 2
    before.register_hook(seen.append)
    grad = torch.randn(4, 32, 16, 16).to(memory_format=torch.channels_last)
    with Copies() as copies:
        module(before).backward(grad)
    assert [g.is_contiguous(memory_format=torch.channels_last) for g in seen] == [True]
    assert copies.elements < 4 * 32 * 32  # the kernels of a 1x1 convolution; an image has 8,192


def test_modules_map_and_differentiate_as_without_the_operator():
    """Under vmap, where images are mapped one by one, the results are those of the batch."""
    module = GlobalDeformKernel2d(4, 6, 6, 3, 1, 1, groups=6).double()
    nn.init.normal_(module.kernel_offset.weight)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    same(vmap(module)(x), module(x))


@pytest.mark.parametrize("images", [3, 0])
def test_derivatives_of_pointwise_kernels_in_channels_last(images):
    """Batches of gradients and second derivatives as well; without images there are gradients of no images."""
    module = CondConv2d(2, 3, 4, 1).double()
    nn.init.normal_(module.routing.weight)
    x = torch.randn(3, 3, 2, 3, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    if images:
        assert gradcheck(call, (x, *parameters), check_batched_grad=True, fast_mode=True)
        assert gradgradcheck(call, (x, *parameters), fast_mode=True)
    else:
        assert torch.autograd.grad(call(x[:0], *parameters).sum(), x)[0].shape == x.shape
