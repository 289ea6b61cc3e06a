"""The CPU operators at channel counts around the widths of vectors and blocks, in every dtype and memory format."""

from __future__ import annotations

import pytest
import torch

from dk_bench import functional, reference

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
#          vectors of 2 to 16 lanes and halves of them; blocks of 64; sweeps of 128
CHANNELS = [1, 3, 7, 8, 9, 15, 17, 24, 31, 33, 63, 65, 72, 100, 127, 129, 193]


def operands(channels, dtype, layout, offsets, size=(5, 19)):
    """x, data and kernel offset (or None) and weight; some taps leave the image and the scope."""
    generator = torch.Generator().manual_seed(channels)

    def normal(*sizes, std=1.0):
        values = std * torch.randn(*sizes, generator=generator, dtype=torch.float64)
        return values.to(dtype).contiguous(memory_format=layout)

    data, kernel = (normal(2, 18, *size, std=1.5) if name in offsets else None for name in ("data", "kernel"))
    return normal(2, channels, *size), data, kernel, normal(channels, 1, 4, 4)


@pytest.mark.parametrize("offsets", ["", "data", "kernel", "data kernel"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_forward_of_any_number_of_channels(dtype, layout, offsets):
    for channels in CHANNELS:
        given = operands(channels, dtype, LAYOUTS[layout], offsets)
        got = functional.deform_kernel_conv(*given, kernel_size=3, padding=1)
        exact = reference.deform_kernel_conv(*(t if t is None else t.double() for t in given), kernel_size=3, padding=1)
        error = (got.double() - exact).abs().max() / exact.abs().max()
        assert error < TOLERANCE[dtype], f"{channels} channels: {error}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_rounded_as_pytorch_rounds_them(dtype):
    """A 1 x 1 kernel of ones copies: every finite value, infinities and NaN come through as they were."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 64, 32, 32)
    one = torch.ones(64, 1, 1, 1, dtype=dtype)
    for layout in LAYOUTS.values():
        got = functional.deform_kernel_conv(values.contiguous(memory_format=layout), None, None, one, kernel_size=1)
        assert torch.equal(got.isnan(), values.isnan())
        assert torch.equal(got[~got.isnan()], values[~values.isnan()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_staged_rows_are_those_that_taps_reach(dtype, layout):
    """Taps moved by many rows, also to rows that no earlier row of the output has read, and off the image."""
    x, _, _, weight = operands(20, dtype, LAYOUTS[layout], "", size=(23, 6))
    data = torch.zeros(2, 18, 23, 6, dtype=dtype)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    data[:, ::2] = torch.linspace(-40, 40, 23).to(dtype)[order][:, None]
    data[0, 4, 3, 2], data[1, 6, 9, 1] = torch.inf, -torch.inf
    got = functional.deform_kernel_conv(x, data, None, weight, kernel_size=3, padding=1)
    exact = reference.deform_kernel_conv(x.double(), data.double(), None, weight.double(), kernel_size=3, padding=1)
    assert (got.double() - exact).abs().max() < TOLERANCE[dtype] * exact.abs().max()
