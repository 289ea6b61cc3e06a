"""Deformable RoI pooling: the compiled operator against the reference, RoIAlign and finite differences."""

from __future__ import annotations

import pytest
import torch
from operator_cases import LAYOUTS, assert_close, check_any_number_of_threads
from roi_cases import (
    BOXES,
    SETTINGS,
    Case,
    check_against_reference,
    forward_backward,
    make_tensors,
    random_boxes,
    random_case,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import ps_roi_align, roi_align

from dk_bench import reference
from dk_bench.functional import deform_roi_pool
from dk_bench.models.cost import count_cost
from dk_bench.nn import DeformRoIPool
from dk_bench.reference.checks import NotFinite

op, backward_op = torch.ops.dk_bench.deform_roi_pool, torch.ops.dk_bench.deform_roi_pool_backward


def small(dtype=torch.float64, layout="contiguous", **settings) -> tuple[list, torch.Tensor, dict]:
    """Operands of one call with offsets of two groups and a mask, the output's gradient, and the settings."""
    settings = {**SETTINGS, **settings}
    case = Case(3, 2, 4, 2, (6, 7), ("inside", "across", "empty"), True, True, settings, dtype, dtype, (layout,) * 4)
    return *make_tensors(case), settings


@pytest.mark.parametrize("seed", range(224))
def test_random_case(seed):
    check_against_reference(random_case(seed))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_in_several_blocks(layout):
    """More channels than a piece of dL/dinput has, and groups that end inside a piece."""
    for sensitive in (False, True):
        settings = {**SETTINGS, "position_sensitive": sensitive}
        case = Case(5, 2, 75, 3, (5, 6), BOXES[:5], True, True, settings, torch.float32, torch.float32, (layout,) * 4)
        check_against_reference(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("how", ["none", "zero"])
def test_equals_roi_align_where_nothing_moves(how, aligned, ratio, dtype):
    """Output and gradient, to the last few bits of a sum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 20, 24, generator=generator, dtype=dtype, requires_grad=True)
    rois = random_boxes(60, 2, 80, generator).to(dtype)
    still = (None, None) if how == "none" else (x.new_zeros(60, 2, 3, 4), x.new_ones(60, 1, 3, 4))
    out = deform_roi_pool(
        x, rois, *still, output_size=(3, 4), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned
    )
    expected = roi_align(x, rois, (3, 4), 0.25, ratio, aligned)
    bits = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected, rtol=bits, atol=bits)
    grad = torch.randn(out.shape, generator=generator, dtype=dtype)
    gradients = [torch.autograd.grad(o, x, grad)[0] for o in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=8 * bits, atol=8 * bits)


@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_position_sensitive_roi_align(ratio):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5 * 12, 20, 24, generator=generator, dtype=torch.float64)
    rois = random_boxes(40, 2, 80, generator)
    rois[:, 3:] += 1  # torchvision divides by zero samples
    out = deform_roi_pool(
        x, rois, output_size=(3, 4), spatial_scale=0.25, sampling_ratio=ratio, position_sensitive=True
    )
    torch.testing.assert_close(out, ps_roi_align(x, rois, (3, 4), 0.25, ratio or -1), rtol=1e-14, atol=1e-14)


def test_offset_moves_a_bin_by_a_fraction_of_the_box():
    """An offset of (1, -2) at gamma 0.1 is 0.1 heights down and 0.2 widths left: RoIAlign of the moved box."""
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    rois = torch.tensor([[0.0, 8, 6, 18, 26]], dtype=torch.float64)
    offset = torch.tensor([1.0, -2.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    out = deform_roi_pool(x, rois, offset, output_size=2, spatial_scale=0.5, sampling_ratio=2)
    moved = torch.tensor([[0.0, 8 - 2, 6 + 2, 18 - 2, 26 + 2]], dtype=torch.float64)
    torch.testing.assert_close(out, roi_align(x, moved, 2, 0.5, 2, True))


def test_groups_of_channels_move_apart():
    (x, rois, offset, mask), _, settings = small()
    out = deform_roi_pool(x, rois, offset, mask, **settings)
    for group in (0, 1):
        part = deform_roi_pool(
            x[:, 2 * group : 2 * group + 2], rois, offset[:, 2 * group : 2 * group + 2], mask, **settings
        )
        torch.testing.assert_close(out[:, 2 * group : 2 * group + 2], part)


@pytest.mark.parametrize("sensitive", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradcheck(aligned, ratio, sensitive):
    (x, rois, offset, mask), _, settings = small(
        output_size=(2, 2), aligned=aligned, sampling_ratio=ratio, position_sensitive=sensitive
    )
    offset, mask = (
        t[..., :2, :2].detach().contiguous().requires_grad_()
        for t in (torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64))
    )
    x = torch.randn(2, 16 if sensitive else 4, 6, 7, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *t: deform_roi_pool(t[0], rois, *t[1:], **settings), (x, offset, mask))


@pytest.mark.parametrize("seed", range(30))
def test_fuzzed_boxes(seed):
    """Hundreds of boxes of every kind and size: finite values no larger than the map's, finite gradients, same result
    for the boxes one by one."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 300, (), generator=generator))
    x = torch.randn(2, 3, 9, 11, generator=generator, requires_grad=True)
    scale = 10.0 ** torch.randint(-3, 9, (count, 1), generator=generator)
    corners = torch.randn(count, 4, generator=generator) * scale
    rois = torch.cat((torch.randint(0, 2, (count, 1), generator=generator), corners), 1)
    offset = torch.randn(count, 2, 2, 2, generator=generator).mul_(10).requires_grad_()
    settings = {"output_size": 2, "spatial_scale": 0.25, "sampling_ratio": seed % 3, "aligned": seed % 2 == 0}
    out = deform_roi_pool(x, rois, offset, **settings)
    assert out.isfinite().all() and out.abs().max() <= x.abs().max() * (1 + 1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (x, offset)))
    for r in range(0, count, 17):
        assert torch.equal(deform_roi_pool(x, rois[r : r + 1], offset[r : r + 1], **settings)[0], out[r])


def test_box_much_larger_than_the_map_takes_no_longer():
    """A billion samples along each axis, nearly all off the map. The average over them is next to nothing."""
    rois = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9]], dtype=torch.float64)
    out = deform_roi_pool(torch.ones(1, 1, 8, 8, dtype=torch.float64), rois, output_size=1)
    # The map's share of the box: 8 x 8 pixels and its edge, one pixel all around, up to where samples fall.
    assert 81 <= out.item() * (2e9) ** 2 <= 121


