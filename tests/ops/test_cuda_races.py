"""The CUDA operators' kernels with shared memory under a watch for races (tests/emulated/watch.cpp), without a GPU.

It knows what orders two threads' accesses to a word: barriers of the block, and of the warp. So a race shows whatever
the order in which the emulator happens to run the threads.
"""

from __future__ import annotations

import pytest
import torch
from emulation import load_emulated
from operator_cases import Case, make_tensors, random_case
from per_image_cases import GEOMETRY, operands

SQUARE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "clip": True}


@pytest.fixture(scope="module", autouse=True)
def watched(tmp_path_factory):
    load_emulated("watched", tmp_path_factory, watch=True)


def run(case: Case, deterministic: bool = False) -> None:
    """Forward and backward; raises on a race."""
    operands, grad = make_tensors(case)
    given = [None if t is None else t.detach() for t in operands]
    torch.ops.dk_bench_watched.forward(*given, *case.geometry.values())
    torch.ops.dk_bench_watched.backward(grad, *given, *case.geometry.values(), deterministic)


@pytest.mark.parametrize(
    "fault, found",
    [
        (1, "read before it was written: shared word 6"),
        (2, "read while written: shared"),
        (3, "read before it was written: shared"),
        (4, "written while read: shared"),
        (5, "written by two: global"),
        (6, "written by two: global"),
    ],
)
def test_finds_faults(fault, found):
    with pytest.raises(RuntimeError, match=f"race: {found}"):
        torch.ops.dk_bench_watched.faulty(fault, torch.zeros(2))


def test_finds_none_where_there_is_none():
    result = torch.zeros(3)
    torch.ops.dk_bench_watched.faulty(0, result)
    assert result.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("seed", [seed for seed in range(28) if random_case(seed).dtype != torch.float64])
def test_random_case(seed):
    run(random_case(seed), deterministic=seed % 2 == 0)


@pytest.mark.parametrize("offsets", ["kernel", "data", "both"])
@pytest.mark.parametrize(
    "scope, kernel_size, dtype",
    [
        ((4, 4), (3, 3), torch.float32),
        ((4, 4), (3, 3), torch.float16),
        ((4, 4), (3, 3), torch.bfloat16),
        ((5, 5), (3, 3), torch.float32),
        ((5, 5), (3, 3), torch.bfloat16),
        ((4, 4), (5, 5), torch.bfloat16),
    ],
)
def test_every_kernel(offsets, scope, kernel_size, dtype):
    """More groups of channels than a block has warps, and several tiles, batches of taps and of samples."""
    geometry = {**SQUARE, "kernel_size": kernel_size, "padding": (1, 2)}
    layouts = ("channels_last",) * 5
    for deterministic in (False, True) if offsets != "kernel" else (False,):
        run(Case(3, 2, 288, (3, 6), scope, offsets, geometry, dtype, dtype, layouts, False), deterministic)


@pytest.mark.parametrize("channels", [8, 130])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 7)])
def test_kernels_for_every_image(kernel, layout, channels):
    """Vectors or single channels; the larger kernel has more taps than a block holds the weights of."""
    geometry = {**GEOMETRY, "padding": (2, 3), "dilation": (1, 1)}
    given = operands(torch.float32, layout, channels, kernel)
    output = torch.ops.dk_bench_watched_per_image.forward(*given, *geometry.values())
    torch.ops.dk_bench_watched_per_image.backward(torch.ones_like(output), *given, *geometry.values())
