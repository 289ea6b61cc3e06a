"""Derivatives of the compiled operators, of all of torch's kinds: reverse, forward, per sample (vmap), nested.

``torch.library.register_autograd`` knows reverse mode alone: it drops the tangents of dual numbers, as if they were
zero, and torch.func's transforms refuse it. So each operator gets a ``torch.autograd.Function`` here, and the two keys
of the dispatcher at which differentiation begins lead to it: autograd's, and that of torch.func's transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.autograd import forward_ad
from torch.func import vjp
from torch.utils._pytree import tree_map

from dk_bench.functional.batching import one_by_one

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class Rules:
    """How one operator is differentiated. Its first ``operands`` arguments are tensors or None, the others settings.

    Attributes:
        backward: (gradients of the outputs, operands, settings, which gradients are wanted) to those of the operands.
        jvp: (tangents of the operands, operands, settings) to the output's, or a tuple of them.
        vmap: as ``torch.autograd.Function.vmap``, of one call or more.
        autocast: the arguments to those that autocast makes of them.
        constants: the operands by which there is no derivative. Reverse mode gives None for them; forward mode, where
            that would read as zero, raises RuntimeError.

    Gradients and tangents that are None are zero.
    """

    operands: int
    backward: Callable[[Tensors, Tensors, Sequence[Any], Sequence[bool]], Tensors]
    jvp: Callable[[Tensors, Tensors, Sequence[Any]], Any]
    vmap: Callable[..., tuple[Any, Any]]
    autocast: Callable[..., Sequence[Any]] | None = None
    constants: tuple[int, ...] = ()


def register_derivatives(library: torch.library.Library, name: str, rules: Rules) -> None:
    """Makes the operator ``dk_bench::name`` differentiable by its rules."""
    op = getattr(torch.ops.dk_bench, name).default
    function = _make_function(op, rules)
    apply = super(torch.autograd.Function, function).apply  # without what only callers outside the dispatcher need

    def autograd(keyset, *arguments):
        # Dual numbers need no requires_grad; torch.compile enters their level without telling forward_ad.
        dual = forward_ad._current_level >= 0 or type(arguments[0]) is not Tensor
        if dual or torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return apply(keyset, *arguments)
        return _below_autograd(op, keyset, arguments)

    def transform(*arguments):
        device = arguments[0].device.type
        if rules.autocast and is_autocast_available(device) and torch.is_autocast_enabled(device):  # else it came last
            arguments = rules.autocast(*arguments)
        levels = [level.key() for level in torch._C._functorch.get_interpreter_stack()]
        functionalize = torch._C._functorch.TransformType.Functionalize
        if levels[-1] == functionalize:
            return _functionalize(op, arguments)
        if functionalize in levels:
            raise RuntimeError(f"{name}: torch.func.functionalize goes inside of torch.func's other transforms")
        return function.apply(None, *arguments)

    library.impl(name, autograd, "Autograd", with_keyset=True)
    library.impl(name, transform, "FuncTorchDynamicLayerFrontMode")


def _below_autograd(op, keyset, arguments):
    with torch._C._AutoDispatchBelowAutograd():
        if keyset is None:  # the last of torch.func's transforms is done
            return op(*arguments)
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _functionalize(op, arguments):
    """Nothing of the operator's is in place or a view, so that torch.func.functionalize has nothing to do."""
    functorch = torch._C._functorch
    interpreter = torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter()
    plain = [functorch._unwrap_functional_tensor(a, False) if isinstance(a, Tensor) else a for a in arguments]
    with interpreter.lower():
        result = op(*plain)
    return tree_map(lambda t: functorch._wrap_functional_tensor(t, interpreter.level()), result)


