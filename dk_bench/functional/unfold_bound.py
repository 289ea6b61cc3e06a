"""How much of an input is unfolded at a time: what the caller, or the environment, allows, and what is fastest."""

import os

import torch
from torch import Tensor

from dk_bench.reference.checks import compute_dtype

VARIABLE = "DK_BENCH_UNFOLD_BYTES"  # of the environment
UNFOLD_BYTES = 64 << 20  # unless told otherwise
MOST_BYTES = 2**63 - 1  # that an operator can be given
CACHE_BYTES = 2 << 20  # what the CPU can write and then read again without waiting for memory


def bound_in_bytes(memory: int | None, least: int) -> int:
    """Returns the bytes that what is unfolded may take: those given, or the environment's.

    Raises RuntimeError where they are less than the ``least``, TypeError where memory is not an int.
    """
    if memory is not None and type(memory) is not int:
        raise TypeError(f"memory: expected an int, a number of bytes, or None, got {memory!r}")
    name, bound = ("memory", memory) if memory is not None else (f"environment variable {VARIABLE}", default_bound())
    if bound < least:
        raise RuntimeError(f"{name}: expected at least the {least} bytes of one position's columns, got {bound}")
    return min(bound, MOST_BYTES)


def bytes_of_a_position(input: Tensor, weight: Tensor) -> int:
    """Returns the bytes of one position's columns; 0 of operands that do not fit, of which the operator tells."""
    fit = input.dim() == weight.dim() == 4
    return input.shape[1] * weight.shape[2] * weight.shape[3] * column_dtype(input).itemsize if fit else 0


@torch.compiler.assume_constant_result  # a compiler need not look into the environment
def default_bound() -> int:
    """Returns the bytes that the environment allows. Raises RuntimeError where it holds no whole number."""
    text = os.environ.get(VARIABLE, str(UNFOLD_BYTES))
    if not (text.isascii() and text.isdigit()):
        raise RuntimeError(f"environment variable {VARIABLE}: expected a number of bytes, got {text!r}")
    return int(text)


def bytes_at_a_time(bound: int, input: Tensor, kernel: int = 0) -> int:
    """Returns the bytes of a piece that is multiplied by a kernel of so many values. On the CPU it stays in the cache,
    but is no smaller than the kernel, which each product reads once and puts in order."""
    return bound if input.is_cuda else min(bound, max(CACHE_BYTES, kernel * column_dtype(input).itemsize))


def column_dtype(input: Tensor) -> torch.dtype:
    """Returns the dtype of what is unfolded: input's on CUDA, which multiplies 16 bits with float32 sums. On the CPU
    that of the sums: its product of 16 bits is slower, and sums in 16 bits."""
    return input.dtype if input.is_cuda else compute_dtype(input)
