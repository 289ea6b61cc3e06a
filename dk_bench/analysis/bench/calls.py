"""The calls that ``dk-bench bench ops`` times, their operands, and the bytes that each has to move at least: what all
operators share, and the calls of the depthwise ones. dense_calls.py has the others, operator_sets.py the list."""

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
HALVES = ("bfloat16", "float16")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    """A convolution's input, N images of C channels, H x H pixels, and its output's channels, C where none are said."""

    channels: int
    size: int
    batch: int = 4
    out_channels: int | None = None

    def __str__(self) -> str:
        channels = f"{self.channels} to {self.out_channels}" if self.out_channels else self.channels
        return f"{channels} x {self.size} x {self.size}"


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
    makes what is to be entered around calls, outside of what is timed; ``base`` is the operator that its time is
    divided by; a ``slow`` one is others', and gets few rounds."""

    operator: str
    mode: str
    variant: str
    function: Callable[[], Any]
    bytes: int  # of operands read and results written, once each, and of what is written and read between
    setting: Setting = Setting()
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    base: str = BASE
    slow: bool = False
    macs: int = 0  # multiply-adds of its matrix products, where these are what takes time
    results: int = 0  # bytes of what it returns

    @property
    def is_base(self) -> bool:
        """Tells whether other calls' times are divided by this one's."""
        return self.operator == self.base

    @property
    def ours(self) -> bool:
        """Tells whether it is an operator of this package."""
        return not (self.slow or self.is_base or self.operator == COPY)

    def why_not(self) -> str | None:
        """Tells why others' call cannot be timed here, None if it can: torchvision's convolution has no bfloat16
        everywhere, and the reference needs much memory. What ours raise is raised."""
        if not self.slow:
            return None
        try:
            self.function()
        except (NotImplementedError, torch.OutOfMemoryError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None


MakeCalls = Callable[[Shape, Setting, torch.device], list[Call]]


def make_group(make_calls: MakeCalls, shape: Shape, settings: Iterable[Setting], device: torch.device) -> list[Call]:
    """Returns the calls of one shape in all ``settings``, slow ones in the first one alone; and those that others are
    divided by in every way PyTorch has for their dtypes, in both memory formats."""
    first, *others = settings
    calls = make_calls(shape, first, device)
    for setting in others:
        calls += [call for call in make_calls(shape, setting, device) if not call.slow]
    for dtype, name in product(dict.fromkeys(s.dtype for s in (first, *others)), MEMORY_FORMATS):
        if (setting := Setting(dtype, name)) not in (first, *others):
            calls += [call for call in make_calls(shape, setting, device) if call.is_base]
    return calls


def make_depthwise(shape: Shape, setting: Setting, device: torch.device) -> list[Call]:
    """Returns the calls of depthwise 3 x 3 convolutions, for one shape and setting; values are from a fixed seed.

    The rigid convolution comes with the library for it, oneDNN or cuDNN, and by PyTorch's own kernels.
    """
    normal = Normal(setting, device)
    n, c, size, taps = shape.batch, shape.channels, shape.size, KERNEL_SIZE**2
    x, grad = normal(n, c, size, size), normal(n, c, size, size).detach()
    data, kernel = (normal(n, 2 * taps, size, size, std=OFFSET_STD) for _ in range(2))
    rigid, scope = normal(c, 1, KERNEL_SIZE, KERNEL_SIZE), normal(c, 1, SCOPE, SCOPE)
    ours = {"kernel_size": KERNEL_SIZE, "padding": 1}
    both = partial(both_modes, grad=grad, setting=setting)
    calls = []
    for variant, context in WAYS[device.type].items():
        way = {"variant": variant, "context": context}
        calls += both(BASE, lambda: F.conv2d(x, rigid, padding=1, groups=c), (x, rigid), **way)
    calls += both(OURS[0], lambda: local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope))
    calls += both(OURS[1], lambda: deform_kernel_conv(x, data, None, rigid, **ours), (x, data, rigid))
    calls += both(OURS[2], lambda: deform_kernel_conv(x, data, kernel, scope, **ours), (x, data, kernel, scope))
    calls.append(copy_of(x, setting))
    slow = partial(both, slow=True)
    calls += slow(TORCHVISION, lambda: deform_conv2d(x, data, rigid, padding=1), (x, data, rigid))[:1]
    calls += slow(REFERENCE, lambda: reference.local_deform_kernel(x, kernel, scope, **ours), (x, kernel, scope))[:1]
    return calls


class Normal:
    """Makes operands of normal values, from a fixed seed, one after the other."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.kind = {"dtype": getattr(torch, setting.dtype), "memory_format": MEMORY_FORMATS[setting.memory_format]}
        self.device = device

    def __call__(self, *sizes: int, std: float = 1.0) -> Tensor:
        """Returns an operand of four axes, which wants a gradient."""
        values = std * torch.randn(*sizes, generator=self.generator)
        return values.to(self.device, **self.kind).requires_grad_()


def copy_of(x: Tensor, setting: Setting, base: str = BASE) -> Call:
    """Returns the call that copies an operand."""
    target = torch.empty_like(x, requires_grad=False)
    return Call(COPY, FORWARD, "", lambda: target.copy_(x.detach()), 2 * bytes_of(x), setting, base=base)


def both_modes(
    operator: str,
    function: Callable[[], Tensor],
    operands: tuple[Tensor, ...],
    *,
    grad: Tensor,
    macs: int = 0,
    between: int = 0,
    **how: Any,
) -> list[Call]:
    """Returns the call of a function forward, and forward and backward from the gradient of what it returns; ``macs``
    are those of forward, and ``between`` the bytes that it writes and reads to come to its result. ``how``: what else
    `Call` is to know."""
    forward_bytes = bytes_of(*operands, grad) + between
    # Backward reads the operands and the gradient, and writes a gradient for every operand.
    train_bytes = 2 * forward_bytes + bytes_of(*operands)
    how = {"variant": ""} | how

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(), operands, grad)

    forward = {"function": torch.no_grad()(function), "bytes": forward_bytes, "macs": macs, "results": bytes_of(grad)}
    # As many products again for the gradient of the input, and for that of the kernel.
    trained = {"function": train, "bytes": train_bytes, "macs": 3 * macs, "results": bytes_of(grad, *operands)}
    return [Call(operator, FORWARD, **forward, **how), Call(operator, TRAIN, **trained, **how)]


def bytes_of(*tensors: Tensor) -> int:
    """Returns the bytes of values."""
    return sum(t.numel() * t.element_size() for t in tensors)


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32 on other devices, which the switch sets as well
        with torch.backends.mkldnn.flags(enabled=False):
            yield


#: By device: the ways in which PyTorch comes to its convolutions, in each memory format.
WAYS: dict[str, dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "cpu": {"oneDNN": contextlib.nullcontext, NATIVE: _without_onednn},
    "cuda": {
        "cuDNN": lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True),
        NATIVE: lambda: torch.backends.cudnn.flags(enabled=False),
    },
}
