"""What ``dk-bench bench ops`` times: the calls, their operands, and the bytes they cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from dk_bench import reference
from dk_bench.functional import deform_kernel_conv, local_deform_kernel

KERNEL_SIZE, SCOPE, OFFSET_STD = 3, 4, 0.5
BASE, COPY = "depthwise convolution", "copy"
TORCHVISION, REFERENCE = "torchvision deform_conv2d", "local DK in plain PyTorch"
OURS = ("local DK", "depthwise DCN", "DK+DCN")
FORWARD, TRAIN = "forward", "forward+backward"
SLOW = (TORCHVISION, REFERENCE)  # take a hundred times as long
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    """A depthwise 3 x 3 convolution's input: N images of C channels, H x H pixels."""

    channels: int
    size: int
    batch: int = 4

    def __str__(self) -> str:
        return f"{self.channels} x {self.size} x {self.size}"


@dataclass(frozen=True)
class Setting:
    """How the operands are stored: a floating dtype's name in torch, and contiguous or channels_last."""

    dtype: str = "float32"
    memory_format: str = "channels_last"

    def __str__(self) -> str:
        return f"{self.dtype} {self.memory_format}"


@dataclass(frozen=True)
class Call:
    """One thing to time. ``variant`` tells apart ways to the same result, the fastest of which counts."""

    operator: str
    mode: str
    variant: str
    function: Callable[[], Any]
    bytes: int  # of operands read and results written, once each


def make_calls(shape: Shape, setting: Setting, device: torch.device) -> list[Call]:
    """The calls of one shape and setting; values are from a fixed seed.

    The depthwise convolution comes in every way PyTorch has: on CUDA its kernels and cuDNN's, in both memory formats.
    """
    generator = torch.Generator().manual_seed(0)
    dtype, memory_format = getattr(torch, setting.dtype), MEMORY_FORMATS[setting.memory_format]

    def normal(*sizes: int, std: float = 1.0) -> Tensor:
        values = std * torch.randn(*sizes, generator=generator)
        return values.to(device, dtype, memory_format=memory_format).requires_grad_()

    n, c, size, taps = shape.batch, shape.channels, shape.size, KERNEL_SIZE**2
    x, grad = normal(n, c, size, size), normal(n, c, size, size).detach()
    data, kernel = (normal(n, 2 * taps, size, size, std=OFFSET_STD) for _ in range(2))
    rigid, scope = normal(c, 1, KERNEL_SIZE, KERNEL_SIZE), normal(c, 1, SCOPE, SCOPE)
    ours = {"kernel_size": KERNEL_SIZE, "padding": 1}
    functions: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "local DK": (lambda: local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope)),
        "depthwise DCN": (lambda: deform_kernel_conv(x, data, None, rigid, **ours), (x, data, rigid)),
        "DK+DCN": (lambda: deform_kernel_conv(x, data, kernel, scope, **ours), (x, data, kernel, scope)),
    }
    calls = _base_calls(x, rigid, grad, device)
    for name, (function, operands) in functions.items():
        calls += _both_modes(name, "", function, operands, grad)
    target = torch.empty_like(x, requires_grad=False)
    calls.append(Call(COPY, FORWARD, "", lambda: target.copy_(x.detach()), 2 * _bytes(x)))
    slow = {
        TORCHVISION: (lambda: deform_conv2d(x, data, rigid, padding=1), (x, data, rigid)),
        REFERENCE: (lambda: reference.local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope)),
    }
    for name, (function, operands) in slow.items():
        calls += _both_modes(name, "", function, operands, grad)[:1]
    return calls


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _both_modes(
    operator: str, variant: str, function: Callable[[], Tensor], operands: tuple[Tensor, ...], grad: Tensor
) -> list[Call]:
    forward_bytes = _bytes(*operands, grad)
    return [
        Call(operator, FORWARD, variant, torch.no_grad()(function), forward_bytes),
        # Backward reads the operands and the gradient, and writes a gradient for every operand.
        Call(operator, TRAIN, variant, lambda: torch.autograd.grad(function(), operands, grad),
             2 * forward_bytes + _bytes(*operands)),
    ]


def _base_calls(x: Tensor, weight: Tensor, grad: Tensor, device: torch.device) -> list[Call]:
    if device.type != "cuda":
        return _both_modes(BASE, "", lambda: F.conv2d(x, weight, padding=1, groups=len(weight)), (x, weight), grad)
    calls = []
    for name, memory_format in MEMORY_FORMATS.items():
        image, gradient = (t.detach().contiguous(memory_format=memory_format) for t in (x, grad))
        image.requires_grad_()
        for cudnn in (True, False):
            def function(image: Tensor = image) -> Tensor:
                return F.conv2d(image, weight, padding=1, groups=len(weight))

            variant = f"{'cuDNN' if cudnn else 'native'}, {name}"
            for call in _both_modes(BASE, variant, function, (image, weight), gradient):
                flags = torch.backends.cudnn.flags(enabled=cudnn, benchmark=True)
                calls.append(Call(call.operator, call.mode, variant, flags(call.function), call.bytes))
    return calls
