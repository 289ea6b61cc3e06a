"""The operator ``dk_bench::depthwise_conv_per_image``: fake tensors, vmap, autocast and derivatives.

A depthwise convolution whose kernels, (N, C, Kh, Kw), are another for every image: what global deformable kernels and
conditional convolutions end in (see `dk_bench.nn.per_image`, which calls it). A convolution of PyTorch's with as many
groups as images and channels has to rearrange channels_last images.
"""

import torch

from dk_bench import reference
from dk_bench.functional.batching import join_images, split, split_each
from dk_bench.functional.operators import Operator, empty_in_format_of
from dk_bench.functional.registration import register
from dk_bench.reference.depthwise_conv_per_image import check_per_image

_op = torch.ops.dk_bench.depthwise_conv_per_image
_backward_op = torch.ops.dk_bench.depthwise_conv_per_image_backward


def _fake(input, weight, stride, padding, dilation):
    size = check_per_image(input, weight, tuple(stride), tuple(padding), tuple(dilation))
    return empty_in_format_of(input, (*input.shape[:2], *size))


def _vmap(info, in_dims, input, weight, *geometry):
    """Joins calls as images, whichever operand they share."""
    joined = [join_images(t, d, info.batch_size) for t, d in zip((input, weight), in_dims, strict=False)]
    return split(_op(*joined, *geometry), 0, info.batch_size), 0


def _vmap_backward(info, in_dims, grad, input, weight, *settings):
    joined = [join_images(t, d, info.batch_size) for t, d in zip((grad, input, weight), in_dims, strict=False)]
    results = _backward_op(*joined, *settings)
    return split_each(results, (0, 0), _operator.outputs((input, weight), settings), info.batch_size)


def _autocast(input, weight, *geometry):
    if input.dtype == torch.float64:  # autocast leaves float64 alone
        return input, weight, *geometry
    dtype = torch.get_autocast_dtype(input.device.type)
    return input.to(dtype), weight.to(dtype), *geometry


_operator = Operator("depthwise_conv_per_image", reference.depthwise_conv_per_image, linear=(0, 1))
register(_operator, _fake, _vmap, _vmap_backward, _autocast)
