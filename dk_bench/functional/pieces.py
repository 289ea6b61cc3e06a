"""How much of an input is unfolded at a time."""

import os

import torch
from torch import Tensor

from dk_bench.reference.checks import compute_dtype

VARIABLE = "DK_BENCH_UNFOLD_BYTES"  # of the environment
UNFOLD_BYTES = 64 << 20  # what pieces may take unless told otherwise


def bound_in_bytes(memory: int | None, input: Tensor, weight: Tensor) -> int:
    """Returns the bytes that pieces may take: those given, or the environment's.

    Raises RuntimeError where they do not hold the columns of one position, TypeError where memory is not an int; for
    operands that do not fit the operator has better words.
    """
    if memory is not None and (not isinstance(memory, int) or isinstance(memory, bool)):
        raise TypeError(f"memory: expected an int, a number of bytes, or None, got {memory!r}")
    name, bound = ("memory", memory) if memory is not None else (f"environment variable {VARIABLE}", default_bound())
    if input.dim() == weight.dim() == 4:
        least = input.shape[1] * weight.shape[2] * weight.shape[3] * column_dtype(input).itemsize
        if bound < least:
            raise RuntimeError(f"{name}: expected at least the {least} bytes of one position's columns, got {bound}")
    return bound


@torch.compiler.assume_constant_result  # compilers need not look into the environment
def default_bound() -> int:
    """Returns the bytes that the environment allows. Raises RuntimeError where it holds no whole number."""
    text = os.environ.get(VARIABLE, str(UNFOLD_BYTES))
    if not text.isascii() or not text.isdigit():
        raise RuntimeError(f"environment variable {VARIABLE}: expected a number of bytes, got {text!r}")
    return int(text)


def column_dtype(input: Tensor) -> torch.dtype:
    """Returns the dtype of what is unfolded: input's on CUDA, which multiplies 16 bits with float32 sums; the CPU's
    product of 16 bits would be slower, and less exact."""
    return input.dtype if input.is_cuda else compute_dtype(input)
