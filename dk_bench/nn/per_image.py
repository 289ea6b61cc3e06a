"""Convolution with a kernel of its own for every image: what global DK and conditional convolutions end in."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dk_bench.functional.loading import COMPILED, operators_on
from dk_bench.functional.taps import tap_views
from dk_bench.nn.inputs import autocast_dtype
from dk_bench.reference.checks import Pair


def global_average(input: Tensor) -> Tensor:
    """Averages (N, C, H, W) to (N, C), as ``input.mean((2, 3))`` does, with a gradient that is an expanded view.

    The mean's own gradient is a contiguous tensor, which makes a contiguous one of the sum with the gradient of a
    channels_last convolution beside it; what comes before then has to rearrange it.
    """
    wide = torch.promote_types(input.dtype, torch.float32)  # a sum of float16 may be too large for it
    return (input.sum((2, 3), dtype=wide) / (input.shape[2] * input.shape[3])).to(input.dtype)


def is_kept() -> bool:
    """Tells whether the operations that run now become a graph that is run again, with other sizes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def conv2d_per_image(
    input: Tensor, kernel: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Computes ``torch.nn.functional.conv2d`` where image n has kernel[n]: (N, Cin, H, W) to (N, Cout, Hout, Wout),
    contiguous or channels_last, the output likewise.

    Args:
        kernel: (N, Cout, Cin / groups, Kh, Kw).
        bias: (Cout,), (N, Cout) or None.
    """
    out_channels, device = kernel.shape[1], input.device.type
    channels_last = not input.is_contiguous() and input.stride(1) == 1  # vmap knows no memory formats, but strides
    depthwise = kernel.shape[2] == 1 and out_channels == groups
    if kernel.shape[3:] == (1, 1) and groups == 1 and padding == (0, 0):
        output = _matmul_per_image(input[:, :, :: stride[0], :: stride[1]], kernel.flatten(2), channels_last)
    elif depthwise and not is_kept() and (device == "cpu" or device == "cuda" and operators_on(device) == COMPILED):
        output = torch.ops.dk_bench.depthwise_conv_per_image(input, kernel.squeeze(2), stride, padding, dilation)
    else:
        convolve = partial(_sum_over_taps, depthwise=depthwise) if is_kept() else _grouped
        output = convolve(input, kernel, stride, padding, dilation, groups)
        if channels_last:
            output = output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return output if bias is None else output + bias.to(output.dtype).unflatten(-1, (out_channels, 1, 1))


def _matmul_per_image(input: Tensor, kernel: Tensor, channels_last: bool) -> Tensor:
    """Multiplies (N, Cin, H, W) by (N, Cout, Cin) to (N, Cout, H, W), as matrices, in the input's own layout."""
    size = input.shape[2:]
    if not channels_last:
        return (kernel @ input.flatten(2)).unflatten(2, size)
    if is_kept() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return (_rows(input) @ kernel.mT).unflatten(1, size).permute(0, 3, 1, 2)
    if (dtype := autocast_dtype(input)) is not None:
        input, kernel = input.to(dtype), kernel.to(dtype)
    return _RowsByKernels.apply(input, kernel)


def _rows(images: Tensor) -> Tensor:
    """Returns (N, C, H, W) as (N, H W, C), a view of channels_last images."""
    count, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(count, height * width, channels)


class _RowsByKernels(torch.autograd.Function):
    """The same, with gradients that lie in memory as their tensors do.

    Autograd's own by the kernel lies the other way round, so that the experts or the scope behind it would have to copy
    it; and that by the images is a view, to which no other gradient can be added in place.
    """

    @staticmethod
    def forward(input: Tensor, kernel: Tensor) -> Tensor:
        return (_rows(input) @ kernel.mT).unflatten(1, input.shape[2:]).permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, kernel = ctx.saved_tensors
        of_input, of_kernel = ctx.needs_input_grad
        rows = _rows(grad)
        return (
            _images_of_product(rows, kernel, input) if of_input else None,
            rows.mT @ _rows(input) if of_kernel else None,
        )


def _images_of_product(rows: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
    """Returns rows (N, H W, Cout) @ kernel (N, Cout, Cin) as images like ``like``; not a view where it is final."""
    if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(rows):
        count, channels, height, width = like.shape
        return (rows @ kernel).reshape(count, height, width, channels).permute(0, 3, 1, 2)
    images = torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    torch.bmm(rows, kernel, out=images.permute(0, 2, 3, 1).flatten(1, 2))
    return images


def _grouped(input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """Runs one convolution whose groups are the images'. They lie apart in memory, so channels_last costs a copy."""
    images, out_channels = kernel.shape[:2]
    if images == 0:  # no kernel to use; the sum has the shape of one and keeps the graph connected
        return F.conv2d(input, kernel.sum(0), None, stride, padding, dilation, groups)
    joined = input.reshape(1, -1, *input.shape[2:])
    output = F.conv2d(joined, kernel.flatten(0, 1), None, stride, padding, dilation, images * groups)
    return output.reshape(images, out_channels, *output.shape[2:])


def _sum_over_taps(
    input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int, depthwise: bool
) -> Tensor:
    """Computes the same for a graph that is kept, where a convolution's number of groups is a constant, but N is not.

    Depthwise kernels multiply, of 16 bits exactly, others are matrix products, tap by tap. Sums are float32.
    """
    if (dtype := autocast_dtype(input)) is not None:  # products element by element have no autocast
        input, kernel = input.to(dtype), kernel.to(dtype)
    total = torch.promote_types(input.dtype, torch.float32)
    output = None
    views = tap_views(input, tuple(kernel.shape[3:]), stride, padding, dilation)
    for view, tap in zip(views, kernel.flatten(3).unbind(3), strict=True):  # (N, Cout, Cin / groups) each
        if depthwise:
            product = view.to(total) * tap.to(total).unsqueeze(3)
        else:
            read = view.unflatten(1, (groups, -1)).flatten(3)  # (N, groups, Cin / groups, positions)
            product = (tap.unflatten(1, (groups, -1)) @ read).flatten(1, 2).unflatten(2, view.shape[2:])
        output = product.to(total) if output is None else output + product.to(total)
    return output.to(input.dtype)
