"""The operators in ONNX's own terms, for ``torch.onnx.export``: DCN is a DeformConv, the rest standard operators.

During an export the functions of :mod:`dk_bench.functional` come here by themselves. An ``ExportedProgram`` that was
made without ONNX in mind holds this package's operators; ``program.run_decompositions(onnx.DECOMPOSITIONS)`` takes them
out. Forward only, with any batch and image size; 16-bit operands are computed in float32, as the operators do.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from dk_bench.functional import loading  # noqa: F401  (loads the operators)
from dk_bench.reference import sample_kernel
from dk_bench.reference.checks import Pair, compute_dtype
from dk_bench.reference.deform_kernel_conv import check_deform_kernel_conv
from dk_bench.reference.dense_deform_kernel import check_dense_deform_kernel
from dk_bench.reference.scope_unfold import check_scope_unfold


def is_exporting() -> bool:
    """Tells whether ``torch.onnx.export`` is at work. (Asked in this order, as the second takes a microsecond.)"""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def deform_kernel_conv(
    input: Tensor, data_offset: Tensor | None, kernel_offset: Tensor | None, weight: Tensor, *settings: Any
) -> Tensor:
    """Computes what the operator does, from its arguments in its order: settings are kernel_size, stride, padding,
    dilation (pairs of ints) and clip. Needs opset 19 for data offsets alone (DeformConv), else 16. Raises ValueError
    that names the argument that does not fit."""
    *geometry, clip = settings
    geometry = [tuple(pair) for pair in geometry]
    size = check_deform_kernel_conv(input, data_offset, kernel_offset, weight, geometry)
    dtype = input.dtype
    input, data_offset, kernel_offset, weight = _in_compute_dtype(input, data_offset, kernel_offset, weight)
    if kernel_offset is None:
        output = _rigid_kernel(input, data_offset, weight, geometry, clip)
    else:
        read = _read(input, data_offset, geometry, size)
        output = (read * _tap_kernels(weight, kernel_offset, geometry[0], clip)).sum(1)
    return output.to(dtype)


def dense_deform_kernel(
    input: Tensor, data_offset: Tensor | None, kernel_offset: Tensor | None, weight: Tensor, *settings: Any
) -> Tensor:
    """Computes what the operator does, as `deform_kernel_conv`; settings may end in the bound of memory, which nothing
    here obeys."""
    *geometry, clip = settings[:5]
    geometry = [tuple(pair) for pair in geometry]
    size = check_dense_deform_kernel(input, data_offset, kernel_offset, weight, geometry)
    dtype, scope = input.dtype, tuple(weight.shape[2:])
    input, data_offset, kernel_offset, weight = _in_compute_dtype(input, data_offset, kernel_offset, weight)
    if kernel_offset is None:
        return _rigid_kernel(input, data_offset, weight, geometry, clip).to(dtype)
    unfolded = _unfold(input, data_offset, kernel_offset, scope, geometry, size, clip)
    groups = input.shape[1] // weight.shape[1]
    parts = unfolded.flatten(2).unflatten(2, (groups, -1)).transpose(1, 2)  # (N, groups, Hout Wout, Cin / groups S)
    kernel = weight.flatten(1).unflatten(0, (groups, -1)).transpose(1, 2)
    return (parts @ kernel).transpose(2, 3).flatten(1, 2).unflatten(2, size).to(dtype)


def scope_unfold(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    kernel_size: Sequence[int],
    scope: Sequence[int],
    *settings: Any,
) -> Tensor:
    """Computes what the operator does, as `deform_kernel_conv`."""
    *geometry, clip = kernel_size, *settings
    geometry, scope = [tuple(pair) for pair in geometry], tuple(scope)
    size = check_scope_unfold(input, data_offset, kernel_offset, scope, geometry)
    dtype = input.dtype
    input, data_offset, kernel_offset = _in_compute_dtype(input, data_offset, kernel_offset)
    if kernel_offset is None:
        kernel_offset = input.new_zeros(1, 2 * geometry[0][0] * geometry[0][1], 1, 1)
    unfolded = _unfold(input, data_offset, kernel_offset, scope, geometry, size, clip)
    return unfolded.flatten(2).transpose(1, 2).to(dtype)


def _in_compute_dtype(input: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    dtype = compute_dtype(input)
    return [t if t is None else t.to(dtype) for t in (input, *others)]


def _read(input: Tensor, data_offset: Tensor | None, geometry: Sequence[Pair], size: Pair) -> Tensor:
    """Returns what the taps read, (N, taps, C, Hout, Wout)."""
    if data_offset is None:
        return _taps(input, geometry, size)
    return _sample_input(input, data_offset, geometry, size)


def _unfold(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor,
    scope: Pair,
    geometry: Sequence[Pair],
    size: Pair,
    clip: bool,
) -> Tensor:
    """Returns Z, (N, Hout Wout, C, Sh Sw): at every position a product of what the taps read with their coefficients.

    An offset of one position stands for all.
    """
    read = _read(input, data_offset, geometry, size).flatten(3).permute(0, 3, 2, 1)
    return read @ _coefficients(kernel_offset, geometry[0], scope, clip).flatten(3).permute(0, 3, 1, 2)


def _rigid_kernel(
    input: Tensor, data_offset: Tensor | None, weight: Tensor, geometry: Sequence[Pair], clip: bool
) -> Tensor:
    """Returns the same kernel everywhere: the one that the taps read where they rest."""
    kernel_size, stride, padding, dilation = geometry
    if tuple(weight.shape[2:]) != kernel_size:
        rest = weight.new_zeros(1, 2 * kernel_size[0] * kernel_size[1])
        weight = sample_kernel(weight, rest, kernel_size=kernel_size, clip=clip)[0]
    if data_offset is None:
        return F.conv2d(input, weight, None, stride, padding, dilation, input.shape[1] // weight.shape[1])
    return deform_conv2d(input, data_offset, weight, None, stride, padding, dilation)


def _tap_kernels(weight: Tensor, kernel_offset: Tensor, kernel_size: Pair, clip: bool) -> Tensor:
    """Returns W', (N, taps, C, Hout, Wout): the taps' coefficients of interpolation times the kernel over the scope."""
    coefficients = _coefficients(kernel_offset, kernel_size, tuple(weight.shape[2:]), clip)
    return (weight.flatten(1) @ coefficients.flatten(3)).unflatten(3, coefficients.shape[3:])


def _coefficients(kernel_offset: Tensor, kernel_size: Pair, scope: Pair, clip: bool) -> Tensor:
    """Returns B of every tap, (N, taps, Sh Sw, Hout, Wout)."""
    offset = kernel_offset.unflatten(1, (-1, 2))  # (N, taps, 2, Hout, Wout)
    along_y, along_x = (_hat(offset[:, :, axis], kernel_size, axis, scope[axis], clip) for axis in (0, 1))
    return (along_y.unsqueeze(3) * along_x.unsqueeze(2)).flatten(2, 3)


def _hat(offset: Tensor, kernel_size: Pair, axis: int, samples: int, clip: bool) -> Tensor:
    """Returns B of the paper's equation 6 along one axis: (N, taps, Hout, Wout) to (N, taps, samples, Hout, Wout).

    In few operators: with those of the reference's `hat` a layer takes three times as long in onnxruntime.
    """
    like = {"device": offset.device, "dtype": offset.dtype}
    rest = torch.arange(kernel_size[axis], **like) + (samples - kernel_size[axis]) / 2
    rest = rest.repeat_interleave(kernel_size[1]) if axis == 0 else rest.repeat(kernel_size[0])
    coordinate = offset + rest.view(-1, 1, 1)
    if clip:
        coordinate = coordinate.clamp(0, samples - 1)
    distance = coordinate.unsqueeze(2) - torch.arange(samples, **like).view(-1, 1, 1)
    return (1 - distance.abs()).relu()


def _taps(input: Tensor, geometry: Sequence[Pair], size: Pair) -> Tensor:
    """Returns what the taps of a rigid convolution read, (N, taps, C, Hout, Wout).

    Columns are cut out first, then rows of them all: a view for every tap, as `tap_views` gives, would be 56 slices
    where a kernel is 7 x 7, of which torch takes minutes to export a network.
    """
    kernel_size, stride, padding, dilation = geometry
    if max(stride) > 1 and not all(type(side) is int for side in size):
        # Gathers, which are slower: of a slice with steps, of a map whose size is open, torch may not know the size.
        read = F.unfold(input, kernel_size, dilation, padding, stride)  # (N, C taps, Hout Wout)
        return read.view(input.shape[0], input.shape[1], -1, *size).transpose(1, 2)
    read = F.pad(input, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else input
    for axis in (1, 0):
        last = (size[axis] - 1) * stride[axis] + 1
        begins = [tap * dilation[axis] for tap in range(kernel_size[axis])]
        cuts = [(slice(None),) * (2 + axis) + (slice(b, b + last, stride[axis]),) for b in begins]
        read = torch.cat([read[cut] for cut in cuts], 1)
    return read.unflatten(1, (-1, input.shape[1]))


def _sample_input(input: Tensor, data_offset: Tensor, geometry: Sequence[Pair], size: Pair) -> Tensor:
    """Returns x_k of deformable convolution, (N, taps, C, Hout, Wout), by one GridSample."""
    kernel_size, stride, padding, dilation = geometry
    offset = data_offset.unflatten(1, (-1, 2))
    axes = []
    for axis in (0, 1):
        like = {"device": input.device, "dtype": input.dtype}
        tap = torch.arange(kernel_size[axis], **like) * dilation[axis] - padding[axis]
        tap = tap.repeat_interleave(kernel_size[1]) if axis == 0 else tap.repeat(kernel_size[0])
        position = (torch.arange(size[axis], **like) * stride[axis]).unsqueeze(1 - axis)
        coordinate = offset[:, :, axis] + tap.view(-1, 1, 1) + position
        axes.append((2 * coordinate + 1) / input.shape[2 + axis] - 1)  # GridSample's units, align_corners=False
    grid = torch.stack((axes[1], axes[0]), dim=-1).flatten(1, 2)
    read = F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return read.unflatten(2, (-1, size[0])).transpose(1, 2)


def refuse_roi_pool(*_: Any) -> NoReturn:
    """Raises RuntimeError: how many samples a bin has depends on its box, which no standard operator can say."""
    raise RuntimeError(
        "dk_bench.functional.deform_roi_pool has no ONNX form (the number of a bin's samples follows its box); export "
        "the model up to its feature maps and pool outside"
    )


DECOMPOSITIONS = {
    torch.ops.dk_bench.deform_kernel_conv.default: deform_kernel_conv,
    torch.ops.dk_bench.dense_deform_kernel.default: dense_deform_kernel,
    torch.ops.dk_bench.scope_unfold.default: scope_unfold,
    torch.ops.dk_bench.deform_roi_pool.default: refuse_roi_pool,
}
"""Operator to its ONNX form, for ``ExportedProgram.run_decompositions``."""
