"""Random cases of deform_kernel_conv, and the comparison of the compiled operator with the reference."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dk_bench import functional, reference

NAMES = ("input", "data_offset", "kernel_offset", "weight")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CHANNELS = (1, 3, 7, 17, 64, 65, 130)
KERNELS = (1, 3, 5, 7)
SCOPES = tuple(range(1, 10))
LAYOUTS = ("contiguous", "channels_last", "cropped", "channel_slice", "transposed", "expanded", "strided")
OFFSETS = ("kernel", "data", "both", "none")
# How far two orders of summation may lie apart, and what one rounding to a stored 16-bit result adds.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Largest errors on the tensor core over those of PyTorch's depthwise convolution. Sampling a kernel, and four corners,
# take more roundings than PyTorch has: our float32 operator on the CPU has up to twice its errors too. In 16 bits
# both are close to half a unit in the last place, which neither needs to meet.
FACTOR = {torch.float32: 4.0, torch.float16: 1.5, torch.bfloat16: 1.5}


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtypes and how each operand lies in memory."""

    seed: int
    batch: int
    channels: int
    size: tuple[int, int]
    scope: tuple[int, int]
    offsets: str
    geometry: dict
    dtype: torch.dtype
    offset_dtype: torch.dtype
    layouts: tuple[str, ...]  # of the four operands and of the output's gradient
    on_knots: bool
    outputs: int = 0  # of a dense convolution; 0 for a depthwise one
    groups: int = 1

    def kernel_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.channels // self.groups) if self.outputs else (self.channels, 1)