@pytest.mark.parametrize("images, boxes", [(2, 0), (0, 0)])
@pytest.mark.parametrize("sensitive", [False, True])
def test_no_boxes(images, boxes, sensitive):
    x = torch.randn(images, 12, 5, 6, requires_grad=True)
    offset, mask = (torch.randn(boxes, c, 2, 3, requires_grad=True) for c in (2, 1))
    out = deform_roi_pool(x, torch.empty(boxes, 5), offset, mask, output_size=(2, 3), position_sensitive=sensitive)
    assert out.shape == (0, 2 if sensitive else 12, 2, 3)
    gradients = torch.autograd.grad(out.sum(), (x, offset, mask))
    assert [g.shape for g in gradients] == [x.shape, offset.shape, mask.shape] and not gradients[0].any()


def test_boxes_get_no_gradient():
    (x, rois, offset, mask), _, settings = small()
    rois.requires_grad_()
    deform_roi_pool(x, rois, offset, mask, **settings).sum().backward()
    assert rois.grad is None and x.grad.abs().max() > 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_is_the_same_for_any_number_of_threads(dtype, layout):
    boxes = ("inside", "across", "whole", "inside") * 10
    case = Case(4, 3, 70, 2, (9, 11), boxes, True, True, {**SETTINGS, "sampling_ratio": 0}, dtype, dtype, (layout,) * 4)
    operands, grad = make_tensors(case)
    check_any_number_of_threads(lambda: forward_backward(deform_roi_pool, operands, grad, case.settings))


