"""Cases of the depthwise convolution with a kernel for every image, and the comparison with the reference."""

from __future__ import annotations

import random

import torch
from operator_cases import CHANNELS, DTYPES, KERNELS, LAYOUTS, assert_close, in_compute_dtype, lay_out, output_size

from dk_bench import reference

GEOMETRY = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}
MASKS = [(True, True), (True, False), (False, True), (False, False)]


def operands(dtype=torch.float64, layout: str = "contiguous", channels: int = 3, kernel=(2, 3)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 5, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(2, channels, *kernel, dtype=torch.float64, generator=generator)
    return lay_out(x.to(dtype), layout), weight.to(dtype)


def check_random_case(seed: int, function=torch.ops.dk_bench.depthwise_conv_per_image, device: str = "cpu") -> None:
    """Raises AssertionError where output or gradients are not the reference's."""
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    kernel = (r.choice(KERNELS), r.choice(KERNELS))
    geometry = {
        "stride": (r.choice((1, 2)), r.choice((1, 3))),
        "padding": (r.choice((0, 1, 3)), r.choice((0, 2))),
        "dilation": (r.choice((1, 2)), r.choice((1, 1, 3))),
    }
    least = [geometry["dilation"][a] * (kernel[a] - 1) + 1 - 2 * geometry["padding"][a] for a in (0, 1)]
    size = tuple(max(1, v) + r.randrange(8) for v in least)
    images, channels, dtype = r.choice((0, 1, 2, 3)), CHANNELS[seed % len(CHANNELS)], DTYPES[seed % 4]
    out = output_size(size, kernel, **geometry)

    def make(*shape):
        values = torch.randn(images, channels, *shape, dtype=torch.float64, generator=generator)
        return lay_out(values.to(device, dtype), r.choice(LAYOUTS)).detach()

    given, grad = [make(*size).requires_grad_(), make(*kernel).requires_grad_()], make(*out)
    output = function(*given, *geometry.values())
    actual = [t.detach().cpu() for t in (output, *torch.autograd.grad(output, given, grad))]
    plain, grad = [in_compute_dtype(t.detach().cpu()).requires_grad_() for t in given], in_compute_dtype(grad.cpu())
    expected = reference.depthwise_conv_per_image(*plain, **geometry)
    wanted = [expected, *torch.autograd.grad(expected, plain, grad)]
    for name, a, e in zip(("output", "gradient of input", "gradient of weight"), actual, wanted, strict=True):
        assert a.dtype == dtype
        assert_close(a, e.detach(), name)
