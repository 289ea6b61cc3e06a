"""Deformable RoI pooling as a function, and how it behaves under fake tensors, autograd and autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from dk_bench._arguments import IntPair, as_pair
from dk_bench._roi_arguments import check_roi_pool
from dk_bench.functional.onnx import is_exporting, refuse_roi_pool
from dk_bench.functional.registration import _empty_in_format_of, _library

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
            input. They get no gradient. Boxes may be empty or lie outside the image; R and N may be 0.
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
            Also during ``torch.onnx.export``: there is no ONNX form.
        TypeError: output_size is not an int or a pair of ints.
    """
    if is_exporting():
        refuse_roi_pool()
    return _op(
        input, rois, offset, mask, as_pair("output_size", output_size), float(spatial_scale), sampling_ratio,
        float(gamma), aligned, position_sensitive,
    )


@torch.library.register_fake("dk_bench::deform_roi_pool")
def _fake(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, gamma, aligned, position_sensitive):
    channels = check_roi_pool(
        input, rois, offset, mask, tuple(output_size), spatial_scale, sampling_ratio, gamma, position_sensitive
    )
    return _empty_in_format_of(input, (rois.shape[0], channels, *output_size))


@torch.library.register_fake("dk_bench::deform_roi_pool_backward")
def _fake_backward(grad, input, rois, offset, mask, *rest):
    given = [input.new_empty(0) if t is None else _empty_in_format_of(t, t.shape) for t in (offset, mask)]
    return _empty_in_format_of(input, input.shape), *given


def _setup_context(ctx, inputs, output):
    tensors, ctx.settings = inputs[:4], inputs[4:]
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad):
    # On CUDA dL/dinput is a sum by atomics; the CPU's sums are always in order.
    deterministic = torch.are_deterministic_algorithms_enabled()
    of_input, *of_others = _backward_op(grad, *ctx.saved_tensors, *ctx.settings, deterministic)
    wanted = [
        g if need else None
        for g, need in zip((of_input, None, *of_others), ctx.needs_input_grad[:4], strict=True)
    ]
    return *wanted, *(None for _ in ctx.settings)


torch.library.register_autograd("dk_bench::deform_roi_pool", _autograd, setup_context=_setup_context)


def _register_autocast(device: str) -> None:
    """The map keeps its dtype, as the sums are float32 anyway; boxes and offsets lose nothing: they go as float32."""
    key = "AutocastCPU" if device == "cpu" else "AutocastCUDA"

    def autocast(input, rois, offset, mask, *settings):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
            wide = input.dtype if input.dtype == torch.float64 else torch.float32
            given = [t if t is None or t.dtype == input.dtype else t.to(wide) for t in (rois, offset, mask)]
            return _op(input, *given, *settings)

    _library.impl("deform_roi_pool", autocast, key)


_register_autocast("cpu")
_register_autocast("cuda")
