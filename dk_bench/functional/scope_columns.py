"""Unfolds an input over the scope of a kernel, a piece of the output's positions at a time, into one buffer.

What is unfolded of a whole input is Sh Sw times as large. A piece is whole images, or some positions of one image.
"""

from collections.abc import Sequence
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dk_bench.functional.operators import Tensors
from dk_bench.functional.unfold_bound import column_dtype
from dk_bench.reference.checks import compute_dtype

_unfold_op = torch.ops.dk_bench.unfold_columns
_unfold_backward_op = torch.ops.dk_bench.unfold_columns_backward


class Piece(NamedTuple):
    """``count`` positions, from ``begin`` on, of each of ``images`` images, from number ``image`` on."""

    image: int
    images: int
    begin: int
    count: int

    @property
    def positions(self) -> int:
        """Tells how many there are in all."""
        return self.images * self.count


def cut(images: int, size: int, most: int) -> list[Piece]:
    """Cuts images of ``size`` positions into pieces of at most so many, all nearly as large."""
    if size <= most:
        each = ceil(images / ceil(images / (most // size)))
        return [Piece(i, min(each, images - i), 0, size) for i in range(0, images, each)]
    each = ceil(size / ceil(size / most))
    return [Piece(i, 1, b, min(each, size - b)) for i in range(images) for b in range(0, size, each)]


class Columns:
    """The columns of an input, (groups, positions, Sh Sw C / groups) with rows (s, c): of one piece at a time.

    Attributes:
        pieces: what the output is cut into, in order.
        dtype: of the columns.
        most: the positions of the largest piece.
    """

    def __init__(self, operands: Tensors, settings: Sequence[Any], positions: int, groups: int, most: int) -> None:
        """Takes input, data_offset and kernel_offset; kernel_size, scope, stride, padding, dilation and clip; how many
        positions an image of the output has; and how many a piece may have. There is one at least."""
        self._operands, self._settings, self._positions, self._groups = operands, settings, positions, groups
        input, scope = operands[0], settings[1]
        self.pieces = cut(input.shape[0], positions, max(most, 1))
        self.dtype, self.most = column_dtype(input), self.pieces[0].positions
        self._length = prod(scope) * input.shape[1] // groups
        self._buffer = input.new_empty(groups * self.most * self._length, dtype=self.dtype)

    def memory(self, piece: Piece) -> Tensor:
        """Returns where the columns of a piece lie, whatever is there."""
        shape = self._groups, piece.positions, self._length
        return self._buffer[: prod(shape)].view(shape)

    def unfold(self, piece: Piece) -> Tensor:
        """Returns the columns of a piece."""
        columns = self.memory(piece)
        _unfold_op(*self._operands, *self._settings, self._groups, self._first(piece), columns)
        return columns

    def fold(self, piece: Piece, gradients: "Gradients", determinism: Sequence[bool]) -> None:
        """Takes what lies where the columns do for their gradient, and adds to those of the operands."""
        place = self._groups, self._first(piece)
        given = self.memory(piece), *self._operands, *self._settings
        _unfold_backward_op(*given, *place, *determinism, *gradients.sums[:3])

    def _first(self, piece: Piece) -> int:
        return piece.image * self._positions + piece.begin


class Gradients:
    """The gradients of operands while pieces add to them; None where one is not wanted.

    They are summed in the results' own memory, where it has the dtype and the format of sums.

    Attributes:
        sums: of input, in channels_last, zero at first; of data_offset and kernel_offset; of weight, where there is
            one, in channels_last.
    """

    def __init__(self, results: Sequence[Tensor]) -> None:
        """Takes memory for the results; empty where one is not wanted."""
        self._results = [t if t.dim() == 4 else None for t in results]
        formats = torch.channels_last, torch.preserve_format, torch.preserve_format, torch.channels_last
        self.sums = [t if t is None else _like_sums(t, f) for t, f in zip(self._results, formats, strict=False)]
        if self.sums[0] is not None:
            self.sums[0].zero_()

    def finish(self) -> None:
        """Brings the sums to the results."""
        for result, total in zip(self._results, self.sums, strict=True):
            if result is not total:
                result.copy_(total)


def _like_sums(result: Tensor, memory_format: torch.memory_format) -> Tensor:
    dtype = compute_dtype(result)
    fits = memory_format == torch.preserve_format or result.is_contiguous(memory_format=memory_format)
    if fits and result.dtype == dtype:
        return result
    return torch.empty_like(result, dtype=dtype, memory_format=memory_format)
