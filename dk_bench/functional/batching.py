"""The operators under ``torch.vmap``: many calls as one, where the operator has a dimension that can hold them.

Images of a batch are independent, and so are the channels of a depthwise convolution: the mapped dimension joins the
one or the other. Where neither will do (every call has a kernel and offsets of its own, or wants a gradient that is
summed over what would be joined) the calls are made one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def in_front(tensor: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    """Returns the tensor with the mapped dimension first; expanded where it is not mapped."""
    if tensor is None:
        return None
    return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def join_images(tensor: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    """Joins (count, N, ...), with the mapped dimension anywhere or nowhere, to (count * N, ...)."""
    return tensor if tensor is None else in_front(tensor, dim, count).flatten(0, 1)


def join_channels(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """Joins (count, N, C, ...), with the mapped dimension anywhere or nowhere, to (N, count * C, ...)."""
    return in_front(tensor, dim, count).movedim(0, 1).flatten(1, 2)


def split(tensor: Tensor, dim: int, count: int) -> Tensor:
    """Undoes a join: ``dim`` becomes (count, its share)."""
    share = tensor.shape[dim] // count
    return tensor.reshape(*tensor.shape[:dim], count, share, *tensor.shape[dim + 1 :])


def split_each(
    results: Sequence[Tensor], dims: Sequence[int], filled: Sequence[int], count: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Undoes the joins of a backward operator's results, along ``dims``; those not ``filled`` are empty and stay so.

    Returns the results and where their mapped dimension is, as ``torch.autograd.Function.vmap`` does.
    """
    parts = (split(r, d, count) if i in filled else r for i, (r, d) in enumerate(zip(results, dims, strict=True)))
    return tuple(parts), tuple(d if i in filled else None for i, d in enumerate(dims))


def one_by_one(op: Callable[..., Any], count: int, in_dims: Sequence[int | None], arguments: Sequence[Any]) -> Any:
    """Returns the results of ``count`` calls, stacked in front."""

    def call(take: Callable[[Tensor, int], Tensor]) -> Any:
        return op(*(take(a, d) if isinstance(d, int) else a for a, d in zip(arguments, in_dims, strict=True)))

    if count == 0:  # the sum over no calls has the shape of one
        results = call(lambda t, dim: t.sum(dim))
        return (results[None][:0], 0) if isinstance(results, Tensor) else (tuple(r[None][:0] for r in results), 0)
    results = [call(lambda t, dim, i=i: t.select(dim, i)) for i in range(count)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), 0
