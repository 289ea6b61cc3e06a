"""What the operators cost, as formulas. Importing the package registers them in torch.utils.flop_counter.

A multiply-add (MAC) is two FLOPs. The formulas registered in torch count the convolution alone, Kh Kw multiply-adds
for each of the N C Hout Wout outputs, so that a deformed convolution costs what the rigid one does. The bilinear
interpolation that it also does is counted apart, in ``SAMPLING_MACS``: 4 multiply-adds (one a corner) for each tap,
channel and position, once for data offsets and once for kernel offsets. Computing the 4 coefficients is left out: they
are the same for all channels. RoI pooling is interpolation and averaging alone, so it counts 0 in torch, as pooling
does; its ``SAMPLING_MACS`` are 4 a sample, channel and bin, with one sample a bin where their number follows the boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401  (defines its operators)
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dk_bench.functional import deform_roi_pool, depthwise_conv_per_image, registration  # noqa: F401  (loads the operators)
from dk_bench.functional.loading import CHOSEN, COMPILED

_CORNERS = 4

_forward_op = torch.ops.dk_bench.deform_kernel_conv
_backward_op = torch.ops.dk_bench.deform_kernel_conv_backward
_per_image_op = torch.ops.dk_bench.depthwise_conv_per_image
_per_image_backward_op = torch.ops.dk_bench.depthwise_conv_per_image_backward
_dense_op = torch.ops.torchvision.deform_conv2d
_roi_op = torch.ops.dk_bench.deform_roi_pool
_roi_backward_op = torch.ops.dk_bench.deform_roi_pool_backward


@register_flop_formula(_forward_op, get_raw=True)
def deform_kernel_conv_flops(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    kernel_size: list[int],
    *rest: Any,
    out_val: Tensor,
) -> int:
    """FLOPs of the depthwise convolution, without sampling."""
    return 2 * prod(kernel_size) * out_val.numel()


@register_flop_formula(_backward_op, get_raw=True)
def deform_kernel_conv_backward_flops(
    grad: Tensor,
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    kernel_size: list[int],
    *rest: Any,
    out_val: tuple[Tensor, ...],
) -> int:
    """FLOPs of the gradients of input and weight, each as much as the forward pass, without sampling; if wanted."""
    of_input, *_, of_weight = out_val  # what is not wanted is empty
    return 2 * prod(kernel_size) * grad.numel() * ((of_input.dim() == 4) + (of_weight.dim() == 4))


@register_flop_formula(_per_image_op, get_raw=True)
def depthwise_conv_per_image_flops(input: Tensor, weight: Tensor, *rest: Any, out_val: Tensor) -> int:
    """FLOPs of a depthwise convolution."""
    return 2 * prod(weight.shape[2:]) * out_val.numel()


@register_flop_formula(_per_image_backward_op, get_raw=True)
def depthwise_conv_per_image_backward_flops(
    grad: Tensor, input: Tensor, weight: Tensor, *rest: Any, out_val: tuple[Tensor, ...]
) -> int:
    """FLOPs of the gradients of input and weight, each as much as the forward pass; if wanted."""
    return 2 * prod(weight.shape[2:]) * grad.numel() * sum(t.dim() == 4 for t in out_val)


@register_flop_formula(_dense_op, get_raw=True)
def deform_conv2d_flops(input: Tensor, weight: Tensor, *rest: Any, out_val: Tensor) -> int:
    """FLOPs of torchvision's deformable convolution, without sampling."""
    return 2 * out_val.numel() * prod(weight.shape[1:])


@register_flop_formula((_roi_op, _roi_backward_op), get_raw=True)
def deform_roi_pool_flops(*operands: Any, out_val: Any) -> int:
    """No convolution and no matrix product: 0, forward and backward."""
    return 0


def cpu_variant_flops(out_val: str) -> int:
    """Returns a question and no arithmetic: 0."""
    return 0


if CHOSEN == COMPILED:  # or nobody asks
    register_flop_formula(torch.ops.dk_bench.cpu_variant, get_raw=True)(cpu_variant_flops)


def _local_sampling(
    input: Tensor,
    data_offset: Tensor | None,
    kernel_offset: Tensor | None,
    weight: Tensor,
    kernel_size: list[int],
    *rest: Any,
    out_val: Tensor,
) -> int:
    sampled = (data_offset is not None) + (kernel_offset is not None)
    return sampled * _CORNERS * prod(kernel_size) * out_val.numel()


def _dense_sampling(input: Tensor, weight: Tensor, *rest: Any, out_val: Tensor) -> int:
    images, _, height, width = out_val.shape
    return _CORNERS * prod(weight.shape[2:]) * images * input.shape[1] * height * width


def _roi_sampling(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    *rest: Any,
    out_val: Tensor,
) -> int:
    return _CORNERS * max(sampling_ratio, 1) ** 2 * out_val.numel()


SAMPLING_MACS: dict[Any, Callable[..., int]] = {
    _forward_op: _local_sampling,
    _dense_op: _dense_sampling,
    _roi_op: _roi_sampling,
}
"""Operator to formula: multiply-adds of the forward pass's bilinear interpolation."""