@pytest.mark.parametrize("given", ["all", "none"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
def test_opcheck(layout, given):
    (x, rois, offset, mask), grad, settings = small(layout=layout)
    if given == "none":
        offset = mask = None
    arguments = (x, rois, offset, mask, *settings.values())
    torch.library.opcheck(op, arguments)
    plain = [None if t is None else t.detach() for t in (x, rois, offset, mask)]
    torch.library.opcheck(backward_op, (grad, *plain, *settings.values(), False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_tensors_have_the_strides_of_real_ones(layout):
    (x, rois, offset, mask), grad, settings = small(torch.float32, layout)
    plain = [t.detach() for t in (grad, x, rois, offset, mask)]
    real = [op(*plain[1:], *settings.values()), *backward_op(*plain, *settings.values(), False)]
    with FakeTensorMode() as mode:
        f = [mode.from_tensor(t) for t in plain]
        fake = [op(*f[1:], *settings.values()), *backward_op(*f, *settings.values(), False)]
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


def test_compiles_as_one_graph_for_any_number_of_boxes():
    function = torch.compile(
        lambda *t: deform_roi_pool(*t, **SETTINGS).sin(), backend="aot_eager", fullgraph=True, dynamic=True
    )
    graphs = []
    for count in (3, 5, 9):
        x = torch.randn(2, 4, 6, 7, requires_grad=True)
        rois = random_boxes(count, 2, 14, torch.Generator().manual_seed(count)).float()
        offset, mask = (torch.randn(count, c, 2, 3, requires_grad=True) for c in (2, 1))
        pairs = []
        for out in (function(x, rois, offset, mask), deform_roi_pool(x, rois, offset, mask, **SETTINGS).sin()):
            pairs.append((out, *torch.autograd.grad(out.sum(), (x, offset, mask))))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2]


def test_autocast_leaves_coordinates_alone():
    """The map keeps its dtype, and boxes and offsets of another become float32, never 16 bits."""
    (x, rois, offset, mask), _, settings = small(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = deform_roi_pool(x.bfloat16(), rois.double(), offset, mask.bfloat16(), **settings)
        same = deform_roi_pool(x, rois, offset, mask, **settings)
    assert out.dtype == torch.bfloat16 and same.dtype == torch.float32
    assert torch.equal(out, deform_roi_pool(x.bfloat16(), rois, offset, mask.bfloat16(), **settings))
    assert torch.equal(same, deform_roi_pool(x, rois, offset, mask, **settings))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), (x, offset, mask)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_results_are_rounded_once(dtype):
    """Coordinates and sums are float32: the result is the rounded one of the same values in float32."""
    (x, rois, offset, mask), grad, settings = small(dtype)
    operands = [x, rois.float(), offset, mask]
    wide = [t.detach().float().requires_grad_(t.requires_grad) for t in operands]
    narrow = forward_backward(deform_roi_pool, operands, grad, settings)
    for name, a, e in zip("oidm", narrow, forward_backward(deform_roi_pool, wide, grad.float(), settings), strict=True):
        assert a.dtype == dtype
        assert_close(a, e, name)


def test_counts():
    """0 in torch, as pooling; interpolation apart: 4 multiply-adds a sample, channel and bin."""
    (x, rois, offset, mask), _, settings = small(torch.float32)
    with FlopCounterMode(display=False) as counter:
        deform_roi_pool(x, rois, offset, mask, **settings).sum().backward()
    assert counter.get_total_flops() == 0
    assert any("deform_roi_pool" in str(name) for name in counter.get_flop_counts()["Global"])

    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = DeformRoIPool(4, 3, sampling_ratio=2, hidden=8)

        def forward(self, x):
            return self.pool(x, x.new_zeros(5, 5))

    cost = count_cost(Pool(), (4, 6, 6))
    assert cost.sampling_macs == 2 * (4 * 2**2 * 5 * 4 * 9)  # pooled twice
    assert cost.macs == 5 * (4 * 9 * 8 + 8 * 8 + 8 * 2 * 9)


FAULTS = [
    ("input", torch.randn(4, 6, 7), r"input: expected \(N, C, H, W\), got shape \(4, 6, 7\)"),
    ("input", torch.tensor(1.0), r"input: expected \(N, C, H, W\), got shape \(\)"),
    ("input", torch.randn(2, 4, 0, 7), r"input: expected H, W >= 1, got shape \(2, 4, 0, 7\)"),
    ("input", torch.ones(2, 4, 6, 7, dtype=torch.int32), "input: expected a floating dtype"),
    ("rois", torch.zeros(5), r"rois: expected shape \(R, 5\), .* got \(5,?\)"),
    ("rois", torch.zeros(3, 0), r"rois: expected shape \(R, 5\), .* got \(3, 0\)"),
    ("rois", torch.zeros(3, 4), r"rois: expected shape \(R, 5\), .* got \(3, 4\)"),
    ("rois", torch.zeros(3, 5).double(), "rois: expected dtype (torch.)?float32, got (torch.)?float64"),
    ("offset", torch.zeros(3, 3, 2, 3), r"offset: expected shape \(R, 2 G, Ph, Pw\) .* 4 output channels, got \(3, 3,"),
    ("offset", torch.zeros(3, 6, 2, 3), r"offset: expected shape .* a divisor of the 4 output channels"),
    ("offset", torch.zeros(3, 0, 2, 3), r"offset: expected shape .* got \(3, 0, 2, 3\)"),
    ("offset", torch.zeros(4, 2, 2, 3), r"offset: expected shape .* size 3 in dimension 0, got \(4, 2, 2, 3\)"),
    ("offset", torch.zeros(3, 2, 3, 2), r"offset: expected shape .* size 2 in dimension 2, got \(3, 2, 3, 2\)"),
    ("offset", torch.zeros(3, 2, 2, 3).half(), "offset: expected dtype (torch.)?float32, got (torch.)?float16"),
    ("mask", torch.zeros(3, 2, 2, 3), r"mask: expected shape \(R, 1, Ph, Pw\) with size 1 in dimension 1"),
    ("mask", torch.zeros(3, 6), r"mask: expected shape \(R, 1, Ph, Pw\), got \(3, 6\)"),
    ("output_size", (0, 3), r"output_size: expected values of at least 1, got \(0, 3\)"),
    ("spatial_scale", 0.0, "spatial_scale: expected a number above 0, got 0"),
    ("spatial_scale", float("nan"), "spatial_scale: expected a number above 0, got nan"),
    ("sampling_ratio", -1, r"sampling_ratio: expected 0 \(adaptive\) or more, got -1"),
    ("gamma", float("inf"), "gamma: expected a finite number, got inf"),
    ("position_sensitive", True, "input: position-sensitive pooling expects a multiple of Ph Pw = 6 channels, got 4"),
]


def good() -> dict:
    return {
        "input": torch.randn(2, 4, 6, 7),
        "rois": torch.zeros(3, 5),
        "offset": torch.zeros(3, 2, 2, 3),
        "mask": torch.ones(3, 1, 2, 3),
        **SETTINGS,
    }


@pytest.mark.parametrize("how", ["reference", "compiled", "fake"])
@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_fault_is_named(name, value, message, how):
    arguments = {**good(), name: value}
    function = reference.deform_roi_pool if how == "reference" else deform_roi_pool
    if how == "fake":
        with FakeTensorMode() as mode, pytest.raises((RuntimeError, ValueError), match=message):
            function(**{k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()})
        return
    with pytest.raises((RuntimeError, ValueError), match=message):
        function(**arguments)


def test_output_size_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="output_size: expected an int or a pair of ints, got 2.5"):
        deform_roi_pool(**{**good(), "output_size": 2.5})


@pytest.mark.parametrize(
    "row, column, value, message",
    [
        (1, 0, 2.0, "rois: row 1 names image 2 of 2; expected 0 to 1"),
        (0, 0, -1.0, "rois: row 0 names image -1 of 2; expected 0 to 1"),
        (2, 0, torch.nan, "rois: row 2 names image nan of 2"),
        (2, 3, torch.nan, "rois: row 2 has a coordinate that is NaN or infinite"),
        (1, 2, -torch.inf, "rois: row 1 has a coordinate that is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_bad_box_is_an_error_that_tells_which(backward, row, column, value, message):
    arguments = good()
    arguments["rois"][row, column] = value
    kind = NotFinite if "NaN" in message and not backward else RuntimeError
    with pytest.raises(kind, match=message):
        if backward:
            backward_op(torch.zeros(3, 4, 2, 3), *arguments.values(), False)
        else:
            deform_roi_pool(**arguments)


def test_nan_offset_is_an_error_that_tells_where():
    arguments = good()
    arguments["offset"][2, 1, 0, 2] = torch.nan
    with pytest.raises(NotFinite, match=r"offset: NaN at index \(2, 1, 0, 2\)"):
        deform_roi_pool(**arguments)


def test_gradient_of_the_wrong_shape_is_named():
    with pytest.raises(RuntimeError, match=r"grad: expected shape \(R, Cout, Ph, Pw\) with size 4 in dimension 1"):
        backward_op(torch.zeros(3, 5, 2, 3), *good().values(), False)
