"""unfold_columns on CUDA, and what calls it: its kernels run by the emulator on the host, under the watch for races,
and, where there is a GPU, by that."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch
from dense_cases import SQUARE, check_dense, check_unfold, dense, dense_case, random_dense_case
from emulation import load_emulated
from operator_cases import DTYPES, forward_backward, lay_out, make_tensors
from unfold_cases import check_random_piece

from dk_bench import functional, reference
from dk_bench.functional import scope_columns, unfold_bound, unfolded_product
from dk_bench.functional.loading import HAS_CUDA
from dk_bench.reference.checks import compute_dtype

needs_gpu = pytest.mark.skipif(not (HAS_CUDA and torch.cuda.is_available()), reason="needs a GPU and the operators")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    load_emulated("watched", tmp_path_factory, watch=True)
    return torch.ops.dk_bench_watched_unfold


@pytest.mark.parametrize("seed", range(80))
def test_random_pieces(emulated, seed):
    """Pieces begin and end inside rows; dL/dinput of data offsets is scattered both ways."""
    check_random_piece(seed, emulated)


def whole(channels: int, kernel: int, scope: tuple[int, int], offsets: str = "both", dtype=torch.float32, groups=1):
    """Operands in channels_last, of an output as large as the input, settings, and the gradient of all its columns."""
    generator, images, size = torch.Generator().manual_seed(channels), 2, (3, 7)

    def make(*shape: int, scale: float = 1.0) -> torch.Tensor:
        values = scale * torch.randn(*shape, dtype=torch.float64, generator=generator)
        return ((values * 64).round() / 64).to(dtype)

    x = lay_out(make(images, channels, *size), "channels_last")
    data, moved = (
        make(images, 2 * kernel**2, *size, scale=1.5) if offsets in (name, "both") else None
        for name in ("data", "kernel")
    )
    settings = [[kernel, kernel], list(scope), [1, 1], [kernel // 2, kernel // 2], [1, 1], True, groups]
    grad = make(groups, images * prod(size), prod(scope) * channels // groups)
    return [x, data, moved], settings, grad


def compute(library, operands, settings, grad, deterministic: bool = False) -> list[torch.Tensor | None]:
    """Columns of all positions, and the gradients of the operands."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    sums = [None if t is None else torch.full(t.shape, torch.nan, dtype=wide, device=t.device) for t in operands]
    sums[0] = sums[0].zero_().contiguous(memory_format=torch.channels_last)
    columns = torch.full_like(grad, torch.nan)
    library.unfold_columns(*operands, *settings, 0, columns)
    library.unfold_columns_backward(grad, *operands, *settings, 0, deterministic, False, *sums)
    return [columns, *sums]


def specified(operands, settings, grad) -> list[torch.Tensor | None]:
    """The same by the reference, in float64."""
    given = [None if t is None else t.double().requires_grad_() for t in operands]
    names = ("kernel_size", "scope", "stride", "padding", "dilation")
    pairs = {name: tuple(pair) for name, pair in zip(names, settings, strict=False)}
    out = reference.scope_unfold(given[0], given[2], data_offset=given[1], clip=settings[5], **pairs)
    columns = out.unflatten(1, (settings[6], -1, prod(pairs["scope"]))).permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)
    found = iter(torch.autograd.grad(columns, [t for t in given if t is not None], grad.double()))
    return [columns.detach(), *(None if t is None else next(found) for t in operands)]


