"""Arguments that our layers share with ``torch.nn.Conv2d``: their checks, and how constructors come to take them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

from torch import nn

from dk_bench.reference.checks import IntPair, as_pair


@dataclass
class Convolution:
    """A convolution's geometry, as ``torch.nn.Conv2d`` takes it; pairs are pairs after the checks. Raises TypeError for
    an argument that is neither an int nor a pair of ints, ValueError for one that is out of range."""

    in_channels: int
    out_channels: int
    kernel_size: IntPair
    stride: IntPair = 1
    padding: IntPair = 0
    dilation: IntPair = 1
    groups: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            check_count(name, getattr(self, name))
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups: expected a divisor of in_channels = {self.in_channels} and out_channels = "
                f"{self.out_channels}, got {self.groups}"
            )
        for name, low in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            setattr(self, name, checked_pair(name, getattr(self, name), low))


ARGUMENTS = tuple(field.name for field in fields(Convolution))


def takes_convolution(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates a constructor with a parameter ``convolution``, a :class:`Convolution`. Callers give its fields, by
    place or by name, where that parameter stands; ``inspect.signature`` shows them there."""
    shown = []
    for name, parameter in inspect.signature(init).parameters.items():
        shown += inspect.signature(Convolution).parameters.values() if name == "convolution" else [parameter]
    signature = inspect.signature(init).replace(parameters=shown)

    @wraps(init)
    def made(*args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{init.__qualname__}() {error}") from None
        convolution = {name: given.pop(name) for name in ARGUMENTS if name in given}
        init(convolution=Convolution(**convolution), **given)

    made.__signature__ = signature
    return made


def is_depthwise(conv: nn.Module) -> bool:
    """Tells whether every channel of a convolution, rigid or ours, has a kernel of its own and nothing else."""
    return conv.groups == conv.in_channels == conv.out_channels


def check_count(name: str, value: int) -> None:
    """Raises ValueError unless the value is an int of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {value!r}")


def checked_pair(name: str, value: IntPair, low: int) -> tuple[int, int]:
    """Returns an int or pair of ints as a pair. Raises TypeError for anything else, ValueError below ``low``."""
    pair = as_pair(name, value)
    if min(pair) < low:
        raise ValueError(f"{name}: expected values of at least {low}, got {value!r}")
    return pair