def output_size(size, kernel_size, stride, padding, dilation) -> tuple[int, int]:
    return tuple((size[a] + 2 * padding[a] - dilation[a] * (kernel_size[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))


def random_case(seed: int) -> Case:
    """Case number ``seed``: dtypes, offsets and channels in turn, so that all are met; the rest by chance."""
    r = random.Random(seed)

    def pair(values, square: float = 0.5):
        first = r.choice(values)
        return (first, first if r.random() < square else r.choice(values))

    geometry = {
        "kernel_size": pair(KERNELS, 0.7),
        "stride": pair((1, 1, 2, 3)),
        "padding": pair((0, 1, 2, 4)),
        "dilation": pair((1, 1, 2, 3)),
        "clip": r.random() < 0.6,
    }
    channels = CHANNELS[seed % len(CHANNELS)]
    low = [geometry["dilation"][a] * (geometry["kernel_size"][a] - 1) + 1 - 2 * geometry["padding"][a] for a in (0, 1)]
    taps = geometry["kernel_size"][0] * geometry["kernel_size"][1]
    most = 4 if channels * taps > 400 else 10
    size = [max(1, value) + r.randrange(most) for value in low]
    if channels < 10 and r.random() < 0.2:
        size[1] += 30  # several groups of positions in a row
    dtype = DTYPES[seed // 4 % 4]
    return Case(
        seed=seed,
        batch=0 if r.random() < 0.03 else r.choice((1, 2) if channels > 60 else (1, 2, 3)),
        channels=channels,
        size=tuple(size),
        scope=pair(SCOPES),
        offsets=OFFSETS[seed % 4],
        geometry=geometry,
        dtype=dtype,
        offset_dtype=torch.float32 if dtype.itemsize == 2 and r.random() < 0.5 else dtype,
        layouts=tuple(r.choice(LAYOUTS) for _ in range(5)),
        on_knots=r.random() < 0.2,
    )


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same values in memory of another form; ``expanded`` repeats the first channel without copying it."""
    n, c, h, w = values.shape
    if layout == "contiguous":
        return values
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return values[:, :1].expand(n, c, h, w)
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    larger, window = {
        "cropped": ((n, c, h + 3, w + 2), (..., slice(1, 1 + h), slice(2, 2 + w))),
        "channel_slice": ((n, c + 2, h, w), (slice(None), slice(1, 1 + c))),
        "strided": ((2 * n, c, h, 2 * w), (slice(None, None, 2), slice(None), slice(None), slice(None, None, 2))),
    }[layout]
    base = values.new_full(larger, 77.0)  # what lies between must not be read
    if layout == "cropped":
        base = base.contiguous(memory_format=torch.channels_last)
    base[window] = values
    return base[window]


def make_tensors(case: Case, device: str = "cpu") -> tuple[list[Tensor | None], Tensor]:
    """The operands, as leaves that want a gradient, and the gradient of the output.

    They are laid out on the device, since a copy from one to another makes them dense.
    """
    generator = torch.Generator().manual_seed(case.seed)
    geometry = {key: value for key, value in case.geometry.items() if key != "clip"}
    out = output_size(case.size, **geometry)
    taps = case.geometry["kernel_size"][0] * case.geometry["kernel_size"][1]

    def make(shape, dtype, layout, scale=1.0, steps=None):
        values = scale * torch.randn(shape, dtype=torch.float64, generator=generator)
        values = values if steps is None else (values * steps).round() / steps
        return lay_out(values.to(device, dtype), layout).detach().requires_grad_()

    # On knots, in halves: S - K may be odd. Off them, coordinates are exact in float32 too: else one may be rounded
    # across a knot, where the derivative jumps, and differ from float64's.
    steps = 2 if case.on_knots else 2**12
    offset_shape = (case.batch, 2 * taps, *out)
    has_data, has_kernel = case.offsets in ("data", "both"), case.offsets in ("kernel", "both")
    operands = [
        make((case.batch, case.channels, *case.size), case.dtype, case.layouts[0]),
        make(offset_shape, case.offset_dtype, case.layouts[1], 2.0, steps) if has_data else None,
        make(offset_shape, case.offset_dtype, case.layouts[2], 1.5, steps) if has_kernel else None,
        make((*case.kernel_shape(), *case.scope), case.dtype, case.layouts[3]),
    ]
    grad = make((case.batch, case.kernel_shape()[0], *out), case.dtype, case.layouts[4]).detach()
    return operands, grad


def forward_backward(function, operands, grad: Tensor, geometry: dict) -> list[Tensor | None]:
    """The output and the gradients of the operands; None for an offset that is None."""
    out = function(*operands, **geometry)
    given = [t for t in operands if t is not None]
    gradients = iter(torch.autograd.grad(out, given, grad))
    return [out.detach(), *(None if t is None else next(gradients) for t in operands)]


def in_compute_dtype(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    dtype = torch.float32 if tensor.dtype.itemsize == 2 else tensor.dtype
    return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)


def assert_close(actual: Tensor, expected: Tensor, name: str, extra: Tensor | float = 0.0) -> None:
    """Close up to the order of summation in the compute dtype, one rounding to the stored dtype, and ``extra``."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not actual.numel():
        return
    actual, dtype = actual.to(expected.dtype), actual.dtype
    allowed = TOLERANCE[dtype] * (1 + expected.abs().max()) + ROUNDING[dtype] * expected.abs() + extra
    excess = (actual - expected).abs() - allowed
    worst = torch.where(excess.isnan(), torch.inf, excess).argmax()
    assert (excess <= 0).all(), f"{name}: {actual.flatten()[worst]}, expected {expected.flatten()[worst]}"


def sum_magnitudes(function, operands, grad: Tensor, geometry: dict) -> list[Tensor | None]:
    """What the output and the gradients of input and weight would be if no terms cancelled; None for offsets.

    Rounding of operands or terms is felt as a share of this, however small a sum is.
    """
    is_offset = [len(operands) == 4 and i in (1, 2) for i in range(len(operands))]
    given = [
        None if t is None else (t if offset else t.abs()).detach().requires_grad_()
        for t, offset in zip(operands, is_offset, strict=True)
    ]
    output, *gradients = forward_backward(function, given, grad.abs(), geometry)
    return [output, *(None if offset else g for g, offset in zip(gradients, is_offset, strict=True))]


def compare(actual, expected, operands, extra: float = 0.0, magnitudes=None) -> None:
    """Raises AssertionError where an output or a gradient of the operands is not what is expected.

    ``extra`` is allowed besides, as a share of ``sum_magnitudes``, for offsets of the largest expected value.
    """
    magnitudes = magnitudes or [None] * len(actual)
    for name, a, e, m, operand in zip(("output", *NAMES), actual, expected, magnitudes, (None, *operands), strict=True):
        if e is None or not e.numel():
            continue
        assert operand is None or a.dtype == operand.dtype, f"gradient of {name}: {a.dtype}"
        allowed = extra * (e.abs().max() if m is None else m)
        assert_close(a, e, name if operand is None else f"gradient of {name}", allowed)


def check_against_reference(
    case: Case, function=functional.deform_kernel_conv, extra: float = 0.0, device: str = "cpu"
) -> None:
    """Raises AssertionError where the compiled operator and the reference differ, forward or backward."""
    operands, grad = make_tensors(case, device)
    actual = [None if t is None else t.cpu() for t in forward_backward(function, operands, grad, case.geometry)]
    plain = [in_compute_dtype(None if t is None else t.cpu()) for t in operands]
    call = (reference.deform_kernel_conv, plain, in_compute_dtype(grad.cpu()), case.geometry)
    assert actual[0].dtype == case.dtype
    compare(actual, forward_backward(*call), operands, extra, sum_magnitudes(*call) if extra else None)


def check_any_number_of_threads(compute) -> None:
    """Raises AssertionError where results are not the same bits, whatever number of threads computes them."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append(compute())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for i, (first, second) in enumerate(zip(results[0], other, strict=True)):
            assert first is second is None or torch.equal(first, second), f"output {i} (0) or gradient of an operand"


def largest_errors(cases: Iterable[Case], function, extra: float = 0.0, device: str = "cpu") -> dict[str, list[float]]:
    """The largest error of output, dL/dinput and dL/dweight over all cases, as a share of the largest of
    ``sum_magnitudes``: ours, and PyTorch's in its depthwise convolution of the same input in the same dtype. Exact is
    float64.

    Raises AssertionError where a single value is further off than ``assert_close`` allows.
    """
    errors = {name: [0.0, 0.0] for name in ("output", "input", "weight")}
    generator = torch.Generator().manual_seed(0)

    def convolution(x, weight, *, stride, padding, dilation, **rest):
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))

    for case in cases:
        operands, grad = make_tensors(case, device)
        if not grad.numel():
            continue
        rigid = torch.randn((case.channels, 1, *case.geometry["kernel_size"]), generator=generator)
        rigid = rigid.to(device, case.dtype).requires_grad_()
        for which, f, given in ((0, function, operands), (1, convolution, [operands[0], rigid])):
            exact = [None if t is None else t.detach().double().requires_grad_() for t in given]
            f64 = reference.deform_kernel_conv if which == 0 else convolution
            expected = forward_backward(f64, exact, grad.double(), case.geometry)
            magnitudes = sum_magnitudes(f64, exact, grad.double(), case.geometry)
            actual = forward_backward(f, given, grad, case.geometry)
            if which == 0:
                compare(actual, expected, given, extra, magnitudes)
            for name, i in (("output", 0), ("input", 1), ("weight", -1)):
                error = (actual[i] - expected[i]).abs().max() / magnitudes[i].max().clamp(min=1e-30)
                errors[name][which] = max(errors[name][which], float(error))
    return errors
