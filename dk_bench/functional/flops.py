"""Formulas of what the operators cost. Importing the package registers them in torch.utils.flop_counter.

A multiply-add (MAC) is two FLOPs. The formulas registered in torch count the convolution alone, Kh Kw multiply-adds
for each of the N C Hout Wout outputs, so that a deformed convolution costs what the rigid one does. The bilinear
interpolation that it also does is counted apart, in ``SAMPLING_MACS``: 4 multiply-adds (one a corner) for each tap,
channel and position, once for data offsets and once for kernel offsets. Computing the 4 coefficients is left out: they
are the same for all channels. RoI pooling is interpolation and averaging alone, so it counts 0 in torch, as pooling
does; its ``SAMPLING_MACS`` are 4 a sample, channel and bin, with one sample a bin where their number follows the boxes.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401  (defines its operators)
from torch.utils.flop_counter import flop_registry, register_flop_formula

from dk_bench.functional.loading import CHOSEN, COMPILED

_CORNERS = 4

_ours, _dense_op = torch.ops.dk_bench, torch.ops.torchvision.deform_conv2d


@register_flop_formula(_ours.deform_kernel_conv, get_raw=True)
def _deform_kernel_conv(input, data_offset, kernel_offset, weight, kernel_size, *rest, out_val) -> int:
    return 2 * prod(kernel_size) * out_val.numel()


@register_flop_formula(_ours.deform_kernel_conv_backward, get_raw=True)
def _deform_kernel_conv_backward(grad, input, data_offset, kernel_offset, weight, kernel_size, *rest, out_val) -> int:
    """Counts the gradients of input and weight, each as much as the forward pass, without sampling; if wanted."""
    of_input, *_, of_weight = out_val  # what is not wanted is empty
    return 2 * prod(kernel_size) * grad.numel() * ((of_input.dim() == 4) + (of_weight.dim() == 4))


@register_flop_formula(_ours.depthwise_conv_per_image, get_raw=True)
def _depthwise_conv_per_image(input, weight, *rest, out_val) -> int:
    return 2 * prod(weight.shape[2:]) * out_val.numel()


@register_flop_formula(_ours.depthwise_conv_per_image_backward, get_raw=True)
def _depthwise_conv_per_image_backward(grad, input, weight, *rest, out_val) -> int:
    """Counts the gradients of input and weight, each as much as the forward pass; if wanted."""
    return 2 * prod(weight.shape[2:]) * grad.numel() * sum(t.dim() == 4 for t in out_val)


# A build of the operators from the Kernel Hub may have told of torchvision's before.
@register_flop_formula((_ours.narrow_conv, *(op for op in [_dense_op] if op not in flop_registry)), get_raw=True)
def _dense_conv(input, weight, *rest, out_val) -> int:
    return 2 * prod(weight.shape[1:]) * out_val.numel()


@register_flop_formula(_ours.narrow_conv_weight_gradient, get_raw=True)
def _narrow_conv_weight_gradient(grad, input, weight, *rest, out_val) -> int:
    return 2 * prod(weight.shape[1:]) * grad.numel()


@register_flop_formula(_ours.dense_deform_kernel, get_raw=True)
def _dense_deform_kernel(input, data_offset, kernel_offset, weight, *rest, out_val) -> int:
    """Counts the product with what is unfolded: Sh Sw / (Kh Kw) times the rigid convolution."""
    return 2 * prod(weight.shape[1:]) * out_val.numel()


@register_flop_formula(_ours.dense_deform_kernel_backward, get_raw=True)
def _dense_deform_kernel_backward(grad, input, data_offset, kernel_offset, weight, *rest, out_val) -> int:
    """Counts the product that the gradients of input and offsets share, and that of weight; if wanted."""
    *of_columns, of_weight = (t.dim() == 4 for t in out_val)  # what is not wanted is empty
    return 2 * prod(weight.shape[1:]) * grad.numel() * (any(of_columns) + of_weight)


@register_flop_formula(
    (_ours.scope_unfold, _ours.scope_unfold_backward, _ours.deform_roi_pool, _ours.deform_roi_pool_backward),
    get_raw=True,
)
def _no_convolution(*operands, out_val) -> int:
    """Counts 0: there is no convolution and no matrix product."""
    return 0


if CHOSEN == COMPILED:  # or nobody asks
    register_flop_formula(_ours.cpu_variant, get_raw=True)(_no_convolution)


def _local_sampling(input, data_offset, kernel_offset, weight, kernel_size, *rest, out_val) -> int:
    sampled = (data_offset is not None) + (kernel_offset is not None)
    return sampled * _CORNERS * prod(kernel_size) * out_val.numel()


def _unfold_sampling(input, data_offset, kernel_offset, kernel_size, *rest, out_val) -> int:
    sampled = (data_offset is not None) + (kernel_offset is not None)
    return sampled * _CORNERS * prod(kernel_size) * prod(input.shape[:2]) * prod(out_val.shape[2:])


def _dense_kernel_sampling(input, data_offset, kernel_offset, weight, kernel_size, *rest, out_val) -> int:
    return _unfold_sampling(input, data_offset, kernel_offset, kernel_size, out_val=out_val)


def _dense_sampling(input, weight, *rest, out_val) -> int:
    images, _, height, width = out_val.shape
    return _CORNERS * prod(weight.shape[2:]) * images * input.shape[1] * height * width


def _roi_sampling(input, rois, offset, mask, output_size, spatial_scale, sampling_ratio, *rest, out_val) -> int:
    return _CORNERS * max(sampling_ratio, 1) ** 2 * out_val.numel()


SAMPLING_MACS: dict[Any, Callable[..., int]] = {
    _ours.deform_kernel_conv: _local_sampling,
    _dense_op: _dense_sampling,
    _ours.dense_deform_kernel: _dense_kernel_sampling,
    _ours.scope_unfold: _unfold_sampling,
    _ours.deform_roi_pool: _roi_sampling,
}
"""Operator to formula: multiply-adds of the forward pass's bilinear interpolation."""
