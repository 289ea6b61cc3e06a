"""The compiled unfold_columns and its backward operator: against the reference, bits for threads, bounds, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch
from operator_cases import check_any_number_of_threads
from unfold_cases import Call, check_random_piece, unfold, unfold_backward

SETTINGS = [[3, 3], [4, 4], [1, 1], [1, 1], [1, 1], True]


@pytest.mark.parametrize("seed", range(192))
def test_random_pieces(seed):
    """Pieces begin and end inside rows."""
    check_random_piece(seed)


@pytest.mark.parametrize("seed", range(0, 192, 13))
def test_gradients_are_chosen(seed):
    call = Call(seed)
    grad = torch.randn(call.shape, dtype=call.compute, generator=call.generator)
    whole = call.gradients(grad)
    for wanted in itertools.product((False, True), repeat=3):
        for found, expected, want in zip(call.gradients(grad, wanted), whole, wanted, strict=True):
            assert (found is None) == (expected is None or not want)
            assert found is None or torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def operands(batch, channels, side, data, dtype=torch.float32, layout=torch.channels_last):
    generator = torch.Generator().manual_seed(channels)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator).to(dtype).contiguous(memory_format=layout)

    shape = batch, 18, side, side
    return normal(batch, channels, side, side), normal(*shape) if data else None, normal(*shape)


@pytest.mark.parametrize("data", [False, True], ids=["resting", "moving"])
@pytest.mark.parametrize(
    ("batch", "channels", "side", "groups", "first", "count", "dtype", "layout"),
    [
        (3, 200, 14, 2, 50, 400, torch.float32, torch.contiguous_format),
        (2, 64, 30, 1, 77, 900, torch.bfloat16, torch.channels_last),
        (2, 256, 7, 1, 0, 98, torch.float32, torch.channels_last),
        (1, 20, 40, 1, 3, 1500, torch.float64, torch.channels_last),
    ],
)
def test_same_bits_for_any_number_of_threads(batch, channels, side, groups, first, count, dtype, layout, data):
    """Bands of rows share rows of the input, and pieces of channels the offsets."""
    given = operands(batch, channels, side, data, dtype, layout)
    wide = torch.promote_types(dtype, torch.float32)
    grad = torch.randn(groups, count, 16 * channels // groups, dtype=wide)

    def compute():
        columns = torch.empty_like(grad)
        sums = [t if t is None else torch.zeros(t.shape, dtype=wide) for t in given]
        sums[0] = sums[0].contiguous(memory_format=torch.channels_last)
        unfold(*given, *SETTINGS, groups, first, columns)
        unfold_backward(grad, *given, *SETTINGS, groups, first, True, False, *sums)
        return [columns, *(t for t in sums if t is not None)]

    check_any_number_of_threads(compute)


@pytest.mark.parametrize("data", [False, True], ids=["resting", "moving"])
@pytest.mark.parametrize("channels", [5, 16, 33])
def test_nothing_else_is_written(channels, data):
    """Beside the piece's columns and gradients all stays as it was; to what is in grad_input the pass adds."""
    given, first, count = operands(3, channels, 6, data), 41, 20  # inside of the second image
    columns = torch.full((3, count, 16 * channels), 7.0)
    unfold(*given, *SETTINGS, 1, first, columns[1:2])
    assert (columns[0] == 7).all() and (columns[2] == 7).all() and (columns[1] != 7).all()
    sums = [None if t is None else torch.full(t.shape, 7.0) for t in given]
    sums[0] = sums[0].contiguous(memory_format=torch.channels_last)
    unfold_backward(columns[1:2], *given, *SETTINGS, 1, first, False, False, *sums)
    for t in sums[1:]:
        if t is not None:
            rows = t.transpose(0, 1).flatten(2).flatten(1)
            assert (rows[:, :first] == 7).all() and (rows[:, first + count :] == 7).all()
            assert (rows[:, first : first + count] != 7).any(1).all()
    assert (sums[0][[0, 2]] == 7).all() and (sums[0][1] != 7).any()
    again = torch.zeros_like(sums[0])
    unfold_backward(columns[1:2], *given, *SETTINGS, 1, first, False, False, again, None, None)
    torch.testing.assert_close(sums[0] - 7, again, rtol=1e-4, atol=1e-4)


