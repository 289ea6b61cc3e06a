"""How a local deformable kernel on a dense convolution is cut into pieces, and the memory that this takes."""

from __future__ import annotations

import itertools

import pytest
import torch
from dense_cases import SQUARE, dense
from torch.utils._python_dispatch import TorchDispatchMode

from dk_bench.analysis.bench.clock import peak_memory
from dk_bench.functional import unfolded_product
from dk_bench.functional.scope_columns import cut
from dk_bench.functional.unfold_bound import CACHE_BYTES, bytes_at_a_time

GEOMETRY = tuple(SQUARE.values())


@pytest.mark.parametrize("images", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 6, 49])
def test_pieces_are_all_positions_once(images, size):
    for most in range(1, images * size + 3):
        pieces = cut(images, size, most)
        spans = [range(p.image * size + p.begin, p.image * size + p.begin + p.positions) for p in pieces]
        assert [*itertools.chain(*spans)] == [*range(images * size)]
        assert max(p.positions for p in pieces) == pieces[0].positions <= most
        assert all(p.images == 1 or p.count == size for p in pieces)
        assert all(p.count == size for p in pieces) == (size <= most)  # whole images where one fits
        fewest = -(-images // (most // size)) if size <= most else images * -(-size // most)
        assert len(pieces) == fewest


class Memory(TorchDispatchMode):
    """The bytes of what is allocated by operators of torch: of each storage once."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.seen = {t.untyped_storage().data_ptr(): t for t in known}  # kept alive, so that no address comes twice
        self.bytes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for t in results if isinstance(results, list | tuple) else [results]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.seen:
                self.seen[t.untyped_storage().data_ptr()] = t
                self.bytes.append(t.untyped_storage().nbytes())
        return results


def tensors(batch, side, dtype, memory_format, groups: int = 1):
    x = torch.ones(batch, 16, side, side, dtype=dtype).contiguous(memory_format=memory_format)
    offset = torch.zeros(batch, 18, side, side)
    weight = torch.ones(8, 16 // groups, 4, 4, dtype=dtype).contiguous(memory_format=memory_format)
    out = torch.empty(batch, 8, side, side, dtype=dtype).contiguous(memory_format=memory_format)
    return [x, None, offset, weight], out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("batch", "side"), [(1, 8), (5, 8), (2, 24)])
def test_memory_beside_the_operands_is_bounded(batch, side, groups, dtype, memory_format):
    """Columns, and rows where the images are none, take what is allowed, whatever the batch and the size. Of the
    kernel and of gradients there may be one more, in float32 or in another format."""
    operands, out = tensors(batch, side, dtype, memory_format, groups)
    results = [torch.empty_like(operands[0]), torch.empty(0), *map(torch.empty_like, operands[2:])]
    direct = memory_format == torch.channels_last and dtype == torch.float32
    spare = [4 * t.numel() for t in operands if t is not None]
    spare.append(4 * operands[3].numel())  # in backward passes: the kernel, and its gradient
    for bound in (40_000, 150_000):
        settings = (*GEOMETRY, bound)
        with Memory(out, *results, *(t for t in operands if t is not None)) as forward:
            unfolded_product.forward(out, operands, settings)
        with Memory(out, *results, *(t for t in operands if t is not None)) as backward:
            unfolded_product.backward(results, out, operands, settings, (False, False))
        kernel = [] if direct else spare[-1:]
        assert sum(forward.bytes) <= bound + sum(kernel)
        assert max(forward.bytes) > bound / 3  # and this is used
        assert sum(backward.bytes) <= bound + (0 if direct else sum(spare))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_peak_of_the_process(memory_format):
    """Forward, and forward and backward; the whole would be 33 MB unfolded."""
    x, offset, weight = (torch.ones(4, 32, 64, 64), torch.zeros(4, 18, 64, 64), torch.ones(32, 32, 4, 4))
    leaves = [t.contiguous(memory_format=memory_format).requires_grad_() for t in (x, offset, weight)]

    def forward():
        return dense(leaves[0], None, *leaves[1:], **SQUARE, memory=2 << 20)

    with torch.no_grad():
        peak = peak_memory(forward, x.device)
    if peak is None:
        pytest.skip("this system does not tell the peak of a stretch of a process")
    assert 0.9 * x.nbytes <= peak < x.nbytes + (2 << 20) + 4e6  # the output is as large as the input
    peak = peak_memory(lambda: torch.autograd.grad(forward().sum(), leaves), x.device)
    assert peak < 3 * x.nbytes + 2 * offset.nbytes + (2 << 20) + 6e6


def test_pieces_stay_in_the_cache_or_are_as_large_as_the_kernel():
    for dtype in (torch.float32, torch.bfloat16):  # columns are float32
        x, large = torch.empty(1, dtype=dtype), 512 * 512 * 16
        assert bytes_at_a_time(64 << 20, x) == bytes_at_a_time(64 << 20, x, 1024) == CACHE_BYTES
        assert bytes_at_a_time(1000, x, large) == 1000
        assert bytes_at_a_time(64 << 20, x, large) == 4 * large
        assert bytes_at_a_time(5 << 20, x, large) == 5 << 20


def test_sums_of_16_bit_products_are_asked_for_in_float32():
    """As on CUDA, where columns have 16 bits; on the meta device, which checks sizes and dtypes alone."""
    for groups in (1, 3):
        left, right = (torch.empty(groups, *s, dtype=torch.bfloat16, device="meta") for s in ((4, 5), (5, 6)))
        out = torch.empty(groups, 4, 6, device="meta")
        for add in (False, True):
            unfolded_product.multiply(left, right, out, add=add)
        with pytest.raises(RuntimeError):
            unfolded_product.multiply(left, right.transpose(1, 2), out)
