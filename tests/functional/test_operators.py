"""Compiled operators against the reference, over random cases; memory formats, threads and instruction sets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from new_python import run_new_python
from operator_cases import (
    CHANNELS,
    DTYPES,
    KERNELS,
    LAYOUTS,
    OFFSETS,
    SCOPES,
    Case,
    assert_close,
    check_against_reference,
    check_any_number_of_threads,
    forward_backward,
    make_tensors,
    random_case,
)

from dk_bench import functional, reference

CASES = 600
SQUARE = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "clip": True}


@pytest.mark.parametrize("seed", range(CASES))
def test_random_case(seed):
    check_against_reference(random_case(seed))


def test_random_cases_meet_every_value():
    cases = [random_case(seed) for seed in range(CASES)]
    assert {c.channels for c in cases} == set(CHANNELS)
    assert {(c.dtype, c.offsets, c.geometry["clip"]) for c in cases} == {
        (d, o, clip) for d in DTYPES for o in OFFSETS for clip in (True, False)
    }
    assert {c.scope[0] for c in cases} == {c.scope[1] for c in cases} == set(SCOPES)
    for axis in (0, 1):
        assert {c.geometry["kernel_size"][axis] for c in cases} == set(KERNELS)
    for operand in range(5):
        assert {c.layouts[operand] for c in cases} == set(LAYOUTS)
    for key in ("kernel_size", "stride", "padding", "dilation"):
        assert sum(c.geometry[key][0] != c.geometry[key][1] for c in cases) > 50, f"{key}: hardly any not square"
    assert sum(c.batch == 0 for c in cases) >= 5
    mixed = {(c.dtype, c.offset_dtype) for c in cases}
    assert {(d, torch.float32) for d in (torch.float16, torch.bfloat16)} <= mixed


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("channels", [2, 130])
def test_more_images_than_partial_sums(offsets, channels):
    """Partial sums of the weight's gradient are kept for groups of images."""
    plain = ("contiguous",) * 5
    check_against_reference(
        Case(1, 37, channels, (3, 4), (4, 3), offsets, SQUARE, torch.float64, torch.float64, plain, False)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_pixel_wide(size, layout):
    """Sizes of one make strides meaningless, and a tensor both contiguous and channels_last."""
    for channels in (1, 5):
        check_against_reference(
            Case(2, 2, channels, size, (4, 4), "both", SQUARE, torch.float64, torch.float64, (layout,) * 5, False)
        )


def test_no_channels():
    x = torch.ones(2, 0, 5, 5, requires_grad=True)
    offset = torch.ones(2, 18, 5, 5, requires_grad=True)
    weight = torch.ones(0, 1, 4, 4, requires_grad=True)
    out, *gradients = forward_backward(
        functional.deform_kernel_conv,
        [x, offset, offset.clone().detach().requires_grad_(), weight],
        torch.ones(2, 0, 5, 5),
        SQUARE,
    )
    assert out.shape == (2, 0, 5, 5)
    assert [g.shape for g in gradients] == [x.shape, offset.shape, offset.shape, weight.shape]
    assert not gradients[1].any() and not gradients[2].any()  # not uninitialised memory


@pytest.mark.parametrize("scale", [1e3, 1e9, 1e30])
def test_taps_far_outside(scale):
    """Offsets beyond what an integer of 32 bits holds."""
    for clip in (True, False):
        case = Case(
            3,
            2,
            17,
            (6, 5),
            (4, 3),
            "both",
            {**SQUARE, "clip": clip},
            torch.float32,
            torch.float32,
            ("contiguous",) * 5,
            False,
        )
        operands, grad = make_tensors(case)
        with torch.no_grad():
            for offset in operands[1:3]:
                offset[:, ::3] *= scale
        actual = forward_backward(functional.deform_kernel_conv, operands, grad, case.geometry)
        expected = forward_backward(reference.deform_kernel_conv, operands, grad, case.geometry)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, f"scale {scale}, clip {clip}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_format_is_kept(dtype, memory_format):
    x = torch.randn(2, 5, 6, 7).to(dtype=dtype, memory_format=memory_format).requires_grad_()
    offset = torch.randn(2, 18, 6, 7).to(dtype=dtype, memory_format=memory_format).requires_grad_()
    out = functional.local_deform_kernel(x, offset, torch.randn(5, 1, 4, 4, dtype=dtype), kernel_size=3, padding=1)
    out.sum().backward()
    for name, tensor in (("output", out), ("gradient of input", x.grad), ("gradient of offset", offset.grad)):
        assert tensor.is_contiguous(memory_format=memory_format), name


def test_memory_format_of_a_channels_last_slice():
    x = torch.randn(2, 5, 8, 8).to(memory_format=torch.channels_last)[:, 1:4, 2:, 1:]
    out = functional.deform_kernel_conv(x, None, None, torch.randn(3, 1, 3, 3), kernel_size=3)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype, offsets, layout):
    case = Case(4, 5, 130, (9, 11), (4, 4), offsets, SQUARE, dtype, dtype, (layout,) * 5, False)
    operands, grad = make_tensors(case)
    check_any_number_of_threads(lambda: forward_backward(functional.deform_kernel_conv, operands, grad, case.geometry))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    here = Path(__file__).parents[1] / "cases"
    paths = os.pathsep.join([str(here), str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return run_new_python(["-c", code], env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment})


@pytest.mark.parametrize("variant", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(variant):
    """A processor without the asked one takes the best it has, and the test is then of that."""
    code = (
        "import torch, operator_cases as o, per_image_cases as p, unfold_cases as u\n"
        "for seed in range(0, 64): o.check_against_reference(o.random_case(seed))\n"
        "for seed in range(24): p.check_random_case(seed)\n"
        "for seed in range(96): u.check_random_piece(seed)\n"
        "print(torch.ops.dk_bench.cpu_variant())"
    )
    done = run_python(code, DK_BENCH_CPU=variant)
    assert done.returncode == 0, done.stderr[-2000:]
    variants = ["baseline", "avx2", "avx512"]
    best = variants.index(torch.ops.dk_bench.cpu_variant())
    assert done.stdout.strip() == variants[min(best, variants.index(variant))]


@pytest.mark.skipif(os.uname().machine != "x86_64" if hasattr(os, "uname") else False, reason="variants are of x86-64")
def test_unknown_instruction_set_is_named():
    code = "import operator_cases as o\no.check_against_reference(o.random_case(0))"
    done = run_python(code, DK_BENCH_CPU="sse9")
    assert done.returncode != 0
    assert "DK_BENCH_CPU: expected baseline, avx2 or avx512, got sse9" in done.stderr
