"""Describes an operator: its operands and settings, read off its schema, and the reference that it computes like."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from dk_bench.functional import loading  # noqa: F401  (loads the operators)
from dk_bench.reference.checks import NotFinite

Tensors = Sequence[Tensor | None]


class Operator:
    """``dk_bench::name`` and ``dk_bench::name_backward``: operands, which are tensors or None, then settings.

    The backward operator takes the output's gradient, the operands, the settings and three more: whether to be
    deterministic, whether to warn alone where it cannot, and which gradients are wanted; the last two have defaults.

    Attributes:
        operands, settings: their names.
        specification: plain PyTorch that computes the same from operands and, by keyword, settings. It also gives the
            derivatives of the backward operator, slowly.
        linear: the numbers of the operands in which the operator is linear.
        differentiable: the numbers of the operands that have a gradient, in the order in which the backward operator
            returns them.
        packed: names of operands of four dimensions whose gradients are contiguous in whatever format they are.
    """

    def __init__(
        self,
        name: str,
        specification: Callable[..., Tensor],
        linear: tuple[int, ...],
        constants: tuple[int, ...] = (),
        packed: tuple[str, ...] = ("weight",),
    ) -> None:
        self.name, self.specification, self.linear = name, specification, linear
        self.op, self.backward_op = (getattr(torch.ops.dk_bench, n) for n in (name, f"{name}_backward"))
        arguments = self.op.default._schema.arguments
        self.operands = [a.name for a in arguments if "Tensor" in str(a.type)]
        self.settings = [a.name for a in arguments[len(self.operands) :]]
        self.differentiable = tuple(i for i in range(len(self.operands)) if i not in constants)
        self.constants, self.packed = constants, packed

    def evaluate(self, operands: Tensors, settings: Sequence[Any]) -> Tensor:
        """Returns what the reference computes; settings may be the backward operator's, which begin with its own."""
        named = zip(self.settings, settings, strict=False)
        return self.specification(*operands, **{name: tuple(v) if isinstance(v, list) else v for name, v in named})

    def of_chosen(self, operands: Tensors, settings: Sequence[Any], chosen: Sequence[int]) -> Callable[..., Tensor]:
        """Returns what the reference computes as a function of the chosen operands; the others stay what they are."""

        def moving(*tensors: Tensor) -> Tensor:
            given = list(operands)
            for i, tensor in zip(chosen, tensors, strict=True):
                given[i] = tensor
            return self.evaluate(given, settings)

        return moving

    def split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Returns the operator's arguments as operands and settings."""
        return arguments[: len(self.operands)], arguments[len(self.operands) :]

    def wanted(self, settings: Sequence[Any]) -> Sequence[bool]:
        """Returns the last setting of the backward operator. The dispatcher leaves out what equals its default."""
        place = len(self.settings) + 2
        return settings[place] if len(settings) > place else (True,) * len(self.differentiable)

    def determinism(self, settings: Sequence[Any]) -> tuple[bool, bool]:
        """Returns two settings of the backward operator: whether to be deterministic, and whether to warn alone."""
        place = len(self.settings)
        return settings[place], len(settings) > place + 1 and settings[place + 1]

    def outputs(self, operands: Tensors, settings: Sequence[Any]) -> list[int]:
        """Returns the numbers of the backward operator's outputs that are not left empty."""
        wanted = enumerate(zip(self.differentiable, self.wanted(settings), strict=True))
        return [o for o, (i, want) in wanted if want and operands[i] is not None]

    def allocate_gradients(self, grad: Tensor, *arguments: Any) -> list[Tensor]:
        """Returns tensors as the backward operator's results are, not yet filled."""
        operands, settings = self.split(arguments)
        filled = self.outputs(operands, settings)
        return [
            self._like(i, operands) if o in filled else operands[0].new_empty(0)
            for o, i in enumerate(self.differentiable)
        ]

    def _like(self, i: int, operands: Tensors) -> Tensor:
        operand = operands[i]
        if operand.dim() != 4 or self.operands[i] in self.packed:  # contiguous, whatever the operand is
            return operand.new_empty(operand.shape)
        return empty_in_format_of(operand, operand.shape)


def empty_in_format_of(like: Tensor, size: Sequence[int]) -> Tensor:
    """Returns memory by the compiled operators' rule: channels_last where channels lie side by side, or contiguous."""
    channels_last = not like.is_contiguous() and like.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def raise_by_type(error: RuntimeError, check_values: Callable[..., None], operands: Tensors) -> None:
    """Raises an operator's error, or NotFinite where that is what the check of the operands' values finds: of what is
    thrown in C++ torch keeps the text alone. Fake tensors, as an export has them, have no values to check."""
    if type(error) is RuntimeError and not any(map(is_fake, operands)):
        try:
            check_values(*operands)
        except NotFinite:
            raise
        except Exception:
            pass  # the check is for operands that fit; the operator tells what does not
    raise error
