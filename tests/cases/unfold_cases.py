"""Random calls of unfold_columns and of its backward operator, in pieces, and the comparison with the reference."""

from __future__ import annotations

import random
from math import prod

import torch
from operator_cases import DTYPES, LAYOUTS, OFFSETS, ROUNDING, TOLERANCE, lay_out, output_size
from torch import Tensor

from dk_bench import reference

unfold, unfold_backward = torch.ops.dk_bench.unfold_columns, torch.ops.dk_bench.unfold_columns_backward
#        vectors of 2 to 16 lanes and halves of them; runs of 128; pieces of 64 and more
DEPTHS = (1, 3, 7, 8, 15, 17, 24, 33, 64, 65, 130, 200)


class Call:
    """Operands of one call and its settings, of an output with some ``positions``; ``pieces`` are what it is cut into.

    Attributes:
        operands: input, data_offset and kernel_offset or None.
        settings: kernel_size, scope, stride, padding, dilation, clip, groups.
        compute: the dtype of sums.
        stored: that of columns.
    """

    def __init__(self, seed: int, library=torch.ops.dk_bench, device: str = "cpu") -> None:
        """Takes dtypes, offsets and depths in turn, so that all are met; the rest by chance."""
        self._unfold, self._unfold_backward = library.unfold_columns, library.unfold_columns_backward
        r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        kernel_size, scope = ([r.choice(values) for _ in "hw"] for values in ((1, 1, 2, 3), (1, 2, 2, 3, 4, 5)))
        stride, padding, dilation = ([r.choice(values) for _ in "hw"] for values in ((1, 1, 2), (0, 1, 2), (1, 1, 2)))
        if r.random() < 0.1:
            kernel_size, scope = [1, 1], [2, 2]
        groups, batch, size = r.choice((1, 1, 2, 3)), r.choice((1, 2, 3)), [r.randint(5, 9), r.randint(5, 9)]
        self.settings = [kernel_size, scope, stride, padding, dilation, r.random() < 0.6, groups]
        self.out = output_size(size, kernel_size, stride, padding, dilation)
        dtype = DTYPES[seed // 4 % 4]
        self.compute = torch.promote_types(dtype, torch.float32)
        self.stored = self.compute if library is torch.ops.dk_bench and device == "cpu" else dtype
        self.deterministic = seed % 8 < 4
        # Halves are knots of the scope and of the image; what is rounded to 16 bits stays apart from them, or on them.
        steps = r.choice((2, 2**6))

        def make(channels: int, size: tuple[int, ...], steps: int | None = None) -> Tensor:
            values = torch.randn(batch, channels, *size, dtype=torch.float64, generator=generator)
            values = values if steps is None else (values * 1.5 * steps).round() / steps
            return lay_out(values.to(device, dtype), r.choice(LAYOUTS))

        taps, kind = prod(kernel_size), OFFSETS[seed % 4]
        self.operands = [
            make(groups * DEPTHS[seed % len(DEPTHS)], tuple(size)),
            make(2 * taps, self.out, steps) if kind in ("data", "both") else None,
            make(2 * taps, self.out, steps) if kind in ("kernel", "both") else None,
        ]
        self.positions = batch * prod(self.out)
        ends = sorted({0, self.positions, *(r.randint(0, self.positions) for _ in range(2))})
        self.pieces = list(zip(ends, ends[1:], strict=False))
        self.generator = generator
        self.result_layout = r.choice([layout for layout in LAYOUTS if layout != "expanded"])  # of offsets' gradients

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tells the shape of the columns of all positions."""
        groups = self.settings[-1]
        return groups, self.positions, prod(self.settings[1]) * self.operands[0].shape[1] // groups

    def columns(self) -> Tensor:
        """Unfolds piece by piece."""
        found = []
        for begin, end in self.pieces:
            found.append(self.empty(self.shape[0], end - begin, self.shape[2]).to(self.stored))
            self._unfold(*self.operands, *self.settings, begin, found[-1])
        return torch.cat(found, 1)

    def gradients(self, grad: Tensor, wanted=(True, True, True)) -> list[Tensor | None]:
        """Takes the columns' gradient back, piece by piece; None for what is not wanted, or not there."""
        sums = [None if t is None else self.empty(*t.shape) for t in self.operands]
        sums = [sums[0].zero_(), *(None if t is None else lay_out(t, self.result_layout) for t in sums[1:])]
        sums[0] = sums[0].contiguous(memory_format=torch.channels_last)
        sums = [t if want else None for t, want in zip(sums, wanted, strict=True)]
        for begin, end in self.pieces:
            given = grad[:, begin:end].contiguous(), *self.operands, *self.settings, begin
            self._unfold_backward(*given, self.deterministic, False, *sums)
        return sums

    def empty(self, *shape: int) -> Tensor:
        """Returns memory for sums, in which what is not written shows."""
        return torch.full(shape, torch.nan, dtype=self.compute, device=self.operands[0].device)


def specified(call: Call, grad: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The reference's columns, and the gradients of the operands, in float64."""
    operands = [t if t is None else t.double().detach().requires_grad_() for t in call.operands]
    kernel_size, scope, stride, padding, dilation, clip, groups = call.settings
    names = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation, "scope": scope}
    names = {name: tuple(pair) for name, pair in names.items()}
    out = reference.scope_unfold(operands[0], operands[2], data_offset=operands[1], clip=clip, **names)
    columns = out.unflatten(1, (groups, -1, prod(scope))).permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)
    found = iter(torch.autograd.grad(columns, [t for t in operands if t is not None], grad.double()))
    return columns.detach(), [None if t is None else next(found) for t in operands]


def check_random_piece(seed: int, library=torch.ops.dk_bench, device: str = "cpu") -> None:
    """Raises AssertionError where columns or gradients are not the reference's."""
    call = Call(seed, library, device)
    grad = torch.randn(call.shape, dtype=torch.float64, generator=call.generator).to(device, call.stored)
    columns, expected = specified(call, grad)
    found = [call.columns(), *call.gradients(grad)]
    for number, (value, exact) in enumerate(zip(found, [columns, *expected], strict=True)):
        if exact is not None and exact.numel():
            rounded = ROUNDING[value.dtype] * exact.abs()
            error = float(((value.double() - exact).abs() - rounded).max() / exact.abs().max().clamp(min=1e-30))
            assert error < TOLERANCE[call.compute], f"case {seed}: result {number} is {error} off"