def check_close(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        if e is not None:
            bits = 8 * torch.finfo(a.dtype).eps
            torch.testing.assert_close(a.cpu().double(), e, rtol=bits, atol=bits * float(1 + e.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "groups", "offsets"), [(136, 1, "kernel"), (48, 3, "both")])
def test_vectors_of_channels(emulated, channels, groups, offsets, dtype):
    """More channels than lanes of a warp take at a time, and of several groups; single ones give the same bits, but for
    sums over channels."""
    operands, settings, grad = whole(channels, 3, (4, 4), offsets, dtype, groups)
    found = compute(emulated, operands, settings, grad)
    check_close(found, specified(operands, settings, grad))
    operands[0] = operands[0].contiguous()
    for a, b in zip(compute(emulated, operands, settings, grad)[:2], found, strict=False):
        assert torch.equal(a, b)


@pytest.mark.parametrize("offsets", ["none", "kernel", "both"])
@pytest.mark.parametrize(("kernel", "scope"), [(7, (2, 2)), (5, (5, 7)), (1, (20, 1))])
def test_taps_and_samples_of_several_turns(emulated, kernel, scope, offsets):
    """More taps than shared memory holds at a time, and more samples than a thread."""
    for deterministic in (False, True):
        given = whole(3, kernel, scope, offsets)
        check_close(compute(emulated, *given, deterministic), specified(*given))


def test_nothing_else_is_written(emulated):
    """Beside a piece's columns and gradients all stays as it was; to what is in grad_input the pass adds."""
    operands, settings, grad = whole(8, 3, (4, 4), "kernel")
    first, count = 23, 15  # inside of the second image
    columns = torch.full((3, count, grad.shape[2]), 7.0)
    emulated.unfold_columns(*operands, *settings, first, columns[1:2])
    assert (columns[[0, 2]] == 7).all() and (columns[1] != 7).all()
    sums = [None if t is None else torch.full_like(t, 7.0) for t in operands]
    given = grad[:, first : first + count].contiguous(), *operands, *settings, first
    emulated.unfold_columns_backward(*given, False, False, *sums)
    rows = sums[2].transpose(0, 1).flatten(1)
    assert (rows[:, :first] == 7).all() and (rows[:, first + count :] == 7).all()
    assert (rows[:, first : first + count] != 7).all()
    assert (sums[0][0] == 7).all() and (sums[0][1] != 7).any()


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_nan_offset_shows(emulated, dtype, which):
    """Of taps inside of the image, and outside: in all of a position's columns, and in no other's."""
    operands, settings, grad = whole(8, 3, (4, 4), "both", dtype)
    operands[which][0, 8, 2, 3] = operands[which][1, 1, 0, 0] = torch.nan
    columns = compute(emulated, operands, settings, grad)[0]
    places = [2 * 7 + 3, 3 * 7]
    assert columns[:, places].isnan().all()
    columns[:, places] = 0
    assert not columns.isnan().any()


def test_pixels_outside_are_not_read(emulated):
    operands, settings, grad = whole(8, 3, (4, 4))
    operands[0][:], operands[1][:] = torch.inf, 50.0
    assert (compute(emulated, operands, settings, grad)[0] == 0).all()


def test_gradients_are_chosen(emulated):
    operands, settings, grad = whole(8, 3, (4, 4))
    full = compute(emulated, operands, settings, grad, True)[1:]
    for wanted in itertools.product((False, True), repeat=3):
        sums = [torch.zeros_like(t) if want else None for t, want in zip(operands, wanted, strict=True)]
        emulated.unfold_columns_backward(grad, *operands, *settings, 0, True, False, *sums)
        for t, expected in zip(sums, full, strict=True):
            assert t is None or torch.equal(t, expected)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 0, 5, 5), (2, 4, 5, 5)])
def test_nothing_to_do(emulated, shape):
    x, offset = torch.ones(shape), torch.ones(shape[0], 18, 5, 5)
    columns = torch.empty(1, 0 if shape[1] else 50, 16 * shape[1])
    settings = [[3, 3], [4, 4], [1, 1], [1, 1], [1, 1], True, 1, 0]
    emulated.unfold_columns(x, None, offset, *settings, columns)
    sums = torch.zeros_like(x).contiguous(memory_format=torch.channels_last), torch.ones_like(offset)
    emulated.unfold_columns_backward(columns, x, None, offset, *settings, False, False, sums[0], None, sums[1])
    assert (sums[0] == 0).all() and (sums[1] == (1 if shape[1] else 0)).all()


def test_what_is_too_large_is_refused(emulated):
    """Kernels count pixels of an image by 32 bits."""
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 1 << 16, 1 << 15)
    columns, settings = torch.zeros(1, 1, 1), [[1, 1], [1, 1], [1 << 16, 1 << 15], [0, 0], [1, 1], True, 1, 0]
    with pytest.raises(
        RuntimeError, match=r"^input: expected less than 2\^30 pixels of an image on CUDA, got 2147483648"
    ):
        emulated.unfold_columns(x, None, None, *settings, columns)


