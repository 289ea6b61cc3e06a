"""Operators whose kernels are Python, which calls compiled operators and PyTorch's: once for the CPU and CUDA.

Elsewhere the reference computes (see `dk_bench.functional.fallback`), and here where it is asked for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dk_bench.functional.derivatives import without_autocast
from dk_bench.functional.fallback import as_runtime_errors, check_gradient
from dk_bench.functional.loading import library
from dk_bench.functional.operators import Operator


def register_composed(
    operator: Operator,
    allocate: Callable[..., Tensor],
    forward: Callable[..., None],
    backward: Callable[..., None],
    compiled: str,
) -> None:
    """Makes two functions compute an operator and its backward operator.

    Args:
        operator: the description of both.
        allocate: what `register` calls fake.
        forward: takes the output, not yet filled, operands and settings; fills it.
        backward: takes the results, not yet filled, the output's gradient, operands, settings, and whether to be
            deterministic and whether to warn alone; fills the results. Those that are not wanted are empty and stay so.
            Neither is called for an output without values, whose gradients are zero.
        compiled: the operator that the functions call: they compute on devices that it has a kernel for.
    """

    def compute(*arguments):
        with as_runtime_errors(), without_autocast(arguments[0]):
            output = allocate(*arguments)
            if output.numel():
                forward(output, *operator.split(arguments))
        return output

    def compute_backward(grad, *arguments):
        operands, every = operator.split(arguments)
        settings = every[: len(operator.settings)]
        with as_runtime_errors(), without_autocast(grad):
            check_gradient(operator, grad, allocate(*operands, *settings), every)
            results = operator.allocate_gradients(grad, *arguments)
            if grad.numel():
                backward(results, grad, operands, settings, operator.determinism(every))
            else:
                torch._foreach_zero_(results)
        return results

    for key in ("CPU", "CUDA"):
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"dk_bench::{compiled}", key):
            library.impl(operator.name, compute, key)
            library.impl(f"{operator.name}_backward", compute_backward, key)
