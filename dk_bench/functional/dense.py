"""Deformable convolution that is not depthwise: torchvision's operator, or plain PyTorch where that cannot go."""

import torch
import torchvision
from torch import Tensor
from torch.autograd import forward_ad

from dk_bench.reference import sample_input
from dk_bench.reference.checks import Pair


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,
) -> Tensor:
    """Computes ``torchvision.ops.deform_conv2d``, also under torch.func's transforms and for dual numbers, which that
    refuses, and on devices that it has no kernel for.

    There it is computed in plain PyTorch: derivatives of every kind, but memory of N x Cin x taps x positions. The
    arguments are torchvision's, with stride, padding and dilation as (height, width).
    """
    refused = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    plain = refused or not _has_kernel(input.device.type)
    compute = _in_plain_pytorch if plain else torchvision.ops.deform_conv2d
    return compute(input, offset, weight, bias, stride, padding, dilation, mask)


@torch.compiler.assume_constant_result  # compilers cannot look into the dispatcher
def _has_kernel(device: str) -> bool:
    key = torch._C._dispatch_key_for_device(device)
    return torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::deform_conv2d", key)


def _in_plain_pytorch(input, offset, weight, bias, stride, padding, dilation, mask):
    images, channels = input.shape[:2]
    kernel_size, size = tuple(weight.shape[2:]), tuple(offset.shape[2:])
    taps = kernel_size[0] * kernel_size[1]
    parts = offset.shape[1] // (2 * taps)  # of the channels, with offsets of their own: as many images more
    read = sample_input(
        input.reshape(images * parts, channels // parts, *input.shape[2:]),
        offset.reshape(-1, 2 * taps, *size),
        (kernel_size, stride, padding, dilation),
        size,
    )
    if mask is not None:
        read = read * mask.reshape(images * parts, 1, taps, *size)
    groups = channels // weight.shape[1]
    read = read.reshape(images, groups, weight.shape[1], taps, *size)
    kernel = weight.reshape(groups, -1, weight.shape[1], taps)
    output = torch.einsum("ngckhw,gock->ngohw", read, kernel).flatten(1, 2)
    return output if bias is None else output + bias.view(-1, 1, 1)
