"""Registers an operator with torch: fake tensors, derivatives, vmap, autocast, and what computes elsewhere."""

import functools
from collections.abc import Callable, Sequence
from operator import or_
from typing import Any

import torch
from torch import Tensor

from dk_bench.functional.derivative_rules import Push, backward_rules, forward_rules
from dk_bench.functional.derivatives import register_derivatives
from dk_bench.functional.fallback import register_fallback
from dk_bench.functional.loading import library
from dk_bench.functional.operators import Operator


def register(
    operator: Operator,
    fake: Callable[..., Tensor],
    vmap: Callable[..., tuple[Any, Any]],
    vmap_backward: Callable[..., tuple[Any, Any]],
    autocast: Callable[..., Sequence[Any]],
    *,
    push: Push | None = None,
    check_values: Callable[..., None] = lambda *operands: None,
) -> None:
    """Tells torch how an operator and its backward operator behave outside eager inference.

    Args:
        operator: the description of both.
        fake: its arguments to a tensor as its output is, not yet filled; raises ValueError for arguments that do not
            fit.
        vmap, vmap_backward: of the two operators, as ``torch.autograd.Function.vmap``, of one call or more.
        autocast: the arguments to those that autocast makes of them.
        push: see :func:`~dk_bench.functional.derivative_rules.forward_rules`.
        check_values: takes the operands; raises ValueError for values that do not fit, where the reference computes or
            a compiled operator has refused them.
    """
    name = operator.name
    torch.library.register_fake(f"dk_bench::{name}")(fake)
    torch.library.register_fake(f"dk_bench::{name}_backward")(operator.allocate_gradients)
    register_derivatives(library, name, forward_rules(operator, vmap, autocast, push), check_values)
    register_derivatives(library, f"{name}_backward", backward_rules(operator, vmap_backward))
    _register_autocast(operator.op, autocast)
    register_fallback(operator, fake, check_values)


_AUTOCAST = [getattr(torch._C.DispatchKey, key) for key in dir(torch._C.DispatchKey) if key.startswith("Autocast")]


def _register_autocast(op: Any, rule: Callable[..., Sequence[Any]]) -> None:
    """Makes autocast call the operator, on any device, with the arguments that the rule makes of the given ones."""
    keys = functools.reduce(or_, map(torch._C.DispatchKeySet, _AUTOCAST))

    def autocast(*arguments):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*rule(*arguments))

    for key in _AUTOCAST:
        library.impl(op.default, autocast, key.name)
