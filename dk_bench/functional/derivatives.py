"""Derivatives of the compiled operators, of all of torch's kinds: reverse, forward, per sample (vmap), nested.

``torch.library.register_autograd`` knows reverse mode alone: it drops the tangents of dual numbers, as if they were
zero, and torch.func's transforms refuse it. So each operator gets a ``torch.autograd.Function`` here, and the two keys
of the dispatcher at which differentiation begins lead to it: autograd's, and that of torch.func's transforms.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from dk_bench.functional.batching import one_by_one
from dk_bench.functional.operators import Tensors, raise_by_type


@dataclass(frozen=True)
class Rules:
    """The derivatives of one operator. Its first ``operands`` arguments are tensors or None, the others settings.

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


def register_derivatives(
    library: torch.library.Library, name: str, rules: Rules, check_values: Callable[..., None] = lambda *operands: None
) -> None:
    """Makes the operator ``dk_bench::name`` differentiable by its rules; ``check_values`` gives its errors their types,
    see `raise_by_type`."""
    op = getattr(torch.ops.dk_bench, name).default

    def forward(keyset, *arguments):
        try:
            return _below_autograd(op, keyset, arguments)
        except RuntimeError as error:
            raise_by_type(error, check_values, arguments[: rules.operands])

    function = _make_function(op, rules, forward)
    apply = super(torch.autograd.Function, function).apply  # without what only callers outside the dispatcher need

    def autograd(keyset, *arguments):
        # Dual numbers need no requires_grad; torch.compile enters their level without telling forward_ad.
        dual = forward_ad._current_level >= 0 or type(arguments[0]) is not Tensor
        if dual or torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return apply(keyset, *arguments)
        return forward(keyset, *arguments)

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
    """Calls the operator below torch.func.functionalize: nothing here is in place or a view, it has nothing to do."""
    functorch = torch._C._functorch
    interpreter = torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter()
    plain = [functorch._unwrap_functional_tensor(a, False) if isinstance(a, Tensor) else a for a in arguments]
    with interpreter.lower():
        result = op(*plain)
    return tree_map(lambda t: functorch._wrap_functional_tensor(t, interpreter.level()), result)


def _make_function(op, rules: Rules, forward: Callable[..., Any]) -> type[torch.autograd.Function]:
    count = rules.operands

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


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Returns a block in which the tensor's device has no autocast."""
    device = tensor.device.type
    enabled = is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()
