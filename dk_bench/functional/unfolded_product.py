"""The convolution by a deformable kernel as a product: columns of the input by the kernel, piece by piece.

And its gradients: columns are unfolded anew for that of the kernel; those of the columns then take their place.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from dk_bench.functional.operators import Tensors
from dk_bench.functional.scope_columns import Columns, Gradients, Piece
from dk_bench.functional.unfold_bound import bytes_at_a_time, column_dtype


class Rows:
    """Images (N, C, Hout, Wout) as matrices of a piece each, (groups, positions, C / groups), in the dtype of columns.

    In the images' own memory where they lie so, in channels_last; else through memory for one piece.
    """

    def __init__(self, images: Tensor, columns: Columns, groups: int) -> None:
        self._blocks, self._groups = images.flatten(2).transpose(1, 2), groups  # (N, positions, C)
        self._scratch = None
        if not lie_as_rows(images, columns.dtype):
            self._scratch = images.new_empty(columns.most, images.shape[1], dtype=columns.dtype)

    def memory(self, piece: Piece) -> Tensor:
        """Returns where the rows of a piece lie, whatever is there."""
        rows = self._block(piece).flatten(0, 1) if self._scratch is None else self._scratch[: piece.positions]
        return rows.unflatten(1, (self._groups, -1)).transpose(0, 1)

    def read(self, piece: Piece) -> Tensor:
        """Returns the rows of a piece."""
        if self._scratch is not None:
            self._scratch_block(piece).copy_(self._block(piece))
        return self.memory(piece)

    def write(self, piece: Piece) -> None:
        """Brings what lies where the rows of a piece do to the images."""
        if self._scratch is not None:
            self._block(piece).copy_(self._scratch_block(piece))

    def _block(self, piece: Piece) -> Tensor:
        return self._blocks[piece.image : piece.image + piece.images, piece.begin : piece.begin + piece.count]

    def _scratch_block(self, piece: Piece) -> Tensor:
        return self._scratch[: piece.positions].unflatten(0, (piece.images, piece.count))


def lie_as_rows(images: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether the images are a matrix (positions, C) of that dtype."""
    return images.dtype == dtype and images.is_contiguous(memory_format=torch.channels_last)


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Computes the product of every group, (groups, ., .), into memory, or adds it to what is there."""
    one = len(out) == 1
    if one:
        left, right, out = left[0], right[0], out[0]
    if left.dtype != out.dtype:  # on CUDA, of 16 bits: the sums of a product, and those of products, are float32
        product = (torch.mm if one else torch.bmm)(left, right, out_dtype=out.dtype)
        out.add_(product) if add else out.copy_(product)
    elif add:
        (torch.addmm if one else torch.baddbmm)(out, left, right, out=out)
    else:
        (torch.mm if one else torch.bmm)(left, right, out=out)


def forward(output: Tensor, operands: Tensors, settings: Sequence[Any]) -> None:
    """Fills the output of ``dk_bench::dense_deform_kernel``."""
    columns, groups = _columns(output, operands, settings)
    rows, kernel = Rows(output, columns, groups), _kernel(operands[3], columns, groups).transpose(1, 2)
    for piece in columns.pieces:
        multiply(columns.unfold(piece), kernel, rows.memory(piece))
        rows.write(piece)


def backward(
    results: Sequence[Tensor], grad: Tensor, operands: Tensors, settings: Sequence[Any], determinism: tuple[bool, bool]
) -> None:
    """Fills the results of ``dk_bench::dense_deform_kernel_backward`` that are wanted."""
    columns, groups = _columns(grad, operands, settings)
    rows, kernel = Rows(grad, columns, groups), _kernel(operands[3], columns, groups)
    gradients = Gradients(results)
    *of_columns, of_weight = gradients.sums
    sums = None if of_weight is None else _as_matrices(of_weight, groups)
    for number, piece in enumerate(columns.pieces):
        matrix = rows.read(piece)
        if sums is not None:
            multiply(matrix.transpose(1, 2), columns.unfold(piece), sums, add=number > 0)
        if any(t is not None for t in of_columns):
            multiply(matrix, kernel, columns.memory(piece))
            columns.fold(piece, gradients, determinism)
    gradients.finish()


def _columns(images: Tensor, operands: Tensors, settings: Sequence[Any]) -> tuple[Columns, int]:
    """Returns the columns, and how many groups there are; ``images`` is the output, or its gradient."""
    input, *_, weight = operands
    kernel_size, *geometry, bound = settings
    groups, scope, dtype = input.shape[1] // weight.shape[1], tuple(weight.shape[2:]), column_dtype(input)
    values = input.shape[1] * prod(scope) + (0 if lie_as_rows(images, dtype) else images.shape[1])  # of a position
    most = bytes_at_a_time(bound, input, weight.numel()) // (values * dtype.itemsize)
    return Columns(operands[:3], (kernel_size, scope, *geometry), prod(images.shape[2:]), groups, most), groups


def _kernel(weight: Tensor, columns: Columns, groups: int) -> Tensor:
    return _as_matrices(weight.to(columns.dtype, memory_format=torch.channels_last), groups)


def _as_matrices(weight: Tensor, groups: int) -> Tensor:
    """Returns (Cout, Cin / groups, Sh, Sw), in channels_last, as (groups, Cout / groups, Sh Sw Cin / groups)."""
    return weight.permute(0, 2, 3, 1).flatten(1).unflatten(0, (groups, -1))
