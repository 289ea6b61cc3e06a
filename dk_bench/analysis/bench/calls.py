"""The calls that ``dk-bench bench ops`` times, their operands, and the bytes that each has to move at least."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from dk_bench import reference
from dk_bench.functional import deform_kernel_conv, local_deform_kernel

KERNEL_SIZE, SCOPE, OFFSET_STD = 3, 4, 0.5
OPERANDS = {"kernel_size": KERNEL_SIZE, "scope": SCOPE, "offset_std": OFFSET_STD}  # as records have it
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
    """Holds how the operands are stored: a floating dtype's name in torch, and contiguous or channels_last."""

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

    def why_not(self) -> str | None:
        """Tells why others' call cannot be timed here, None if it can: torchvision's convolution has no bfloat16
        everywhere, and the reference needs much memory. What ours raise is raised."""
        if self.operator not in SLOW:
            return None
        try:
            self.function()
        except (NotImplementedError, torch.OutOfMemoryError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None


def make_group(shape: Shape, settings: Iterable[Setting], device: torch.device) -> list[Call]:
    """Returns the calls of one shape in all ``settings``, those of `SLOW` operators in the first one alone; and the
    depthwise convolution in every way PyTorch has for their dtypes, in both memory formats."""
    first, *others = settings
    calls = make_calls(shape, first, device)
    for setting in others:
        calls += [call for call in make_calls(shape, setting, device) if call.operator not in SLOW]
    for dtype, name in product(dict.fromkeys(s.dtype for s in (first, *others)), MEMORY_FORMATS):
        if (setting := Setting(dtype, name)) not in (first, *others):
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

    n, c, size, taps = shape.batch, shape.channels, shape.size, KERNEL_SIZE**2
    x, grad = normal(n, c, size, size), normal(n, c, size, size).detach()
    data, kernel = (normal(n, 2 * taps, size, size, std=OFFSET_STD) for _ in range(2))
    rigid, scope = normal(c, 1, KERNEL_SIZE, KERNEL_SIZE), normal(c, 1, SCOPE, SCOPE)
    ours = {"kernel_size": KERNEL_SIZE, "padding": 1}
    both = partial(_both_modes, grad=grad, setting=setting)
    calls = []
    for variant, context in WAYS[device.type].items():
        calls += both(BASE, lambda: F.conv2d(x, rigid, padding=1, groups=c), (x, rigid), variant, context)
    calls += both(OURS[0], lambda: local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope))
    calls += both(OURS[1], lambda: deform_kernel_conv(x, data, None, rigid, **ours), (x, data, rigid))
    calls += both(OURS[2], lambda: deform_kernel_conv(x, data, kernel, scope, **ours), (x, data, kernel, scope))
    target = torch.empty_like(x, requires_grad=False)
    calls.append(Call(COPY, FORWARD, "", lambda: target.copy_(x.detach()), 2 * _bytes(x), setting))
    calls += both(TORCHVISION, lambda: deform_conv2d(x, data, rigid, padding=1), (x, data, rigid))[:1]
    calls += both(REFERENCE, lambda: reference.local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope))[:1]
    return calls


def _both_modes(
    operator: str,
    function: Callable[[], Tensor],
    operands: tuple[Tensor, ...],
    variant: str = "",
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    grad: Tensor,
    setting: Setting,
) -> list[Call]:
    """Returns the call of a function forward, and forward and backward from the gradient of what it returns."""
    forward_bytes = _bytes(*operands, grad)
    # Backward reads the operands and the gradient, and writes a gradient for every operand.
    train_bytes = 2 * forward_bytes + _bytes(*operands)

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(), operands, grad)

    return [
        Call(operator, FORWARD, variant, torch.no_grad()(function), forward_bytes, setting, context),
        Call(operator, TRAIN, variant, train, train_bytes, setting, context),
    ]


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
