"""The unfolding over the scope as a function: its signature, fake tensors, vmap, autocast and derivatives."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from dk_bench import reference
from dk_bench.functional import onnx
from dk_bench.functional.batching import join_images, split, split_each
from dk_bench.functional.composed import register_composed
from dk_bench.functional.convolution_rules import check_offset_values
from dk_bench.functional.operators import Operator
from dk_bench.functional.registration import register
from dk_bench.functional.scope_columns import Columns, Gradients, Piece
from dk_bench.functional.unfold_bound import bytes_at_a_time, column_dtype, default_bound
from dk_bench.reference.checks import IntPair, as_pairs
from dk_bench.reference.scope_unfold import check_scope_unfold

_op = torch.ops.dk_bench.scope_unfold
_backward_op = torch.ops.dk_bench.scope_unfold_backward


def scope_unfold(
    input: Tensor,
    kernel_offset: Tensor | None,
    *,
    kernel_size: IntPair,
    scope: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    clip: bool = True,
    data_offset: Tensor | None = None,
) -> Tensor:
    """Unfolds an input over the scope of a deformable kernel, as ``torch.nn.functional.unfold`` does over taps.

    A convolution wants :func:`dense_deform_kernel`, which unfolds in pieces: the whole is Sh Sw times the input.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16, any strides.
        kernel_offset, data_offset: (N, 2 * Kh * Kw, Hout, Wout), channels (dy, dx) a tap, taps row-major, in pixels of
            the scope and of the input; input's dtype, or float32 beside a 16-bit input; None for zero.
        scope: (Sh, Sw), the size of the kernel that this is for.
        kernel_size, stride, padding, dilation, clip: as in :func:`dk_bench.reference.scope_unfold`, which is also what
            this computes.

    Returns:
        (N, C * Sh * Sw, Hout * Wout), channels (c, sh, sw), contiguous, in input's dtype; sums are float32 (float64 for
        float64).

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit, or (on the CPU) an offset is NaN; the
            message names the argument. On CUDA a NaN offset gives NaN.
        TypeError: kernel_size, scope, stride, padding or dilation is not an int or a pair of ints.
    """
    sizes = as_pairs(kernel_size=kernel_size, scope=scope, stride=stride, padding=padding, dilation=dilation)
    compute = onnx.scope_unfold if onnx.is_exporting() else _op
    return compute(input, data_offset, kernel_offset, *sizes, clip)


def _fake(input, data_offset, kernel_offset, kernel_size, scope, stride, padding, dilation, clip):
    geometry = [tuple(pair) for pair in (kernel_size, stride, padding, dilation)]
    size = check_scope_unfold(input, data_offset, kernel_offset, tuple(scope), geometry)
    return input.new_empty(input.shape[0], input.shape[1] * prod(scope), prod(size))


def _vmap(info, in_dims, input, data_offset, kernel_offset, *settings):
    """Joins calls as images, whichever operand they share."""
    operands = (input, data_offset, kernel_offset)
    joined = [join_images(t, d, info.batch_size) for t, d in zip(operands, in_dims, strict=False)]
    return split(_op(*joined, *settings), 0, info.batch_size), 0


def _vmap_backward(info, in_dims, grad, input, data_offset, kernel_offset, *settings):
    operands = (input, data_offset, kernel_offset)
    joined = [join_images(t, d, info.batch_size) for t, d in zip((grad, *operands), in_dims, strict=False)]
    results = _backward_op(*joined, *settings)
    return split_each(results, (0, 0, 0), _operator.outputs(operands, settings), info.batch_size)


def _autocast(input, data_offset, kernel_offset, *settings):
    """Leaves the image its dtype, as ``torch.nn.functional.unfold`` does; offsets, to lose nothing, go as float32."""
    wide = input.dtype if input.dtype == torch.float64 else torch.float32
    offsets = [o if o is None or o.dtype == input.dtype else o.to(wide) for o in (data_offset, kernel_offset)]
    return input, *offsets, *settings


def _specification(input, data_offset, kernel_offset, **settings):
    return reference.scope_unfold(input, kernel_offset, data_offset=data_offset, **settings)


def _columns(output: Tensor, operands: Sequence[Tensor | None], settings: Sequence[Any]) -> Columns:
    each = output.shape[1] * column_dtype(operands[0]).itemsize
    most = bytes_at_a_time(default_bound(), operands[0]) // each
    return Columns(operands, settings, output.shape[2], 1, most)


def _block(output: Tensor, channels: int, piece: Piece) -> Tensor:
    """Returns a piece of (N, C Sh Sw, positions) in the order of columns: (images, positions, Sh Sw, C)."""
    blocks = output.unflatten(1, (channels, -1)).permute(0, 3, 2, 1)
    return blocks[piece.image : piece.image + piece.images, piece.begin : piece.begin + piece.count]


def _forward(output, operands, settings):
    columns = _columns(output, operands, settings)
    for piece in columns.pieces:
        block = _block(output, operands[0].shape[1], piece)
        block.copy_(columns.unfold(piece).view(block.shape))


def _backward(results, grad, operands, settings, determinism):
    columns, gradients = _columns(grad, operands, settings), Gradients(results)
    for piece in columns.pieces:
        block = _block(grad, operands[0].shape[1], piece)
        columns.memory(piece).view(block.shape).copy_(block)
        columns.fold(piece, gradients, determinism)
    gradients.finish()


_operator = Operator("scope_unfold", _specification, linear=(0,))
register(_operator, _fake, _vmap, _vmap_backward, _autocast, check_values=check_offset_values)
register_composed(_operator, _fake, _forward, _backward, "unfold_columns")
