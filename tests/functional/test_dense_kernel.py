"""Local deformable kernels on dense convolutions, and the unfolding over the scope: what they compute."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from dense_cases import (
    GROUPS,
    SQUARE,
    backward_op,
    check_dense,
    check_unfold,
    dense,
    dense_case,
    random_dense_case,
    specified,
    unfold,
)
from operator_cases import (
    DTYPES,
    LAYOUTS,
    OFFSETS,
    assert_close,
    forward_backward,
    make_tensors,
    output_size,
    sum_magnitudes,
)
from test_reference import GEOMETRY, check_same, hat
from torchvision.ops import deform_conv2d

from dk_bench import functional, reference
from dk_bench.functional import scope_columns, unfold_bound, unfolded_product

CASES = 500
BOTH = pytest.mark.parametrize("module", [reference, functional], ids=["reference", "compiled"])


def normal(*shape, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def unfolded_by_loops(x, data, kernel, scope, kernel_size, stride, padding, dilation, clip) -> torch.Tensor:
    """Z (N, C, Sh, Sw, Hout, Wout), every sum written out: pixels by the hat, taps by the hat."""
    n, channels, height, width = x.shape
    (kh, kw), (sh, sw) = kernel_size, scope
    size = output_size((height, width), kernel_size, stride, padding, dilation)
    result = torch.zeros(n, channels, sh, sw, *size, dtype=torch.float64)
    pixels = list(itertools.product(range(height), range(width)))
    for b, h, w, i, j in itertools.product(range(n), *map(range, size), range(kh), range(kw)):
        tap = 2 * (i * kw + j)
        moved, read_at = ((0.0, 0.0) if t is None else t[b, tap : tap + 2, h, w].tolist() for t in (kernel, data))
        y, x_ = i + (sh - kh) / 2 + moved[0], j + (sw - kw) / 2 + moved[1]
        if clip:
            y, x_ = min(max(y, 0), sh - 1), min(max(x_, 0), sw - 1)
        row = h * stride[0] - padding[0] + i * dilation[0] + read_at[0]
        column = w * stride[1] - padding[1] + j * dilation[1] + read_at[1]
        read = sum(hat(row - py) * hat(column - px) * x[b, :, py, px] for py, px in pixels)
        for sy, sx in itertools.product(range(sh), range(sw)):
            result[b, :, sy, sx, h, w] += hat(y - sy) * hat(x_ - sx) * read
    return result


@BOTH
@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("kernel_size", "scope", "stride", "padding", "dilation"),
    [
        ((3, 3), (4, 4), (1, 1), (1, 1), (1, 1)),
        ((3, 2), (2, 5), (2, 1), (0, 2), (1, 2)),
        ((1, 1), (2, 2), (1, 2), (0, 0), (1, 1)),
    ],
)
@torch.no_grad()
def test_sums_written_out(module, offsets, clip, kernel_size, scope, stride, padding, dilation, seeded):
    geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    x, size = normal(2, 4, 4, 3), output_size((4, 3), **geometry)
    data, kernel = (
        normal(2, 2 * kernel_size[0] * kernel_size[1], *size, scale=2) if offsets in (name, "both") else None
        for name in ("data", "kernel")
    )
    settings = {**geometry, "clip": clip}
    expected = unfolded_by_loops(x, data, kernel, scope, **settings)
    found = module.scope_unfold(x, kernel, scope=scope, data_offset=data, **settings)
    torch.testing.assert_close(found, expected.reshape(2, 4 * scope[0] * scope[1], -1))
    for groups in (1, 2):
        weight = normal(6, 4 // groups, *scope)
        parts = expected.reshape(2, groups, -1, size[0] * size[1]), weight.reshape(groups, 6 // groups, -1)
        out = (parts[1] @ parts[0]).reshape(2, 6, *size)
        torch.testing.assert_close(module.dense_deform_kernel(x, kernel, weight, data_offset=data, **settings), out)


@pytest.mark.parametrize("seed", range(CASES))
def test_random_case(seed):
    check_dense(random_dense_case(seed))


@pytest.mark.parametrize("seed", range(0, CASES, 3))
def test_random_case_of_unfolding(seed):
    check_unfold(random_dense_case(seed))


def test_random_cases_meet_every_value():
    cases = [random_dense_case(seed) for seed in range(CASES)]
    assert {(c.dtype, c.offsets, c.geometry["clip"]) for c in cases} == set(
        itertools.product(DTYPES, OFFSETS, (True, False))
    )
    assert {c.groups for c in cases if c.channels == 24} == {1, 2, 24} and len(GROUPS) == 3
    assert any(c.groups == c.channels == c.outputs > 1 for c in cases)
    assert sum(c.geometry["kernel_size"] == (1, 1) for c in cases) > 50 and sum(c.batch == 0 for c in cases) >= 5
    for operand in range(5):
        assert {c.layouts[operand] for c in cases} == set(LAYOUTS)


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5), (1, 1)])
def test_at_rest_in_a_scope_of_its_size_it_is_conv2d(module, kernel_size, geometry, groups, seeded):
    x, weight = normal(2, 6, 9, 8), normal(12, 6 // groups, *kernel_size)
    size = output_size(
        (9, 8), kernel_size, *(pair if type(pair) is tuple else (pair,) * 2 for pair in geometry.values())
    )
    rest = torch.zeros(2, 2 * kernel_size[0] * kernel_size[1], *size, dtype=torch.float64)
    for offset in (rest, None):
        expected = F.conv2d(x, weight, groups=groups, **geometry)
        out = module.dense_deform_kernel(x, offset, weight, kernel_size=kernel_size, **geometry)
        check_same(out, expected, (x, weight))


@BOTH
@pytest.mark.parametrize(("kernel_size", "scope"), [((3, 3), (4, 4)), ((3, 1), (5, 2)), ((1, 1), (2, 2))])
def test_at_rest_it_is_conv2d_of_the_kernel_that_taps_read(module, kernel_size, scope, seeded):
    x, weight = normal(2, 4, 7, 6), normal(6, 2, *scope)
    rest = torch.zeros(1, 2 * kernel_size[0] * kernel_size[1], dtype=torch.float64)
    rigid = module.sample_kernel(weight, rest, kernel_size=kernel_size)[0]
    out = module.dense_deform_kernel(x, None, weight, kernel_size=kernel_size, stride=2, padding=1)
    check_same(out, F.conv2d(x, rigid, stride=2, padding=1, groups=2), (x, weight))


@BOTH
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_with_data_offsets_it_is_deform_conv2d(module, geometry, seeded):
    x, weight = normal(2, 6, 9, 8), normal(4, 3, 3, 3)
    offset = normal(2, 18, *F.conv2d(x, weight, groups=2, **geometry).shape[2:], scale=2)
    out = module.dense_deform_kernel(x, None, weight, kernel_size=3, data_offset=offset, **geometry)
    check_same(out, deform_conv2d(x, offset, weight, **geometry), (x, offset, weight))


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_depthwise_it_is_the_depthwise_operator(offsets, layout):
    """The function takes it, bit by bit; the route of dense kernels gives the same up to the order of sums."""
    operands, grad = make_tensors(dense_case(5, 5, 5, offsets, torch.float64, layout=layout))
    x, data, kernel, weight = operands
    expected = functional.deform_kernel_conv(*operands, **SQUARE)
    assert torch.equal(functional.dense_deform_kernel(x, kernel, weight, data_offset=data, **SQUARE), expected)
    check_same(dense(*operands, **SQUARE), expected, [t for t in operands if t is not None])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_pieces_are_one(dtype, layout):
    """A position at a time, seven, an image at a time, all at once; for more outputs than columns too."""
    operands, grad = make_tensors(dense_case(4, 48, 2, "both", dtype, layout=layout, batch=3))
    each = 4 * 12 * (8 if dtype == torch.float64 else 4)  # bytes of a position's columns
    one, *others = (
        forward_backward(dense, operands, grad, {**SQUARE, "memory": memory})
        for memory in (64 << 20, 0, 7 * each, 31 * each, 62 * each)
    )
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, "output or gradient")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_the_same_bits_again(layout):
    operands, grad = make_tensors(dense_case(17, 6, 1, layout=layout))
    one, other = (forward_backward(dense, operands, grad, {**SQUARE, "memory": 20_000}) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_format_is_kept(dtype, memory_format):
    """The gradient of the kernel has the kernel's format, so that the optimiser need not rearrange it."""
    operands, _ = make_tensors(dense_case(dtype=dtype))
    leaves = [t.detach().contiguous(memory_format=memory_format).requires_grad_() for t in operands]
    out = dense(*leaves, **SQUARE)
    out.sum().backward()
    for tensor in (out, *(t.grad for t in leaves)):
        assert tensor.is_contiguous(memory_format=memory_format) and tensor.dtype == dtype
    assert unfold(*leaves[:3], scope=(4, 3), **SQUARE).is_contiguous()


