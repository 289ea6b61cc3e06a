"""A convolution with few outputs, as offset generators are: compiled for the CPU, where that is the faster way.

A library's convolution computes outputs in vectors of 16, of which 18 outputs leave 14 of 32 lanes idle. Here lanes are
channels of the input, in the forward pass and in the gradient of the weight; that of the input is torch's.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dk_bench.functional.loading import COMPILED, operators_on
from dk_bench.functional.operators import empty_in_format_of
from dk_bench.reference.checks import Pair, output_size

_op = torch.ops.dk_bench.narrow_conv
_weight_gradient_op = torch.ops.dk_bench.narrow_conv_weight_gradient


def narrow_conv2d(input: Tensor, weight: Tensor, bias: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Computes ``torch.nn.functional.conv2d`` up to the order of summation, of images (N, C, H, W) or one (C, H, W)."""
    if _is_faster(input, weight):
        return _NarrowConv.apply(input, weight, bias, stride, padding, dilation)
    return F.conv2d(input, weight, bias, stride, padding, dilation)


@functools.cache
def _has_wide_vectors() -> bool:
    """Tells whether vectors are of 16: narrower ones leave fewer lanes idle, and a library's convolution is as fast."""
    return operators_on("cpu") == COMPILED and torch.ops.dk_bench.cpu_variant() == "avx512"


def _is_faster(input: Tensor, weight: Tensor) -> bool:
    """Tells whether the operator takes these operands, alone and not as part of a graph, and is then the faster way."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _has_wide_vectors():
        return False
    if type(input) is not Tensor or input.device.type != "cpu" or input.dim() != 4 or 0 in input.shape:
        return False
    if torch.is_autocast_enabled("cpu") or _is_transformed() or not input.dtype == weight.dtype == torch.float32:
        return False
    fits = input.is_contiguous(memory_format=torch.channels_last) and input.shape[1] % 16 == 0
    return fits and 0 < weight.shape[0] % 16 <= 8


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class _NarrowConv(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor, *geometry: Pair) -> Tensor:
        return _op(input, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]

        def by_torch(*mask: bool) -> tuple[Tensor | None, ...]:
            return torch.ops.aten.convolution_backward(
                grad, input, weight, [len(weight)], *ctx.geometry, False, (0, 0), 1, mask
            )

        batched = torch._C._functorch.is_legacy_batchedtensor(grad)  # torch.autograd.grad(is_grads_batched=True)
        if torch.is_grad_enabled() or batched or _is_transformed():  # torch differentiates and maps its own
            return *by_torch(*wanted), None, None, None
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_input = by_torch(True, False, False)[0] if wanted[0] else None
        of_weight = _weight_gradient_op(grad, input, weight, *ctx.geometry) if wanted[1] else None
        of_bias = grad.sum((0, 2, 3)) if wanted[2] else None
        return of_input, of_weight, of_bias, None, None, None


@torch.library.register_fake("dk_bench::narrow_conv")
def _fake(input, weight, bias, stride, padding, dilation):
    size = output_size(tuple(input.shape[2:]), tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation))
    shape = (input.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


@torch.library.register_fake("dk_bench::narrow_conv_weight_gradient")
def _fake_weight_gradient(grad, input, weight, stride, padding, dilation):
    return empty_in_format_of(weight, weight.shape)
