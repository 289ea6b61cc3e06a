"""The reference as a kernel of the operators, for every device that has no compiled one.

It stands below all else that torch does with an operator: derivatives, vmap, autocast, fake tensors, graphs and counts
of multiply-adds are the same whichever computes. It is slow, and needs memory of order N x C x taps x positions, though
for no longer than a call: the backward pass computes anew.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dk_bench.functional.derivatives import without_autocast
from dk_bench.functional.loading import CHOICE, CHOSEN, REFERENCE, library, why_reference
from dk_bench.functional.operators import Operator, Tensors
from dk_bench.reference.checks import NotFinite, check_like

EVERYWHERE = "CompositeExplicitAutograd"  # the dispatcher's key of all devices that have no kernel of their own


def register_fallback(operator: Operator, allocate: Callable[..., Tensor], check_values: Callable[..., None]) -> None:
    """Makes the reference compute an operator and its backward operator where no compiled one does.

    ``allocate`` is what `register` calls fake. The operators raise RuntimeError where the compiled ones do, but on
    every device.
    """

    def check(arguments: Sequence[Any]) -> Tensor:
        if arguments[0].layout != torch.strided:
            raise ValueError(f"input: expected a dense tensor, got layout {arguments[0].layout}")
        output = allocate(*arguments)
        check_values(*operator.split(arguments)[0])
        warn(arguments[0].device.type)
        return output

    def forward(*arguments):
        with as_runtime_errors(), without_autocast(arguments[0]):
            return check(arguments).copy_(operator.evaluate(*operator.split(arguments)))

    def backward(grad, *arguments):
        operands, settings = operator.split(arguments)
        with as_runtime_errors():
            check_gradient(operator, grad, check((*operands, *settings[: len(operator.settings)])), settings)
        results = operator.allocate_gradients(grad, *arguments)
        for o, gradient in _differentiate(operator, grad, operands, settings).items():
            results[o].copy_(gradient)
        return results

    library.impl(operator.name, forward, EVERYWHERE)
    library.impl(f"{operator.name}_backward", backward, EVERYWHERE)


def check_gradient(operator: Operator, grad: Tensor, output: Tensor, settings: Sequence[Any]) -> None:
    """Raises ValueError where the gradient is none of such an output, or the backward operator's settings ask for more
    or fewer gradients than there are."""
    if grad.shape != output.shape:
        raise ValueError(f"grad: expected shape {tuple(output.shape)}, got {tuple(grad.shape)}")
    check_like("grad", grad, output)
    if (given := len(operator.wanted(settings))) != (expected := len(operator.differentiable)):
        raise ValueError(f"output_mask: expected {expected} values, got {given}")


def check_not_nan(**tensors: Tensor | None) -> None:
    """Raises NotFinite that names the first of the tensors with a NaN, and where it is."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.isnan().any():
            index = tuple(tensor.isnan().nonzero()[0].tolist())
            raise NotFinite(f"{name}: NaN at index {index}")


@functools.cache
def warn(device: str) -> None:
    """Warns, once in a process and for a type of device, that the reference computes there, why, and what to do.

    Not where it was asked for, nor where the others are compiled: an operator for the CPU alone gets elsewhere only in
    a graph that was captured there.
    """
    why = why_reference(device)
    if CHOSEN == REFERENCE or why is None:
        return
    remedy = "`DK_BENCH_CUDA=1 pip install -e .` builds them where nvcc is" if device == "cuda" else "the CPU has them"
    warnings.warn(
        f"dk_bench: on {device} the operators are the reference in plain PyTorch, slow and large, as "
        f"{why}; {remedy}. {CHOICE}={REFERENCE} asks for the reference, without this warning",
        stacklevel=2,
    )


def _differentiate(operator: Operator, grad: Tensor, operands: Tensors, settings: Sequence[Any]) -> dict[int, Tensor]:
    """Returns the gradients that are wanted, each under its number among the backward operator's outputs."""
    outputs = operator.outputs(operands, settings)
    chosen = [operator.differentiable[o] for o in outputs]
    if not outputs or grad.numel() == 0:
        return {o: torch.zeros_like(operands[i]) for o, i in zip(outputs, chosen, strict=True)}
    with _recording(grad):
        leaves = [operands[i].detach().clone().requires_grad_() for i in chosen]
        output = operator.of_chosen(operands, settings, chosen)(*leaves)
        found = torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True)
    return dict(zip(outputs, found, strict=True))


@contextmanager
def _recording(tensor: Tensor) -> Iterator[None]:
    """Lets autograd record inside an operator, below which the dispatcher has left it out."""
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(tensor):
        left_out = torch._C._dispatch_tls_local_exclude_set()
        for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
            left_out = left_out.remove(getattr(torch._C.DispatchKey, key))
        with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), left_out):
            yield


@contextmanager
def as_runtime_errors() -> Iterator[None]:
    """Raises the reference's ValueErrors as the compiled operators do: RuntimeErrors of the same words."""
    try:
        yield
    except NotFinite:
        raise
    except ValueError as error:
        raise RuntimeError(str(error)) from error
