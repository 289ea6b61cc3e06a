"""The CPU's backward pass at the edges of how it cuts work: chunks and pieces of channels, rings of rows."""

from __future__ import annotations

import pytest
import torch
from operator_cases import OFFSETS, Case, check_against_reference, forward_backward, make_tensors, output_size

from dk_bench.functional import deform_kernel_conv

SQUARE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "clip": True}


def check(
    channels=5,
    size=(5, 6),
    scope=(4, 4),
    offsets="both",
    batch=1,
    layout="channels_last",
    dtype=torch.float32,
    **geometry,
):
    layouts = (layout,) * 5
    case = Case(7, batch, channels, size, scope, offsets, {**SQUARE, **geometry}, dtype, dtype, layouts, False)
    check_against_reference(case)


# A chunk has 4 to 32 channels, by dtype and instruction set; a piece about 128, a whole number of 32.
@pytest.mark.parametrize("channels", [4, 8, 9, 15, 16, 31, 32, 33, 63, 96, 127, 128, 129, 160, 257])
@pytest.mark.parametrize("offsets", OFFSETS)
def test_channels_about_chunks_and_pieces(channels, offsets):
    layout = "contiguous" if channels % 2 else "channels_last"
    for dtype in (torch.float32, torch.float64):
        check(channels, offsets=offsets, dtype=dtype, size=(4, 3), layout=layout)


@pytest.mark.parametrize("width", range(1, 21))
def test_widths_about_decoded_positions(width):
    for offsets in OFFSETS:
        check(size=(3, width), offsets=offsets)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("scope", range(1, 6))
def test_scopes(scope, clip):
    """Every cell of the scope, and with no clip those of the border of zeros."""
    for offsets in ("kernel", "both"):
        check(33, scope=(scope, scope), offsets=offsets, clip=clip, dtype=torch.float64)


# Rows of the image come into a ring and leave it: all at once, some never read, and some from beyond the image.
RINGS = [
    {"stride": (4, 1)},
    {"stride": (5, 3)},
    {"dilation": (4, 1)},
    {"dilation": (2, 3), "padding": (5, 4)},
    {"padding": (7, 7)},
    {"padding": (0, 0), "kernel_size": (1, 1), "stride": (3, 2)},
    {"kernel_size": (2, 5), "padding": (3, 0)},
    {"kernel_size": (5, 4), "padding": (2, 6)},
    {"kernel_size": (1, 7), "padding": (0, 3), "dilation": (1, 2)},
]


@pytest.mark.parametrize("ring", range(len(RINGS)))
@pytest.mark.parametrize("offsets", OFFSETS)
def test_rows_in_and_out_of_the_ring(offsets, ring):
    geometry = {**SQUARE, **RINGS[ring]}
    size = (11, 13)
    assert min(output_size(size, *(geometry[key] for key in ("kernel_size", "stride", "padding", "dilation")))) > 0
    for layout in ("channels_last", "strided"):
        check(17, size=size, scope=(5, 4), offsets=offsets, layout=layout, **geometry)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 9])
def test_pieces_of_few_images(batch):
    """The fewer images, the more pieces of the channels, whose sums for the offsets are added."""
    check(300, size=(2, 3), batch=batch, dtype=torch.float64)


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_in_any_layout(offsets, dtype):
    """However operands lie in memory, the same chunks of them are computed with."""
    results = []
    for layout in ("contiguous", "channels_last", "cropped", "strided"):
        layouts = (layout,) * 5
        case = Case(3, 3, 150, (6, 9), (4, 4), offsets, SQUARE, dtype, dtype, layouts, False)
        operands, grad = make_tensors(case)
        results.append(forward_backward(deform_kernel_conv, operands, grad, case.geometry)[1:])
    for other in results[1:]:
        assert all(a is None or torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name, position", [("data_offset", 1), ("kernel_offset", 2)])
def test_nan_is_named(name, position):
    case = Case(3, 2, 260, (5, 18), (4, 4), "both", SQUARE, torch.float32, torch.float32, ("contiguous",) * 5, False)
    operands, grad = make_tensors(case)
    operands = [t.detach() for t in operands]
    operands[position][1, 4, 3, 17] = torch.nan
    with pytest.raises(RuntimeError, match=rf"{name}: NaN at index \(1, 4, 3, 17\)"):
        torch.ops.dk_bench.deform_kernel_conv_backward(grad, *operands, *SQUARE.values(), False)
