"""How the operator ``dk_bench::depthwise_conv_per_image`` behaves under fake tensors, derivatives, vmap and autocast.

A depthwise convolution whose kernels, (N, C, Kh, Kw), are another for every image: what global deformable kernels and
conditional convolutions end in (see `dk_bench.nn.per_image`, which calls it). A convolution of PyTorch's with as many
groups as images and channels has to rearrange channels_last images.
"""

from __future__ import annotations

import torch

from dk_bench import reference
from dk_bench.functional.batching import join_images, split
from dk_bench.functional.derivatives import Reference, Rules, register_derivatives
from dk_bench.functional.fallback import register_fallback
from dk_bench.functional.loading import library
from dk_bench.functional.registration import determinism, empty_in_format_of, register_autocast
from dk_bench.reference.checks import check_per_image

_op = torch.ops.dk_bench.depthwise_conv_per_image
_backward_op = torch.ops.dk_bench.depthwise_conv_per_image_backward


@torch.library.register_fake("dk_bench::depthwise_conv_per_image")
def _fake(input, weight, stride, padding, dilation):
    size = check_per_image(input, weight, tuple(stride), tuple(padding), tuple(dilation))
    return empty_in_format_of(input, (*input.shape[:2], *size))


@torch.library.register_fake("dk_bench::depthwise_conv_per_image_backward")
def _fake_backward(
    grad, input, weight, stride, padding, dilation, deterministic, warn_only=False, output_mask=(True,) * 2
):
    of_input = empty_in_format_of(input, input.shape) if output_mask[0] else input.new_empty(0)
    return of_input, weight.new_empty(weight.shape if output_mask[1] else 0)


def _backward(grads, operands, geometry, wanted):
    results = _backward_op(*grads, *operands, *geometry, *determinism(), wanted)
    return [g if want else None for g, want in zip(results, wanted, strict=True)]


def _reference(operands, geometry):
    stride, padding, dilation = map(tuple, geometry)
    return reference.depthwise_conv_per_image(*operands, stride=stride, padding=padding, dilation=dilation)


def _jvp(tangents, operands, geometry):
    """Returns both operands enter linearly."""
    terms = [_op(*operands[:i], tangents[i], *operands[i + 1 :], *geometry) for i in (0, 1) if tangents[i] is not None]
    return sum(terms[1:], terms[0])


def _vmap(info, in_dims, input, weight, *geometry):
    """Calls are images more, whichever operand they share."""
    joined = [join_images(t, d, info.batch_size) for t, d in zip((input, weight), in_dims, strict=False)]
    return split(_op(*joined, *geometry), 0, info.batch_size), 0


def _vmap_backward(info, in_dims, grad, input, weight, *settings):
    joined = [join_images(t, d, info.batch_size) for t, d in zip((grad, input, weight), in_dims, strict=False)]
    results, wanted = _backward_op(*joined, *settings), _of_reference.wanted(settings)
    split_up = [split(r, 0, info.batch_size) if want else r for r, want in zip(results, wanted, strict=True)]
    return tuple(split_up), tuple(0 if want else None for want in wanted)


def _autocast(input, weight, *geometry):
    if input.dtype == torch.float64:  # autocast leaves float64 alone
        return input, weight, *geometry
    dtype = torch.get_autocast_dtype(input.device.type)
    return input.to(dtype), weight.to(dtype), *geometry


_of_reference = Reference(_reference, operands=2, settings=3, differentiable=(0, 1))
register_derivatives(library, "depthwise_conv_per_image", Rules(2, _backward, _jvp, _vmap, _autocast))
register_derivatives(library, "depthwise_conv_per_image_backward", _of_reference.backward_rules(_vmap_backward))
register_autocast("depthwise_conv_per_image", _autocast)
register_fallback("depthwise_conv_per_image", _of_reference, _fake, _fake_backward)
