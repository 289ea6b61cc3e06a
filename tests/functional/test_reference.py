"""The reference against sums written out in plain Python, and against operators of other libraries."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from operator_cases import output_size
from torchvision.ops import deform_conv2d

from dk_bench import functional, reference
from dk_bench.reference.deform_roi_pool import RoISettings

BOTH = pytest.mark.parametrize("module", [reference, functional], ids=["reference", "compiled"])


def hat(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def scalar_kernel(weight, offset, kernel_size, clip):
    """W'[k] = sum over the scope of the hat function times W, for one position and channel; offset is [tap][2]."""
    (kh, kw), (sh, sw) = kernel_size, (len(weight), len(weight[0]))
    sampled = []
    for i, j in itertools.product(range(kh), range(kw)):
        y = i + (sh - kh) / 2 + offset[i * kw + j][0]
        x = j + (sw - kw) / 2 + offset[i * kw + j][1]
        if clip:
            y, x = min(max(y, 0), sh - 1), min(max(x, 0), sw - 1)
        sampled.append(
            sum(hat(y - sy) * hat(x - sx) * weight[sy][sx] for sy, sx in itertools.product(range(sh), range(sw)))
        )
    return sampled


def scalar_conv(x, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip):
    """Equation 7 with every sum as a loop; tensors in, list of outputs out, in row-major order."""
    n, c, height, width = x.shape
    kh, kw = kernel_size
    ho, wo = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    x, weight = x.tolist(), weight.tolist()
    zero = torch.zeros(n, 2 * kh * kw, ho, wo).tolist()
    data = zero if data_offset is None else data_offset.tolist()
    kernel = zero if kernel_offset is None else kernel_offset.tolist()
    result = []
    for b, channel, h, w in itertools.product(range(n), range(c), range(ho), range(wo)):
        moved = [(kernel[b][2 * t][h][w], kernel[b][2 * t + 1][h][w]) for t in range(kh * kw)]
        sampled = scalar_kernel(weight[channel][0], moved, kernel_size, clip)
        total = 0.0
        for i, j in itertools.product(range(kh), range(kw)):
            tap = i * kw + j
            y = h * stride[0] - padding[0] + i * dilation[0] + data[b][2 * tap][h][w]
            z = w * stride[1] - padding[1] + j * dilation[1] + data[b][2 * tap + 1][h][w]
            total += sampled[tap] * sum(
                hat(y - py) * hat(z - px) * x[b][channel][py][px]
                for py, px in itertools.product(range(height), range(width))
            )
        result.append(total)
    return result


@BOTH
@pytest.mark.parametrize("offsets", ["none", "data", "kernel", "both"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("kernel_size", "scope", "stride", "padding", "dilation"),
    [
        ((3, 3), (4, 4), (1, 1), (1, 1), (1, 1)),
        ((3, 2), (2, 5), (2, 1), (0, 2), (1, 2)),
        ((1, 3), (1, 1), (1, 3), (2, 0), (3, 1)),
        ((3, 1), (9, 2), (1, 1), (1, 1), (1, 1)),
    ],
)
def test_sums_written_out(module, offsets, clip, kernel_size, scope, stride, padding, dilation):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight = normal(2, 2, 4, 5), normal(2, 1, *scope)
    geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    size = reference.deform_kernel_conv(x, None, None, weight, **geometry).shape[2:]
    taps = kernel_size[0] * kernel_size[1]
    data = 2 * normal(2, 2 * taps, *size) if offsets in ("data", "both") else None
    kernel = 2 * normal(2, 2 * taps, *size) if offsets in ("kernel", "both") else None
    out = module.deform_kernel_conv(x, data, kernel, weight, **geometry, clip=clip)
    expected = scalar_conv(x, data, kernel, weight, **geometry, clip=clip)
    assert out.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    if offsets == "kernel":
        local = module.local_deform_kernel(x, kernel, weight, **geometry, clip=clip)
        assert torch.equal(local, out)


@BOTH
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("kernel_size", "scope"), [((3, 3), (4, 4)), ((3, 2), (2, 5)), ((1, 1), (4, 3)), ((3, 3), (1, 1))]
)
def test_global_kernel_written_out(module, clip, kernel_size, scope):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 2, *scope, generator=generator, dtype=torch.float64)
    taps = kernel_size[0] * kernel_size[1]
    offset = 2 * torch.randn(2, 2 * taps, generator=generator, dtype=torch.float64)
    sampled = module.sample_kernel(weight, offset, kernel_size=kernel_size, clip=clip)
    assert sampled.shape == (2, 3, 2, *kernel_size)
    for n, o, i in itertools.product(range(2), range(3), range(2)):
        expected = scalar_kernel(weight[o, i].tolist(), offset[n].view(taps, 2).tolist(), kernel_size, clip)
        assert sampled[n, o, i].flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_global_kernel_is_a_local_one_that_is_everywhere_the_same():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 6, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    offset = torch.randn(2, 18, generator=generator, dtype=torch.float64)
    kernels = functional.sample_kernel(weight, offset, kernel_size=3)
    expected = torch.cat([F.conv2d(x[n : n + 1], kernels[n], padding=1, groups=5) for n in range(2)])
    everywhere = offset.view(2, 18, 1, 1).expand(2, 18, 6, 6)
    actual = functional.local_deform_kernel(x, everywhere, weight, kernel_size=3, padding=1)
    torch.testing.assert_close(actual, expected)


