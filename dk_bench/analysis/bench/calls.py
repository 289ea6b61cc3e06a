"""The calls that ``dk-bench bench ops`` times, their operands, and the bytes that each has to move at least."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
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
NATIVE = "native"
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
    """One thing to time. ``variant`` tells apart ways to the same result, the fastest of which counts; ``context``
    makes what is to be entered around calls, outside of what is timed."""

    operator: str
    mode: str
    variant: str
    function: Callable[[], Any]
    bytes: int  # of operands read and results written, once each
    setting: Setting = Setting()
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


def make_group(shape: Shape, settings: Iterable[Setting], device: torch.device) -> list[Call]:
    """The calls of one shape in all ``settings``, those of `SLOW` operators in the first one alone; and the depthwise
    convolution in every way PyTorch has for their dtypes, also in the memory format that is not among them."""
    settings = list(settings)
    calls = [
        call
        for setting in settings
        for call in make_calls(shape, setting, device)
        if call.operator not in SLOW or setting == settings[0]
    ]
    every = [Setting(dtype, name) for dtype in dict.fromkeys(s.dtype for s in settings) for name in MEMORY_FORMATS]
    for setting in every:
        if setting not in settings:
            calls += [call for call in make_calls(shape, setting, device) if call.operator == BASE]
    return calls


def make_calls(shape: Shape, setting: Setting, device: torch.device) -> list[Call]:
    """Returns the calls of one shape and setting; values are from a fixed seed.

    The depthwise convolution comes with the library for it, oneDNN or cuDNN, and by PyTorch's own kernels.
    """
    generator = torch.Generator().manual_seed(0)
    dtype, memory_format = getattr(torch, setting.dtype), MEMORY_FORMATS[setting.memory_format]

    def normal(*sizes: int, std: float = 1.0) -> Tensor:
        values = std * torch.randn(*sizes, generator=generator)
        return values.to(device, dtype, memory_format=memory_format).requires_grad_()

    def both_modes(
        operator: str,
        function: Callable[[], Tensor],
        operands: tuple[Tensor, ...],
        variant: str = "",
        context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> list[Call]:
        forward_bytes = _bytes(*operands, grad)
        # Backward reads the operands and the gradient, and writes a gradient for every operand.
        train_bytes = 2 * forward_bytes + _bytes(*operands)
        return [
            Call(operator, FORWARD, variant, torch.no_grad()(function), forward_bytes, setting, context),
            Call(
                operator,
                TRAIN,
                variant,
                lambda: torch.autograd.grad(function(), operands, grad),
                train_bytes,
                setting,
                context,
            ),
        ]

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
    calls = []
    for variant, context in WAYS[device.type].items():
        calls += both_modes(BASE, lambda: F.conv2d(x, rigid, padding=1, groups=c), (x, rigid), variant, context)
    for name, (function, operands) in functions.items():
        calls += both_modes(name, function, operands)
    target = torch.empty_like(x, requires_grad=False)
    calls.append(Call(COPY, FORWARD, "", lambda: target.copy_(x.detach()), 2 * _bytes(x), setting))
    slow = {
        TORCHVISION: (lambda: deform_conv2d(x, data, rigid, padding=1), (x, data, rigid)),
        REFERENCE: (lambda: reference.local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope)),
    }
    for name, (function, operands) in slow.items():
        calls += both_modes(name, function, operands)[:1]
    return calls


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32 on other devices, which the switch sets as well
        with torch.backends.mkldnn.flags(enabled=False):
            yield


#: By device: the ways in which PyTorch comes to its depthwise convolution, in each memory format.
WAYS: dict[str, dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "cpu": {"oneDNN": contextlib.nullcontext, NATIVE: _without_onednn},
    "cuda": {
        "cuDNN": lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True),
        NATIVE: lambda: torch.backends.cudnn.flags(enabled=False),
    },
}