@pytest.fixture
def as_on_cuda(monkeypatch, emulated):
    """Makes the CPU compute as CUDA does: columns in the input's dtype by those kernels, float32 sums of products."""

    def multiply(left, right, out, *, add=False):
        product = left.to(compute_dtype(left)) @ right.to(compute_dtype(right))
        out.add_(product) if add else out.copy_(product)

    monkeypatch.setattr(unfolded_product, "multiply", multiply)
    monkeypatch.setattr(scope_columns, "_unfold_op", emulated.unfold_columns)
    monkeypatch.setattr(scope_columns, "_unfold_backward_op", emulated.unfold_columns_backward)
    for module in (scope_columns, unfolded_product, unfold_bound):
        monkeypatch.setattr(module, "column_dtype", lambda input: input.dtype)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("seed", range(24))
def test_random_dense_kernels(seed):
    """What goes by pieces, by these kernels."""
    case = random_dense_case(seed)
    check_dense(case, stored=case.dtype)
    check_unfold(case)


@pytest.mark.cuda
@needs_gpu
def test_random_pieces_on_a_gpu():
    for seed in range(192):
        check_random_piece(seed, device="cuda")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_channels_on_a_gpu(dtype):
    for channels, offsets in itertools.product((136, 512), ("kernel", "both")):
        operands, settings, grad = whole(channels, 3, (4, 4), offsets, dtype)
        given = [t if t is None else t.cuda() for t in operands], settings, grad.cuda()
        check_close(compute(torch.ops.dk_bench, *given), specified(operands, settings, grad))


@pytest.mark.cuda
@needs_gpu
def test_random_dense_kernels_on_a_gpu():
    """Forward and backward against the reference, in all dtypes, by one piece and by many."""
    for seed in range(96):
        case = random_dense_case(seed)
        check_dense(case, device="cuda", stored=case.dtype)
        check_unfold(case, device="cuda")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("offsets", ["kernel", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_time_on_a_gpu(offsets, dtype):
    """Without data offsets always, with them when deterministic algorithms are asked for."""
    operands, grad = make_tensors(dense_case(32, 24, 1, offsets, dtype, layout="channels_last"), "cuda")
    torch.use_deterministic_algorithms(offsets == "both")
    try:
        first, *others = (forward_backward(dense, operands, grad, {**SQUARE, "memory": 20_000}) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(a is None or torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", [1 << 20, 64 << 20])
def test_peak_memory_on_a_gpu(memory, dtype):
    """The bound, output and gradients; those of the input and the kernel of 16 bits have float32 sums besides."""
    x = torch.randn(32, 64, 56, 56, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 4, 4, device="cuda").to(dtype)
    offset = torch.zeros(32, 18, 56, 56, device="cuda")
    given = [t.requires_grad_() for t in (x, offset, weight)]

    def step():
        out = functional.dense_deform_kernel(*given, kernel_size=3, padding=1, memory=memory)
        return torch.autograd.grad(out, given, out.detach())

    step()  # cuBLAS takes its workspace
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = step()
    of_images = x.numel() * (2 * dtype.itemsize + (4 if dtype.itemsize == 2 else 0))
    of_kernel = 4 * 4 * weight.numel()  # in another order, its gradient, the sums, and a piece's part of them
    allowed = memory + of_images + 4 * offset.numel() + of_kernel + (1 << 20)
    assert torch.cuda.max_memory_allocated() - before <= allowed
    assert all(t.isfinite().all() for t in results)


@pytest.mark.cuda
@needs_gpu
def test_nan_offset_shows_on_a_gpu():
    operands, _ = make_tensors(dense_case(16, 8, 1, "both", torch.bfloat16), "cuda")
    operands = [t.detach() for t in operands]
    for which in (1, 2):
        given = [t.clone() for t in operands]
        given[which][0, 7, 2, 3] = torch.nan
        out = dense(*given, **SQUARE)
        assert out[0, :, 2, 3].isnan().all() and not out[1:].isnan().any()