def test_nothing_flows_where_there_are_no_images_or_channels():
    operands, grad = make_tensors(dense_case(batch=0))
    out, *gradients = forward_backward(dense, operands, grad, SQUARE)
    assert out.shape == (0, 6, 6, 5) and not gradients[3].any()
    x, offset = torch.ones(2, 0, 6, 5, requires_grad=True), torch.ones(2, 18, 6, 5, requires_grad=True)
    unfolded = functional.scope_unfold(x, offset, scope=4, kernel_size=3, padding=1)
    unfolded.sum().backward()
    assert unfolded.shape == (2, 0, 30) and x.grad.shape == x.shape and not offset.grad.any()


def test_mask_chooses_gradients():
    """What is left out is empty; the rest keeps its bits."""
    operands, grad = make_tensors(dense_case())
    given = grad, *(t.detach() for t in operands), *SQUARE.values(), 9_000, False, False
    full = backward_op(*given)
    for mask in itertools.product((True, False), repeat=4):
        for wanted, part, whole in zip(mask, backward_op(*given, mask), full, strict=True):
            assert torch.equal(part, whole) if wanted else part.shape == (0,)


@pytest.mark.parametrize("name", ["dense_deform_kernel", "scope_unfold"])
def test_functions_take_what_their_specifications_take(name):
    compiled, specified_ = (inspect.signature(getattr(module, name)).parameters for module in (functional, reference))
    assert {k: p for k, p in compiled.items() if k != "memory"} == dict(specified_)
    assert [*compiled][:2] == ["input", "kernel_offset"]