GEOMETRY = [
    {"stride": 1, "padding": 1, "dilation": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"stride": 3, "padding": 4, "dilation": (2, 1)},
]


def check_same(output, expected, operands):
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(output)
    torch.testing.assert_close(*(torch.autograd.grad(o, operands, grad) for o in (output, expected)))


@BOTH
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5)])
def test_without_offsets_it_is_conv2d(module, kernel_size, geometry):
    x = torch.randn(2, 7, 9, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 1, *kernel_size, dtype=torch.float64, requires_grad=True)
    out = module.deform_kernel_conv(x, None, None, weight, kernel_size=kernel_size, **geometry)
    expected = F.conv2d(x, weight, groups=7, **geometry)
    check_same(out, expected, (x, weight))


@BOTH
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5)])
def test_with_data_offsets_it_is_deform_conv2d(module, kernel_size, geometry):
    x = torch.randn(2, 7, 9, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 1, *kernel_size, dtype=torch.float64, requires_grad=True)
    size = F.conv2d(x, weight, groups=7, **geometry).shape[2:]
    offset = (2 * torch.randn(2, 2 * math.prod(kernel_size), *size, dtype=torch.float64)).requires_grad_()
    out = module.deform_kernel_conv(x, offset, None, weight, kernel_size=kernel_size, **geometry)
    expected = deform_conv2d(x, offset, weight, **geometry)
    check_same(out, expected, (x, offset, weight))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coordinates_of_16_bit_inputs_are_float32(module, dtype):
    """Tap 300 of a row cannot be told from its neighbour in bfloat16; the offset of 1/1024 is lost beside 1 in it."""
    x = torch.zeros(1, 1, 1, 400, dtype=dtype)
    x[..., 301] = 1.0
    offset = torch.zeros(1, 2, 1, 400)
    offset[:, 1] = 1 + 2.0**-10
    out = module.deform_kernel_conv(x, offset, None, torch.ones(1, 1, 1, 1, dtype=dtype), kernel_size=1)
    assert out[0, 0, 0].nonzero().flatten().tolist() == [299, 300]
    assert out[0, 0, 0, 300].item() == pytest.approx(1 - 2.0**-10, rel=2.0**-8)
    assert out[0, 0, 0, 299].item() == pytest.approx(2.0**-10)


@pytest.mark.parametrize("name", ["deform_kernel_conv", "local_deform_kernel", "sample_kernel"])
def test_functions_take_what_their_specifications_take(name):
    compiled, specified = (inspect.signature(getattr(module, name)) for module in (functional, reference))
    assert compiled.parameters == specified.parameters and list(compiled.parameters)[0] in ("input", "weight")


def test_pooling_takes_the_settings_of_its_specification():
    by_name = inspect.signature(functional.deform_roi_pool).parameters.values()
    settings = {p.name: p.default for p in by_name if p.kind is p.KEYWORD_ONLY}
    assert list(settings) == list(RoISettings._fields)
    assert {name: d for name, d in settings.items() if d is not inspect.Parameter.empty} == RoISettings._field_defaults
