"""The CUDA operators on a GPU: against the reference, repeatable, in graphs, compiled; skipped where there is none."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from operator_cases import (
    DTYPES,
    FACTOR,
    Case,
    check_against_reference,
    forward_backward,
    largest_errors,
    make_tensors,
    random_case,
)

from dk_bench import functional, reference
from dk_bench.functional.loading import operators_on

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SQUARE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "clip": True}
# The tensor core rounds bfloat16's coefficients and products to 11 bits, and float32's parts add up to a little less
# than float32.
EXTRA = {torch.float64: 0.0, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-3}
CASES = 2000  # an operator


def cuda_case(channels=136, size=(9, 11), offsets="both", dtype=torch.bfloat16, batch=5, layout="channels_last"):
    return Case(8, batch, channels, size, (4, 4), offsets, SQUARE, dtype, dtype, (layout,) * 5, False)


def on_gpu(case: Case):
    return make_tensors(case, "cuda")


def test_operators_are_the_compiled_ones():
    """The reference would pass all that follows."""
    assert operators_on("cuda") == "compiled"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)  # by which tools/gpu_check.sh chooses
@pytest.mark.parametrize("offsets", ["kernel", "data", "both"])
def test_random_cases(offsets, dtype, monkeypatch):
    """2,000 an operator, over four dtypes: each against the reference in float64, and all as exact as PyTorch is."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cases = (dataclasses.replace(random_case(seed), offsets=offsets) for seed in range(CASES))
    errors = largest_errors((c for c in cases if c.dtype == dtype), functional.deform_kernel_conv, EXTRA[dtype], "cuda")
    for name, (ours, theirs) in errors.items():
        print(f"{name}: {ours:.2e}, PyTorch {theirs:.2e}")
        assert dtype == torch.float64 or ours <= FACTOR[dtype] * theirs, name


def test_without_offsets():
    for case in map(random_case, range(3, 400, 4)):
        check_against_reference(case, functional.deform_kernel_conv, EXTRA[case.dtype], "cuda")


@pytest.mark.parametrize("scope", [(1, 1), (3, 3), (5, 5), (9, 9), (3, 6), (12, 2), (40, 40)])
def test_scopes(scope):
    """From one step of the inner dimension to those that take the plain path."""
    case = dataclasses.replace(cuda_case(264, (3, 4), dtype=torch.float32), scope=scope)
    check_against_reference(case, functional.deform_kernel_conv, EXTRA[torch.float32], "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offsets", ["kernel", "data", "both"])
def test_same_bits_every_time(offsets, dtype):
    """Without data offsets always, with them when deterministic algorithms are asked for."""
    operands, grad = on_gpu(cuda_case(offsets=offsets, dtype=dtype))
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    if offsets == "kernel":
        others.append(forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE))
    for other in others:
        assert all(a is None or torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_deterministic_is_refused_where_it_cannot_be():
    operands, grad = on_gpu(cuda_case(dtype=torch.float64))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="no deterministic algorithm on CUDA for float64"):
            forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="no deterministic algorithm on CUDA for float64"):
            forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nan_offset_shows(dtype, which):
    operands, _ = on_gpu(cuda_case(dtype=dtype))
    operands = [t.detach() for t in operands]
    operands[which][0, 7, 2, 3] = torch.nan
    out = functional.deform_kernel_conv(*operands, **SQUARE)
    assert out[0, :, 2, 3].isnan().all() and not out[1:].isnan().any()


def test_on_the_current_stream():
    """Work on another stream waits for what that stream has to do before."""
    operands, _ = on_gpu(cuda_case(offsets="kernel", dtype=torch.float32))
    x, _, offset, weight = (None if t is None else t.detach() for t in operands)
    expected = functional.local_deform_kernel(2 * x, offset, weight, kernel_size=3, padding=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        doubled = 2 * x
        out = functional.local_deform_kernel(doubled, offset, weight, kernel_size=3, padding=1)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_in_a_cuda_graph():
    operands, grad = on_gpu(cuda_case())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE)
    with torch.no_grad():
        for t in operands:
            t.copy_(torch.randn_like(t))
    graph.replay()
    expected = forward_backward(functional.deform_kernel_conv, operands, grad, SQUARE)
    for a, b in zip(captured, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled():
    operands, grad = on_gpu(cuda_case(offsets="kernel", dtype=torch.float32))
    compiled = torch.compile(lambda *t: functional.deform_kernel_conv(*t, **SQUARE).sin(), fullgraph=True)
    expected = forward_backward(lambda *t, **g: functional.deform_kernel_conv(*t, **g).sin(), operands, grad, SQUARE)
    actual = forward_backward(lambda *t, **g: compiled(*t), operands, grad, SQUARE)
    for a, b in zip(actual, expected, strict=True):
        assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_autocast():
    operands, _ = on_gpu(cuda_case(dtype=torch.float32))
    with torch.autocast("cuda", torch.bfloat16):
        out = functional.deform_kernel_conv(*operands, **SQUARE)
    assert out.dtype == torch.bfloat16
    expected = reference.deform_kernel_conv(*operands, **SQUARE)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_many_positions():
    """More tiles than one dimension of a small grid, and a channel count that fills no vector."""
    case = dataclasses.replace(cuda_case(3, (300, 310), dtype=torch.float32, batch=2), offsets="kernel")
    check_against_reference(case, functional.deform_kernel_conv, EXTRA[torch.float32], "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_is_that_of_pytorchs_convolution(dtype):
    """At offset zero both compute the same: the largest error against float64 is at most a tenth larger."""
    torch.manual_seed(0)
    x, weight = (torch.randn(*s, device="cuda").to(dtype) for s in ((8, 256, 28, 28), (256, 1, 3, 3)))
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1, groups=256)
    theirs = torch.nn.functional.conv2d(x, weight, padding=1, groups=256)
    ours = functional.deform_kernel_conv(x, None, None, weight, **SQUARE)
    slack = 2e-6 if dtype == torch.float32 else 0.0
    assert (ours.double() - exact).abs().max() <= 1.1 * (theirs.double() - exact).abs().max() + slack
