"""What the tests of operators under torch.func share: directions, comparisons and checks of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap


def along(tensors) -> tuple:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in tensors)


def total(results) -> torch.Tensor:
    """A scalar with derivatives of every order."""
    return results.sin().sum() if isinstance(results, torch.Tensor) else sum(total(r) for r in results)


def same(actual, expected, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def check_derivative(derivative: Callable, made: tuple) -> None:
    """A derivative of the compiled function along all operands is that of the reference. ``made``: both, operands."""
    compiled, plain, given = made
    directions = along(given)
    same(derivative(compiled, given, directions), derivative(plain, given, directions))


def check_gradients(call: Callable, given: tuple) -> None:
    """Derivatives of first and second order, in every mode and in batches, are finite differences."""
    leaves = [t.clone().requires_grad_() for t in given]
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, fast_mode=True)


def map_at(tensors, pattern, dims, count: int = 3):
    """The tensors that the pattern chooses, stacked at their dimension, and in_dims."""
    chosen = [
        t if not mapped else torch.stack([t + 0.3 * k for k in range(count)], d)
        for t, mapped, d in zip(tensors, pattern, dims, strict=True)
    ]
    return chosen, tuple(d if mapped else None for mapped, d in zip(pattern, dims, strict=True))


def check_every_mapping(call, tensors, count: int = 3) -> None:
    """vmap over every choice of operands, at dimensions in turn, is the calls one by one; none have their shape."""
    for number, pattern in enumerate(itertools.product((True, False), repeat=len(tensors))):
        if not any(pattern):
            continue
        dims = [(number + i) % (t.dim() + 1) for i, t in enumerate(tensors)]
        given, in_dims = map_at(tensors, pattern, dims, count)
        results = [
            call(*(t if d is None else t.select(d, k) for t, d in zip(given, in_dims, strict=True)))
            for k in range(count)
        ]
        mapped = vmap(call, in_dims)(*given)
        nothing = [t if d is None else t.narrow(d, 0, 0) for t, d in zip(given, in_dims, strict=True)]
        none = vmap(call, in_dims)(*nothing)
        if isinstance(mapped, torch.Tensor):
            mapped, none, results = [mapped], [none], [[r] for r in results]
        for m, n, r in zip(mapped, none, zip(*results, strict=True), strict=True):
            same(m, torch.stack(r))
            assert n.shape == (0, *r[0].shape)
