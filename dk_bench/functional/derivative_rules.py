"""The derivatives of an operator, by the two operators alone, and those of its backward operator, by the reference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from dk_bench.functional.derivatives import Rules, without_autocast
from dk_bench.functional.operators import Operator, Tensors

Push = Callable[[Tensors, Tensors, Sequence[Any]], Tensor]


def forward_rules(operator: Operator, vmap: Callable, autocast: Callable, push: Push | None = None) -> Rules:
    """Returns the derivatives of an operator.

    ``push``: (tangents, operands, settings) to the output's tangent, of the operands in which it is not linear; None
    for the reference's, which is slow.
    """

    def backward(grads, operands, settings, wanted):
        wanted = [wanted[i] for i in operator.differentiable]
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        found = operator.backward_op(*grads, *operands, *settings, deterministic, warn_only, wanted)
        kept = {i: g for i, g, want in zip(operator.differentiable, found, wanted, strict=True) if want}
        return [kept.get(i) for i in range(len(operands))]

    def jvp(tangents, operands, settings):
        moving = [i for i, t in enumerate(tangents) if t is not None]
        linear = [i for i in moving if i in operator.linear]
        others = [i for i in moving if i not in operator.linear]
        terms = [operator.op(*operands[:i], tangents[i], *operands[i + 1 :], *settings) for i in linear]
        if others and push:
            terms.append(push(tangents, operands, settings))
        elif others:
            function = operator.of_chosen(operands, settings, others)
            terms.append(_push_forward(function, [operands[i] for i in others], [tangents[i] for i in others]))
        return sum(terms[1:], terms[0])

    return Rules(len(operator.operands), backward, jvp, vmap, autocast, operator.constants)


def backward_rules(operator: Operator, vmap: Callable) -> Rules:
    """Returns the derivatives of the backward operator, whose operands are the output's gradient and the operator's."""

    def backward(grads, arguments, settings, wanted):
        grad, *operands = arguments
        outputs = [o for o in operator.outputs(operands, settings) if grads[o] is not None]
        if not outputs:
            return [None] * len(arguments)
        function, there = _gradients(operator, operands, settings, outputs)
        with without_autocast(grad):
            found = vjp(function, grad, *(operands[i] for i in there))[1](tuple(grads[o] for o in outputs))
        results = dict(zip((0, *(1 + i for i in there)), found, strict=True))
        return [results.get(a) if want else None for a, want in enumerate(wanted)]

    def jvp(tangents, arguments, settings):
        grad, *operands = arguments
        outputs = operator.outputs(operands, settings)
        results = [grad.new_zeros(0)] * len(operator.differentiable)  # those of outputs that are left empty
        if not outputs:
            return tuple(results)
        function, there = _gradients(operator, operands, settings, outputs)
        numbers = [0, *(1 + i for i in there)]
        moved = [torch.zeros_like(arguments[a]) if tangents[a] is None else tangents[a] for a in numbers]
        for o, tangent in zip(outputs, _push_forward(function, [arguments[a] for a in numbers], moved), strict=True):
            results[o] = tangent
        return tuple(results)

    constants = tuple(1 + i for i in operator.constants)
    return Rules(1 + len(operator.operands), backward, jvp, vmap, constants=constants)


def _gradients(operator: Operator, operands: Tensors, settings: Sequence[Any], outputs: Sequence[int]):
    """Returns what the backward operator computes, as a function of the output's gradient and of those operands that
    have one and are there, and these operands' numbers."""
    there = [i for i in operator.differentiable if operands[i] is not None]
    forward = operator.of_chosen(operands, settings, there)

    def gradients(grad: Tensor, *moving: Tensor) -> tuple[Tensor, ...]:
        every = dict(zip(there, vjp(forward, *moving)[1](grad), strict=True))
        return tuple(every[operator.differentiable[o]] for o in outputs)

    return gradients, there


def _push_forward(function: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Any:
    """Returns the Jacobian-vector product of a function of plain PyTorch, as the derivative of the vector-Jacobian
    product.

    That one is linear in the gradient of the output, so any will do. It nests in torch.func and in dual numbers, which
    torch's own forward mode does not do in both.
    """
    with without_autocast(primals[0]):
        output, pull = vjp(function, *primals)
        zero = torch.zeros_like(output) if isinstance(output, Tensor) else tuple(map(torch.zeros_like, output))
        (tangent,) = vjp(pull, zero)[1](tuple(tangents))
    return tangent
