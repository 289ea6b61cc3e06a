"""Random cases of local deformable kernels on dense convolutions, and the comparison with the reference."""

from __future__ import annotations

import random

import torch
from operator_cases import (
    DTYPES,
    LAYOUTS,
    OFFSETS,
    ROUNDING,
    Case,
    compare,
    forward_backward,
    in_compute_dtype,
    make_tensors,
    sum_magnitudes,
)

from dk_bench import functional, reference

SQUARE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "clip": True}
CHANNELS = (1, 2, 3, 4, 6, 16, 24)
GROUPS = ("one", "two", "channels")
KERNELS = (1, 1, 2, 3, 5)
SCOPES = (1, 2, 3, 4, 5)
MEMORY = (0, 4_000, 64 << 20)  # a position at a time, a few, all
ROUNDED_COLUMNS = 4.0  # how many roundings of the terms a sum over them may be off
op, backward_op = torch.ops.dk_bench.dense_deform_kernel, torch.ops.dk_bench.dense_deform_kernel_backward


def dense(input, data_offset, kernel_offset, weight, *, memory: int = 64 << 20, **geometry):
    """The operator, also where the function would take the depthwise one."""
    return op(input, data_offset, kernel_offset, weight, *geometry.values(), memory)


def specified(input, data_offset, kernel_offset, weight, **geometry):
    return reference.dense_deform_kernel(input, kernel_offset, weight, data_offset=data_offset, **geometry)


def unfold(input, data_offset, kernel_offset, **settings):
    return functional.scope_unfold(input, kernel_offset, data_offset=data_offset, **settings)


def specified_unfold(input, data_offset, kernel_offset, **settings):
    return reference.scope_unfold(input, kernel_offset, data_offset=data_offset, **settings)


def random_dense_case(seed: int) -> Case:
    """Case number ``seed``: groups, offsets, dtypes and channels in turn, so that all are met; the rest by chance."""
    r = random.Random(seed)

    def pair(values, square: float = 0.6):
        first = r.choice(values)
        return (first, first if r.random() < square else r.choice(values))

    geometry = {
        "kernel_size": pair(KERNELS),
        "stride": pair((1, 1, 2, 3)),
        "padding": pair((0, 1, 2)),
        "dilation": pair((1, 1, 2)),
        "clip": r.random() < 0.6,
    }
    channels, asked = CHANNELS[seed % len(CHANNELS)], GROUPS[seed % len(GROUPS)]
    groups = {"one": 1, "two": 1 + (channels % 2 == 0), "channels": channels}[asked]
    reach = [geometry["dilation"][a] * (geometry["kernel_size"][a] - 1) + 1 for a in (0, 1)]
    size = tuple(max(1, reach[a] - 2 * geometry["padding"][a]) + r.randrange(6) for a in (0, 1))
    dtype = DTYPES[seed // 4 % 4]
    return Case(
        seed=seed,
        batch=0 if r.random() < 0.03 else r.choice((1, 2, 3)),
        channels=channels,
        size=size,
        scope=pair(SCOPES),
        offsets=OFFSETS[seed % 4],
        geometry=geometry,
        dtype=dtype,
        offset_dtype=torch.float32 if dtype.itemsize == 2 and r.random() < 0.5 else dtype,
        layouts=tuple(r.choice(LAYOUTS) for _ in range(5)),
        on_knots=r.random() < 0.2,
        outputs=groups * r.choice((1, 2, 5)),
        groups=groups,
    )


def dense_case(
    channels: int = 4, outputs: int = 6, groups: int = 2, offsets: str = "both", dtype=torch.float32, **options
) -> Case:
    """A case of 3 x 3 taps in a 4 x 3 scope, on two images of 6 x 5."""
    layouts = (options.pop("layout", "contiguous"),) * 5
    sizes = {"batch": 2, "size": (6, 5), "scope": (4, 3), **options}
    settings = {"offsets": offsets, "geometry": SQUARE, "dtype": dtype, "offset_dtype": dtype, "layouts": layouts}
    return Case(seed=5, channels=channels, outputs=outputs, groups=groups, on_knots=False, **sizes, **settings)


def check_dense(
    case: Case, memory: int | None = None, device: str = "cpu", via=dense, stored: torch.dtype | None = None
) -> None:
    """Raises AssertionError where operator and reference differ, forward or backward; memory in turn by default.

    ``stored``: the dtype of columns, where they are rounded to 16 bits, which sums of products feel by their terms.
    """
    operands, grad = make_tensors(case, device)
    settings = {**case.geometry, "memory": MEMORY[case.seed // 3 % 3] if memory is None else memory}
    actual = [None if t is None else t.cpu() for t in forward_backward(via, operands, grad, settings)]
    plain = [in_compute_dtype(None if t is None else t.cpu()) for t in operands]
    call = (specified, plain, in_compute_dtype(grad.cpu()), case.geometry)
    assert actual[0].dtype == case.dtype
    extra = 0.0 if stored is None else ROUNDED_COLUMNS * ROUNDING[stored]
    compare(actual, forward_backward(*call), operands, extra, sum_magnitudes(*call) if extra else None)


def check_unfold(case: Case, device: str = "cpu", via=unfold) -> None:
    """Raises AssertionError where the unfolding is not the reference's, forward or backward."""
    operands, _ = make_tensors(case, device)
    del operands[3]
    settings = {**case.geometry, "scope": case.scope}
    shape = specified_unfold(*(t if t is None else t.cpu() for t in operands), **settings).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(case.seed)).to(device, case.dtype)
    actual = [None if t is None else t.cpu() for t in forward_backward(via, operands, grad, settings)]
    plain = [in_compute_dtype(None if t is None else t.cpu()) for t in operands]
    expected = forward_backward(specified_unfold, plain, in_compute_dtype(grad.cpu()), settings)
    assert actual[0].is_contiguous()
    compare([*actual, None], [*expected, None], [*operands, None])
