"""A device that no compiled operator is for, on any machine: tensors on it hold one on the CPU, which computes.

Importing this makes the device known to torch as ``elsewhere``, for the rest of the process.
"""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class Module(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("elsewhere", Module())
_held: dict[int, Tensor] = {}  # by a tensor's storage, which what autograd makes of it shares


def held(tensor: Tensor) -> Tensor:
    """The tensor on the CPU that one elsewhere holds; one on the CPU itself."""
    return _held[tensor.untyped_storage()._cdata] if tensor.device.type == "elsewhere" else tensor


def to_elsewhere(tensor: Tensor) -> Tensor:
    """A tensor elsewhere with these values. It is contiguous there, so that views are copies."""
    made = torch._C._acc.create_empty_tensor(tensor.shape, tensor.dtype)
    _held[made.untyped_storage()._cdata] = tensor.clone(memory_format=torch.contiguous_format)
    return made


def _compute(op, *args, **kwargs):
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    args, kwargs = tree_map_only(Tensor, held, (args, kwargs))
    kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), kwargs)

    def wrap(result: Tensor) -> Tensor:
        same = [t for t in given if held(t) is result]  # in place
        return same[0] if same else to_elsewhere(result)

    return tree_map_only(Tensor, wrap, op(*args, **kwargs))


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``to.copy_(source)`` comes to."""
    held(to).copy_(held(source))
    return to


_library = torch.library.Library("_", "IMPL")
_library.fallback(_compute, "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl("_copy_from", _copy_from, "PrivateUse1")
# By default they resize what they fill, or fill a view.
for _name in ("arange", "arange.start", "arange.start_step", "constant_pad_nd", "select_backward", "slice_backward"):
    _aten.impl(_name, functools.partial(_compute, operator.attrgetter(_name)(torch.ops.aten)), "PrivateUse1")


class Moved(torch.autograd.Function):
    """To the other of the two devices; gradients come back."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return held(tensor).clone() if tensor.device.type == "elsewhere" else to_elsewhere(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return Moved.forward(ctx, grad)