def _make_function(op, rules: Rules) -> type[torch.autograd.Function]:
    count = rules.operands

    def forward(keyset, *arguments):
        return _below_autograd(op, keyset, arguments)

    def setup_context(ctx, inputs, output):
        operands, ctx.settings = inputs[1 : 1 + count], inputs[1 + count :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    def backward(ctx, *gradients):
        found = [None] * count
        if any(g is not None for g in gradients):
            wanted = ctx.needs_input_grad[1 : 1 + count]
            found = rules.backward(gradients, ctx.saved_tensors, ctx.settings, wanted)
        return None, *found, *(None for _ in ctx.settings)

    def jvp(ctx, _, *tangents):
        for i in rules.constants:
            if tangents[i] is not None:
                name = op._schema.arguments[i].name
                raise RuntimeError(f"{op._opname}: there is no derivative by {name}; give {name}.detach()")
        with forward_ad._set_fwd_grad_enabled(True):  # for outer levels of torch.func
            # Every level of torch's is numbered 0: outer ones are hidden in the tensors of torch.func.
            operands = [t if t is None else forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors]
            return rules.jvp(tangents[:count], operands, ctx.settings)

    def vmap(info, in_dims, _, *arguments):
        if info.batch_size == 0:
            return one_by_one(op, 0, in_dims[1:], arguments)
        return rules.vmap(info, in_dims[1:], *arguments)

    methods = {f.__name__: staticmethod(f) for f in (forward, setup_context, backward, jvp, vmap)}
    return type(op._opname, (torch.autograd.Function,), methods)


def pull_back(function: Callable[..., Any], primals: Sequence[Tensor], gradients: Any) -> tuple[Tensor, ...]:
    """Returns the vector-Jacobian product of a function of plain PyTorch; it can be differentiated in its turn."""
    with without_autocast(primals[0]):
        return vjp(function, *primals)[1](gradients)


def push_forward(function: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Any:
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


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Returns a block in which the tensor's device has no autocast."""
    device = tensor.device.type
    enabled = is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def of_chosen(function: Callable[..., Any], operands: Tensors, chosen: Sequence[int]) -> Callable[..., Any]:
    """Returns the function as one of the chosen operands alone; the others stay what they are."""

    def moving(*tensors: Tensor) -> Any:
        given = list(operands)
        for i, tensor in zip(chosen, tensors, strict=True):
            given[i] = tensor
        return function(*given)

    return moving


@dataclass(frozen=True)
class Reference:
    """Plain PyTorch that computes what an operator computes, and so the derivatives of its backward operator: slow.

    Attributes:
        function: (operands, settings) to the output.
        operands: the number of operands.
        settings: the number of settings. The backward operator takes three more: whether to be deterministic, whether
            to warn alone where it cannot, and which gradients are wanted; the last two have defaults.
        differentiable: the operands that have a gradient, in the order in which the backward operator returns them.
    """

    function: Callable[[Tensors, Sequence[Any]], Tensor]
    operands: int
    settings: int
    differentiable: tuple[int, ...]

    def backward_rules(self, vmap: Callable[..., tuple[Any, Any]]) -> Rules:
        """Returns the derivatives of the backward operator, whose operands are the output's gradient and the
        operator's.
        """
        constants = tuple(1 + i for i in range(self.operands) if i not in self.differentiable)
        return Rules(1 + self.operands, self._backward, self._jvp, vmap, constants=constants)

    def split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Returns the operator's arguments as operands and settings."""
        return arguments[: self.operands], arguments[self.operands :]

    def wanted(self, settings: Sequence[Any]) -> Sequence[bool]:
        """Returns the last setting of the backward operator. The dispatcher leaves out what equals its default."""
        return settings[self.settings + 2] if len(settings) > self.settings + 2 else (True,) * len(self.differentiable)

    def _gradients(self, operands: Tensors, settings: Sequence[Any], outputs: Sequence[int]):
        """Tells what the backward operator computes, as a function of the output's gradient and the operands that are
        there.

        Returns the function and those operands' numbers.
        """
        there = [i for i in self.differentiable if operands[i] is not None]
        forward = of_chosen(lambda *given: self.function(given, settings[: self.settings]), operands, there)

        def gradients(grad: Tensor, *moving: Tensor) -> tuple[Tensor, ...]:
            every = dict(zip(there, vjp(forward, *moving)[1](grad), strict=True))
            return tuple(every[self.differentiable[o]] for o in outputs)

        return gradients, there

    def outputs(self, operands: Tensors, settings: Sequence[Any]) -> list[int]:
        """Returns the numbers of the backward operator's outputs that are not left empty."""
        wanted = enumerate(zip(self.differentiable, self.wanted(settings), strict=True))
        return [o for o, (i, want) in wanted if want and operands[i] is not None]

    def _backward(self, grads: Tensors, arguments: Tensors, settings: Sequence[Any], wanted: Sequence[bool]) -> Tensors:
        grad, *operands = arguments
        outputs = [o for o in self.outputs(operands, settings) if grads[o] is not None]
        if not outputs:
            return [None] * len(arguments)
        function, there = self._gradients(operands, settings, outputs)
        outer = tuple(grads[o] for o in outputs)
        found = pull_back(function, [grad, *(operands[i] for i in there)], outer)
        results = dict(zip((0, *(1 + i for i in there)), found, strict=True))
        return [results.get(a) if want else None for a, want in enumerate(wanted)]

    def _jvp(self, tangents: Tensors, arguments: Tensors, settings: Sequence[Any]) -> Tensors:
        grad, *operands = arguments
        outputs = self.outputs(operands, settings)
        results = [grad.new_zeros(0)] * len(self.differentiable)  # those of outputs that are left empty
        if not outputs:
            return tuple(results)
        function, there = self._gradients(operands, settings, outputs)
        numbers = [0, *(1 + i for i in there)]
        moved = [torch.zeros_like(arguments[a]) if tangents[a] is None else tangents[a] for a in numbers]
        for o, tangent in zip(outputs, push_forward(function, [arguments[a] for a in numbers], moved), strict=True):
            results[o] = tangent
        return tuple(results)
