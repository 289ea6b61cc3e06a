"""The CUDA operator's tensor-core kernels without a GPU: the same source, run on the host by an emulator.

The emulator (tests/emulated/emulator.h) runs every thread of a block, lays out the fragments of mma.m16n8k8 and
m16n8k16 as PTX says, starts shared memory as NaN, rounds as the tensor core does, refuses what no GPU launches and
detects threads that wait for each other. It knows nothing of speed; test_cuda_races.py watches it for races.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from emulation import emulated_function, load_emulated
from operator_cases import (
    FACTOR,
    Case,
    check_against_reference,
    forward_backward,
    largest_errors,
    lay_out,
    make_tensors,
    random_case,
)

from dk_bench import reference

SQUARE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "clip": True}
# TF32 rounds bfloat16's coefficients and products to 11 bits; the others are split and keep float32's precision.
EXTRA = {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 2e-3}


@pytest.fixture(scope="module", autouse=True)
def emulated(tmp_path_factory):
    load_emulated("operator", tmp_path_factory)


Emulated = emulated_function("dk_bench_emulated", 4)


def emulated_conv(*operands, kernel_size, stride, padding, dilation, clip):
    return Emulated.apply(*operands, kernel_size, stride, padding, dilation, clip)


def check(case: Case) -> None:
    check_against_reference(case, emulated_conv, EXTRA[case.dtype])


@pytest.mark.parametrize("seed", [*(seed for seed in range(240) if random_case(seed).dtype != torch.float64), 511])
def test_random_case(seed):
    check(random_case(seed))


@pytest.mark.parametrize("scope", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (9, 9), (3, 6), (12, 2)])
@pytest.mark.parametrize("offsets", ["kernel", "data", "both"])
def test_scopes(scope, offsets):
    """Every number of steps of the inner dimension, with more channels than a block has warps for."""
    layouts = ("channels_last", "contiguous", "channels_last", "contiguous", "channels_last")
    check(Case(5, 2, 264, (3, 4), scope, offsets, SQUARE, torch.float32, torch.float32, layouts, False))


def largest_gap(actual, expected) -> float:
    pairs = [(a.double(), e.double()) for a, e in zip(actual, expected, strict=True) if a is not None]
    return max((a - e).abs().max().item() for a, e in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weight_in_any_memory(dtype):
    """A dense 4 x 4 weight is loaded several values at a time, one of other strides one by one: the same bits."""
    layouts = ("channels_last",) * 5
    for channels, offsets in ((72, "kernel"), (40, "both"), (12, "both")):
        case = Case(8, 1, channels, (3, 5), (4, 4), offsets, SQUARE, dtype, dtype, layouts, False)
        operands, grad = make_tensors(case)
        dense = forward_backward(emulated_conv, operands, grad, SQUARE)
        for layout in ("contiguous", "cropped", "transposed"):
            other = [*operands[:3], lay_out(operands[3].detach(), layout).requires_grad_()]
            assert largest_gap(forward_backward(emulated_conv, other, grad, SQUARE), dense) == 0, layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offsets", ["kernel", "both"])
def test_any_number_of_blocks(offsets, dtype, monkeypatch):
    """How many blocks a device holds decides how tiles are shared out, and on no bit of a result."""
    monkeypatch.setattr(Emulated, "determinism", (True, False))
    layouts = ("channels_last",) * 5
    case = Case(9, 2, 72, (9, 7), (4, 4), offsets, SQUARE, dtype, dtype, layouts, False)  # 8 tiles
    operands, grad = make_tensors(case)
    results = []
    try:
        for blocks in (1, 3, 8, 132):
            torch.ops.dk_bench_emulated.set_resident_blocks(blocks)
            results.append(forward_backward(emulated_conv, operands, grad, SQUARE))
    finally:
        torch.ops.dk_bench_emulated.set_resident_blocks(2)
    assert all(largest_gap(result, results[0]) == 0 for result in results)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (3, 5)])
def test_gradient_of_offsets_in_any_memory(layout, kernel_size):
    """Threads run along channels of the offsets or along positions, whichever is adjacent; taps leave a rest."""
    geometry = {**SQUARE, "kernel_size": kernel_size, "padding": (1, 2)}
    layouts = ("channels_last", layout, layout, "contiguous", "channels_last")
    check(Case(10, 2, 8, (5, 6), (4, 4), "both", geometry, torch.float16, torch.float32, layouts, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_of_several_turns(dtype):
    """More channels than the warps of a block take at a time: the offsets' gradient loads its weight anew."""
    check(Case(11, 1, 1032, (2, 9), (4, 4), "kernel", SQUARE, dtype, dtype, ("channels_last",) * 5, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_contiguous_operands_give_the_same_bits(dtype):
    """They are transposed by tiles of 32 channels and pixels, neither of which divides theirs."""
    results = []
    for layout in ("channels_last", "contiguous"):
        case = Case(5, 2, 37, (7, 9), (4, 4), "kernel", SQUARE, dtype, dtype, (layout,) * 5, False)
        operands, grad = make_tensors(case)
        results.append(forward_backward(emulated_conv, operands, grad, SQUARE))
        assert results[-1][1].is_contiguous() == (layout == "contiguous")
    assert all(a is None or torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("offsets, largest, too_large", [("kernel", (32, 16), (32, 17)), ("both", (20, 12), (21, 12))])
def test_largest_scopes(offsets, largest, too_large):
    """What this path takes fits the shared memory of every GPU, which the emulator checks; what does not, it leaves."""
    case = Case(5, 1, 8, (2, 3), largest, offsets, SQUARE, torch.float32, torch.float32, ("channels_last",) * 5, False)
    check(case)
    operands, grad = make_tensors(dataclasses.replace(case, scope=too_large))
    with pytest.raises(RuntimeError, match="not a call for this path"):
        forward_backward(emulated_conv, operands, grad, SQUARE)


def test_more_channels_than_a_grid_takes():
    """Rejected before anything is launched: the second dimension of a grid ends at 65,535 blocks."""
    channels = 65_536 * 256
    x, weight = torch.zeros(1, 1, 1, 1).expand(1, channels, 1, 1), torch.zeros(1, 1, 1, 1).expand(channels, 1, 3, 3)
    with pytest.raises(RuntimeError, match="not a call for this path"):
        emulated_conv(x, None, None, weight, **SQUARE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordered_scatter(dtype, monkeypatch):
    """The deterministic dL/dinput of data offsets."""
    monkeypatch.setattr(Emulated, "determinism", (True, False))
    layouts = ("channels_last",) * 5
    for channels, size in ((40, (5, 7)), (300, (2, 3))):
        check(Case(6, 3, channels, size, (4, 4), "both", SQUARE, dtype, torch.float32, layouts, False))


def test_nan_offset_shows():
    """Raising would cost a synchronisation on a GPU; the outputs at the offset's position become NaN instead."""
    operands, _ = make_tensors(
        Case(7, 1, 8, (6, 5), (4, 4), "both", SQUARE, torch.float32, torch.float32, ("channels_last",) * 5, False)
    )
    places = ((7, 2, 3), (0, 0, 0))  # of a tap inside the image, and of one outside
    for which, (channel, y, x) in itertools.product((1, 2), places):
        given = [t.detach().clone() for t in operands]
        given[which][0, channel, y, x] = torch.nan
        out = emulated_conv(*given, **SQUARE)
        assert out[0, :, y, x].isnan().all()
        assert not out[0, :, y + 1 :].isnan().any()
    operands[2].data[0, 0, 0, 0] = torch.nan
    assert emulated_conv(operands[0], None, *operands[2:], **SQUARE)[0, :, 0, 0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_splitting_makes_nan(dtype):
    """Beyond 2^114 before sm_90, which the emulator is like: of kernels only float32's are split, of products all."""
    case = Case(7, 1, 8, (6, 5), (4, 4), "kernel", SQUARE, dtype, dtype, ("channels_last",) * 5, False)
    operands, grad = make_tensors(case)
    given = [*operands[:3], operands[3].detach().clone().requires_grad_()]
    given[3].data[3, 0, 1, 1] = 2.0**120
    out = emulated_conv(*given, **SQUARE)
    assert out[:, 3].isnan().all() if dtype == torch.float32 else not out.isnan().any()
    assert not out[:, :3].isnan().any()
    operands[0].data[0, 3, 2, 2] *= 2.0**120
    out, of_input, _, of_offset, of_weight = forward_backward(emulated_conv, operands, grad, SQUARE)
    assert not out.isnan().any() and not of_input.isnan().any()
    assert of_offset.isnan().any() and of_weight[3].isnan().all() and not of_weight[:3].isnan().any()


@pytest.mark.parametrize("scale", [1e3, 1e9, 1e30])
def test_taps_far_outside(scale):
    case = Case(3, 2, 17, (6, 5), (4, 3), "both", SQUARE, torch.float32, torch.float32, ("contiguous",) * 5, False)
    operands, grad = make_tensors(case)
    with torch.no_grad():
        for offset in operands[1:3]:
            offset[:, ::3] *= scale
    actual = forward_backward(emulated_conv, operands, grad, case.geometry)
    expected = forward_backward(reference.deform_kernel_conv, operands, grad, case.geometry)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offsets", ["kernel", "both"])
def test_as_exact_as_pytorchs_convolution(offsets, dtype):
    """The largest errors over many cases, which tests on a GPU compare over 2,000."""
    cases = (dataclasses.replace(random_case(seed), offsets=offsets) for seed in range(112))
    errors = largest_errors((case for case in cases if case.dtype == dtype), emulated_conv, EXTRA[dtype])
    for name, (ours, theirs) in errors.items():
        assert ours <= FACTOR[dtype] * theirs, f"{name}: {ours:.2e}, PyTorch {theirs:.2e}"


@pytest.mark.parametrize("offsets", ["none", "kernel", "data", "both"])
def test_every_choice_of_gradients(offsets):
    """What is left out is empty, and the rest keeps its bits."""
    layouts = ("channels_last", "contiguous", "channels_last", "contiguous", "channels_last")
    case = Case(5, 2, 8, (3, 4), (4, 4), offsets, SQUARE, torch.float32, torch.float32, layouts, False)
    operands, grad = make_tensors(case)
    operands = [t if t is None else t.detach() for t in operands]
    full = torch.ops.dk_bench_emulated.backward(grad, *operands, *SQUARE.values(), True)
    for mask in itertools.product((True, False), repeat=4):
        part = torch.ops.dk_bench_emulated.backward(grad, *operands, *SQUARE.values(), True, False, mask)
        for wanted, p, f in zip(mask, part, full, strict=True):
            assert torch.equal(p, f) if wanted else p.shape == (0,)


def test_long_sums_do_not_drift():
    """The tensor core rounds towards zero: of sums of one sign, every addition would lose a little."""
    geometry = {**SQUARE, "kernel_size": (15, 15), "padding": (7, 7)}
    layouts = ("channels_last",) * 5
    case = Case(4, 1, 8, (4, 8), (4, 4), "kernel", geometry, torch.float32, torch.float32, layouts, False)
    operands, grad = make_tensors(case)
    with torch.no_grad():
        operands[0].abs_()
    exact = [None if t is None else t.detach().double().requires_grad_() for t in operands]
    expected = forward_backward(reference.deform_kernel_conv, exact, grad.abs().double(), geometry)[-1]
    actual = forward_backward(emulated_conv, operands, grad.abs(), geometry)[-1]
    assert ((actual - expected).abs() / expected.abs()).max() < 1e-6