def test_pixels_outside_are_not_read():
    """A tap off the image reads zeros, not zero times what lies somewhere else."""
    x, data, kernel = operands(1, 4, 6, True)
    x[:, :, 0], data[:, ::2] = torch.inf, 50.0
    columns = torch.empty(1, 36, 64)
    unfold(x, data, kernel, *SETTINGS, 1, 0, columns)
    assert (columns == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 0, 5, 5), (2, 4, 5, 5)])
def test_nothing_to_do(shape):
    x, offset = torch.ones(shape), torch.zeros(shape[0], 18, 5, 5)
    columns = torch.empty(1, 0 if shape[1] else 50, 16 * shape[1])
    unfold(x, None, offset, *SETTINGS, 1, 0, columns)
    sums = torch.zeros_like(x).contiguous(memory_format=torch.channels_last), torch.ones_like(offset)
    unfold_backward(columns, x, None, offset, *SETTINGS, 1, 0, False, False, sums[0], None, sums[1])
    assert (sums[0] == 0).all() and (sums[1] == (1 if shape[1] else 0)).all()


GOOD = {
    "input": torch.zeros(2, 6, 5, 5),
    "data_offset": None,
    "kernel_offset": torch.zeros(2, 18, 5, 5),
    **dict(zip(("kernel_size", "scope", "stride", "padding", "dilation", "clip"), SETTINGS, strict=True)),
    "groups": 2,
    "first": 10,
    "columns": torch.zeros(2, 40, 48),
}
FAULTS = [
    ("scope", [4, 0], r"scope: expected values of at least 1, got \(4, 0\)"),
    ("scope", [1 << 20, 1 << 20], r"scope: more than 2\^31 samples, got \(1048576, 1048576\)"),
    ("groups", 4, "groups: expected a divisor of the 6 channels of input, got 4"),
    ("groups", 0, "groups: expected a divisor of the 6 channels of input, got 0"),
    ("first", -1, "first: expected 40 positions from it on among N Hout Wout = 50, got -1"),
    ("first", 11, "first: expected 40 positions from it on among N Hout Wout = 50, got 11"),
    (
        "kernel_offset",
        torch.zeros(2, 18, 5, 4),
        r"kernel_offset: expected shape .* = \(2, 18, 5, 5\), got \(2, 18, 5, 4",
    ),
    ("columns", torch.zeros(2, 40, 47), r"columns: expected contiguous .* = \(2, any, 48\), got shape \(2, 40, 47\)"),
    ("columns", torch.zeros(2, 48, 40).mT, r"columns: expected contiguous .*, got shape \(2, 40, 48\)"),
    ("columns", torch.zeros(2, 40, 48).double(), "columns: expected dtype float32, got float64"),
]


@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_fault_is_named(name, value, message):
    with pytest.raises(RuntimeError, match=f"^{message}"):
        unfold(*{**GOOD, name: value}.values())


BACKWARD_FAULTS = [
    (0, torch.zeros(2, 6, 5, 5), r"grad_input: expected input's shape \(2, 6, 5, 5\) in channels_last, got"),
    (1, torch.zeros(2, 18, 5, 5), "grad_data_offset: expected None, as the offset is"),
    (
        2,
        torch.zeros(2, 18, 5, 4),
        r"grad_kernel_offset: expected the offset's shape \(2, 18, 5, 5\), got \(2, 18, 5, 4\)",
    ),
    (2, torch.zeros(2, 18, 5, 5).double(), "grad_kernel_offset: expected dtype float32, got float64"),
]


@pytest.mark.parametrize(("number", "value", "message"), BACKWARD_FAULTS)
def test_gradient_that_does_not_fit_is_named(number, value, message):
    *given, columns = GOOD.values()
    sums = [None, None, None]
    sums[number] = value
    with pytest.raises(RuntimeError, match=f"^{message}"):
        unfold_backward(columns, *given, False, False, *sums)


@pytest.mark.parametrize("name", ["data_offset", "kernel_offset"])
def test_nan_offset_of_the_piece_is_named(name):
    """Of others nothing is known."""
    x, data, kernel = operands(2, 4, 6, True)
    offset = data if name == "data_offset" else kernel
    offset[1, 7, 2, 5] = torch.nan  # position 36 + 17
    unfold(x, data, kernel, *SETTINGS, 1, 0, torch.empty(1, 53, 64))
    unfold(x, data, kernel, *SETTINGS, 1, 54, torch.empty(1, 18, 64))
    with pytest.raises(RuntimeError, match=rf"^{name}: NaN at index \(1, 7, 2, 5\)$"):
        unfold(x, data, kernel, *SETTINGS, 1, 53, torch.empty(1, 1, 64))