def test_16_bits_are_rounded_once():
    """Sums are float32: the result is that of the operands in float32, rounded."""
    operands, _ = make_tensors(dense_case(24, 7, 1, dtype=torch.bfloat16))
    out = dense(*operands, **SQUARE)
    exact = specified(*(t.detach().double() for t in operands), **SQUARE)
    assert ((out.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 2])
def test_columns_of_16_bits(groups, layout, monkeypatch):
    """As on CUDA: what is unfolded, and its gradient, are rounded; sums over positions and pieces are float32."""
    real = scope_columns._unfold_op, scope_columns._unfold_backward_op, unfolded_product.multiply

    def unfold_rounded(*arguments):
        wide = arguments[-1].float()
        real[0](*arguments[:-1], wide)
        arguments[-1].copy_(wide)

    def multiply(left, right, out, *, add=False):
        if left.dtype != out.dtype:  # which only CUDA's product does
            left, right = left.float(), right.float()
        real[2](left, right, out, add=add)

    for module in (scope_columns, unfolded_product, unfold_bound):
        monkeypatch.setattr(module, "column_dtype", lambda t: t.dtype)
    monkeypatch.setattr(scope_columns, "_unfold_op", unfold_rounded)
    monkeypatch.setattr(scope_columns, "_unfold_backward_op", lambda grad, *others: real[1](grad.float(), *others))
    monkeypatch.setattr(unfolded_product, "multiply", multiply)
    operands, grad = make_tensors(dense_case(4, 6, groups, dtype=torch.bfloat16, layout=layout))
    found = forward_backward(dense, operands, grad, {**SQUARE, "memory": 4 * 12 * 2 * 11})
    wide = [t.detach().float().requires_grad_() for t in operands]
    expected = forward_backward(specified, wide, grad.float(), SQUARE)
    magnitudes = sum_magnitudes(specified, wide, grad.float(), SQUARE)
    for f, e, m in zip(found, expected, magnitudes, strict=True):
        assert f.dtype == torch.bfloat16
        assert ((f.float() - e).abs() <= 2.0**-7 * (e.abs().max() if m is None else m)).all()
