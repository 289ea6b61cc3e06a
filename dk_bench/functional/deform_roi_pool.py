"""Deformable RoI pooling as a function: its signature, fake tensors, vmap, autocast and derivatives."""

from math import prod

import torch
from torch import Tensor

from dk_bench import reference
from dk_bench.functional.batching import in_front, join_images, split, split_each
from dk_bench.functional.fallback import check_not_nan
from dk_bench.functional.onnx import is_exporting, refuse_roi_pool
from dk_bench.functional.operators import Operator, empty_in_format_of
from dk_bench.functional.registration import register
from dk_bench.reference.checks import IntPair, as_pair
from dk_bench.reference.deform_roi_pool import RoISettings, check_boxes, check_deform_roi_pool

_op = torch.ops.dk_bench.deform_roi_pool
_backward_op = torch.ops.dk_bench.deform_roi_pool_backward


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    output_size: IntPair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    aligned: bool = True,
    position_sensitive: bool = False,
) -> Tensor:
    """Averages over the bins of boxes, which move: deformable RoI pooling (Dai et al., ICCV 2017, section 2.2).

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16; contiguous or channels_last, the output likewise.
        rois, offset, mask: as in :func:`dk_bench.reference.deform_roi_pool`, which is also what this computes; rois may
            have no tangent.
        output_size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive: see
            :class:`dk_bench.reference.RoISettings`.

    Returns:
        (R, Cout, Ph, Pw) in input's dtype; coordinates and sums are float32 (float64 for float64).

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit, or (on the CPU) rois name an image that
            is not there, or rois or offset hold a NaN; the message names the argument. On CUDA such a box or bin gives
            NaN, as raising would cost a synchronisation.
            Also during ``torch.onnx.export``: there is no ONNX form. And in forward mode, where rois have a tangent.
        TypeError: output_size is not an int or a pair of ints.
    """
    size, spatial_scale, gamma = as_pair("output_size", output_size), float(spatial_scale), float(gamma)
    settings = (size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive)
    return _op(input, rois, offset, mask, *settings)


def _fake(input, rois, offset, mask, output_size, *settings):
    if is_exporting():  # here, as strict exports run no Python of the function's own
        refuse_roi_pool()
    channels = check_deform_roi_pool(input, rois, offset, mask, RoISettings(tuple(output_size), *settings))
    return empty_in_format_of(input, (rois.shape[0], channels, *output_size))


def _along_offset(tangents, operands, settings):
    """Returns the output's tangent along the offset's.

    With an offset for every output channel, dL/doffset at a gradient of ones is the derivative of each output.
    """
    input, rois, offset, mask = operands
    bins = RoISettings(*settings)
    channels = input.shape[1] // prod(bins.output_size) if bins.position_sensitive else input.shape[1]

    def of_each_channel(t):
        pairs = split(t, 1, t.shape[1] // 2)
        return pairs.repeat_interleave(channels // pairs.shape[1], 1)

    ones = input.new_ones(rois.shape[0], channels, *bins.output_size)
    moved = of_each_channel(offset).flatten(1, 2)
    slopes = _backward_op(ones, input, rois, moved, mask, *settings, False, False, (False, True, False))[1]
    return (split(slopes, 1, channels) * of_each_channel(tangents[2])).sum(2).to(input.dtype)


def _specification(input, rois, *others, **settings):
    if _is_mapped(rois):
        raise RuntimeError(
            "deform_roi_pool: second derivatives cannot be mapped over rois (torch.vmap), as the number of samples "
            "follows from the boxes; map over the other operands, or differentiate in a loop"
        )
    return reference.deform_roi_pool(input, rois, *others, **settings)


def _is_mapped(tensor):
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def _join(count, in_dims, input, rois, offset, mask, join_input):
    """Returns the operands of all calls as those of one: their boxes, and their images where these are joined too."""
    images = input.shape[0] if in_dims[0] is None else input.movedim(in_dims[0], 0).shape[1]
    boxes = in_front(rois, in_dims[1], count)
    if join_input:
        boxes = boxes if boxes.dtype.itemsize > 2 else boxes.float()  # 16 bits hold no large number of an image
        index = boxes[..., :1]
        first = images * torch.arange(count, device=boxes.device, dtype=boxes.dtype).view(-1, 1, 1)
        named = torch.where((index >= 0) & (index < images), index.floor() + first, torch.nan)
        boxes = torch.cat((named, boxes[..., 1:]), -1)
        input = join_images(input, in_dims[0], count)
    others = [join_images(t, d, count) for t, d in ((offset, in_dims[2]), (mask, in_dims[3]))]
    return input, boxes.flatten(0, 1), *others


def _vmap(info, in_dims, input, rois, offset, mask, *settings):
    """Joins the boxes of all calls, which are independent; images are joined where they are mapped."""
    count = info.batch_size
    joined = _join(count, in_dims, input, rois, offset, mask, in_dims[0] is not None)
    return split(_op(*joined, *settings), 0, count), 0


def _vmap_backward(info, in_dims, grad, input, rois, offset, mask, *settings):
    """Joins as ``_vmap``; dL/dinput, a sum over boxes, takes images of its own for every call."""
    count, wanted = info.batch_size, _operator.wanted(settings)
    joined = _join(count, in_dims[1:5], input, rois, offset, mask, in_dims[1] is not None or wanted[0])
    results = _backward_op(join_images(grad, in_dims[0], count), *joined, *settings)
    return split_each(results, (0, 0, 0), _operator.outputs((input, rois, offset, mask), settings), count)


def _autocast(input, rois, offset, mask, *settings):
    """Leaves the map its dtype, as the sums are float32 anyway; boxes and offsets, to lose nothing, go as float32."""
    wide = input.dtype if input.dtype == torch.float64 else torch.float32
    given = [t if t is None or t.dtype == input.dtype else t.to(wide) for t in (rois, offset, mask)]
    return input, *given, *settings


def _check_values(input, rois, offset, mask):
    check_boxes(rois, input.shape[0])
    check_not_nan(offset=offset)


# On CUDA dL/dinput is a sum by atomics; the CPU's sums are always in order. Boxes get no gradient.
_operator = Operator("deform_roi_pool", _specification, linear=(0, 3), constants=(1,))
register(_operator, _fake, _vmap, _vmap_backward, _autocast, push=_along_offset, check_values=_check_values)
