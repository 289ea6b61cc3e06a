"""Deformable RoI pooling as a function, and how it behaves under fake tensors, derivatives, vmap and autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from dk_bench.functional.batching import in_front, join_images, split
from dk_bench.functional.derivatives import Reference, Rules, register_derivatives
from dk_bench.functional.fallback import check_not_nan, register_fallback
from dk_bench.functional.loading import library
from dk_bench.functional.onnx import is_exporting, refuse_roi_pool
from dk_bench.functional.registration import determinism, empty_in_format_of, register_autocast
from dk_bench.reference import deform_roi_pool as reference_roi
from dk_bench.reference.checks import IntPair, as_pair
from dk_bench.reference.roi_checks import check_boxes, check_roi_pool

__all__ = ["deform_roi_pool"]

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
    """Deformable RoI pooling (Dai et al., ICCV 2017, section 2.2): average pooling of bins that move.

    Each of a box's Ph x Pw bins is the average of bilinear samples on a grid, as in RoIAlign (He et al., ICCV 2017),
    and is moved as a whole by gamma * (the box's height, width) * (its offset). Without offset and mask it is
    ``torchvision.ops.roi_align``; position-sensitive and aligned, ``torchvision.ops.ps_roi_align``.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16; contiguous or channels_last, the output likewise.
        rois: (R, 5), rows (image, x1, y1, x2, y2) in pixels of the image; input's dtype, or float32 beside a 16-bit
            input. They get no gradient, and may have no tangent. Boxes may be empty or lie outside the image; R and N
            may be 0.
        offset: (R, 2 * G, Ph, Pw), channels (dy, dx) a group, as fractions of the box's size, or None for zero. The
            output's channels are cut into G groups, which move apart (position-sensitive pooling: one a class).
        mask: (R, 1, Ph, Pw), a factor on each bin's output (Zhu et al., CVPR 2019, "DCN v2"), or None for one. Both
            have input's dtype, or float32 beside a 16-bit input.
        output_size: (Ph, Pw).
        spatial_scale: pixels of the map a pixel of the image: 1 / the map's stride.
        sampling_ratio: samples a bin along each axis; 0 for as many as the bin has pixels, rounded up.
        gamma: what offsets are multiplied by, 0.1 in the paper.
        aligned: subtract half a pixel from the boxes' corners, so that they mean the same on every map. Otherwise boxes
            are at least one pixel of the map large.
        position_sensitive: C = Cout * Ph * Pw, and bin (i, j) of output channel c reads channel (c * Ph + i) * Pw + j.

    Returns:
        (R, Cout, Ph, Pw) in input's dtype; coordinates and sums are float32 (float64 for float64).

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit, or (on the CPU) rois name an image that
            is not there, or rois or offset hold a NaN; the message names the argument. On CUDA such a box or bin gives
            NaN, as raising would cost a synchronisation.
            Also during ``torch.onnx.export``: there is no ONNX form. And in forward mode, where rois have a tangent.
        TypeError: output_size is not an int or a pair of ints.
    """
    return _op(
        input,
        rois,
        offset,
        mask,
        as_pair("output_size", output_size),
        float(spatial_scale),
        sampling_ratio,
        float(gamma),
        aligned,
        position_sensitive,
    )


@torch.library.register_fake("dk_bench::deform_roi_pool")
def _fake(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive):
    if is_exporting():  # here, as strict exports run no Python of the function's own
        refuse_roi_pool()
    channels = check_roi_pool(
        input, rois, offset, mask, tuple(output_size), spatial_scale, sampling_ratio, gamma, position_sensitive
    )
    return empty_in_format_of(input, (rois.shape[0], channels, *output_size))


@torch.library.register_fake("dk_bench::deform_roi_pool_backward")
def _fake_backward(grad, input, rois, offset, mask, *settings):
    return tuple(
        input.new_empty(0) if t is None or not wanted else empty_in_format_of(t, t.shape)
        for t, wanted in zip((input, offset, mask), _of_reference.wanted(settings), strict=True)
    )


def _backward(grads, operands, settings, wanted):
    # On CUDA dL/dinput is a sum by atomics; the CPU's sums are always in order. Boxes get no gradient.
    wanted = [wanted[i] for i in (0, 2, 3)]
    results = _backward_op(*grads, *operands, *settings, *determinism(), wanted)
    of_input, *of_others = [g if want else None for g, want in zip(results, wanted, strict=True)]
    return of_input, None, *of_others


def _jvp(tangents, operands, settings):
    """Input and mask enter linearly: their tangents go through the operator."""
    terms = [_op(*operands[:i], tangents[i], *operands[i + 1 :], *settings) for i in (0, 3) if tangents[i] is not None]
    if tangents[2] is not None:
        terms.append(_along_offset(tangents[2], operands, settings))
    return sum(terms[1:], terms[0])


def _along_offset(tangent, operands, settings):
    """With an offset for every output channel, dL/doffset at a gradient of ones is the derivative of each output."""
    input, rois, offset, mask = operands
    channels = input.shape[1] // (settings[0][0] * settings[0][1]) if settings[5] else input.shape[1]

    def of_each_channel(t):
        pairs = split(t, 1, t.shape[1] // 2)
        return pairs.repeat_interleave(channels // pairs.shape[1], 1)

    ones = input.new_ones(rois.shape[0], channels, *settings[0])
    moved = of_each_channel(offset).flatten(1, 2)
    slopes = _backward_op(ones, input, rois, moved, mask, *settings, False, False, (False, True, False))[1]
    return (split(slopes, 1, channels) * of_each_channel(tangent)).sum(2).to(input.dtype)


def _reference(operands, settings):
    if _is_mapped(operands[1]):
        raise RuntimeError(
            "deform_roi_pool: second derivatives cannot be mapped over rois (torch.vmap), as the number of samples "
            "follows from the boxes; map over the other operands, or differentiate in a loop"
        )
    output_size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive = settings
    return reference_roi.deform_roi_pool(
        *operands,
        output_size=tuple(output_size),
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        gamma=gamma,
        aligned=aligned,
        position_sensitive=position_sensitive,
    )


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
    """Boxes are independent, so those of all calls go into one; images are joined where they are mapped."""
    count = info.batch_size
    joined = _join(count, in_dims, input, rois, offset, mask, in_dims[0] is not None)
    return split(_op(*joined, *settings), 0, count), 0


def _vmap_backward(info, in_dims, grad, input, rois, offset, mask, *settings):
    """As ``_vmap``; dL/dinput, a sum over boxes, takes images of its own for every call."""
    count, wanted = info.batch_size, _of_reference.wanted(settings)
    joined = _join(count, in_dims[1:5], input, rois, offset, mask, in_dims[1] is not None or wanted[0])
    results = _backward_op(join_images(grad, in_dims[0], count), *joined, *settings)
    there = [want and t is not None for want, t in zip(wanted, (input, offset, mask), strict=True)]
    split_up = tuple(split(r, 0, count) if t else r for r, t in zip(results, there, strict=True))
    return split_up, tuple(0 if t else None for t in there)


def _autocast(input, rois, offset, mask, *settings):
    """Returns the map keeps its dtype, as the sums are float32 anyway; boxes and offsets lose nothing: they go as
    float32.
    """
    wide = input.dtype if input.dtype == torch.float64 else torch.float32
    given = [t if t is None or t.dtype == input.dtype else t.to(wide) for t in (rois, offset, mask)]
    return input, *given, *settings


def _check_values(input, rois, offset, mask):
    check_boxes(rois, input.shape[0])
    check_not_nan(offset=offset)


_of_reference = Reference(_reference, operands=4, settings=6, differentiable=(0, 2, 3))
register_derivatives(library, "deform_roi_pool", Rules(4, _backward, _jvp, _vmap, _autocast, constants=(1,)))
register_derivatives(library, "deform_roi_pool_backward", _of_reference.backward_rules(_vmap_backward))
register_autocast("deform_roi_pool", _autocast)
register_fallback("deform_roi_pool", _of_reference, _fake, _fake_backward, _check_values)
