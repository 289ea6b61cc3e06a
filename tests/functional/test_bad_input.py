"""Bad input: every fault is an error whose message names the argument."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dk_bench import functional, reference
from dk_bench.reference.checks import NotFinite

BOTH = pytest.mark.parametrize("module", [reference, functional], ids=["reference", "compiled"])


def good() -> dict:
    return {
        "input": torch.randn(2, 5, 6, 7),
        "data_offset": torch.randn(2, 18, 6, 7),
        "kernel_offset": torch.randn(2, 18, 6, 7),
        "weight": torch.randn(5, 1, 4, 4),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "clip": True,
    }


FAULTS = [
    ("input", torch.randn(5, 6, 7), r"input: expected \(N, C, H, W\), got shape \(5, 6, 7\)"),
    ("input", torch.randn(2, 5, 6, 0), r"input: expected H, W >= 1, got shape \(2, 5, 6, 0\)"),
    ("input", torch.ones(2, 5, 6, 7, dtype=torch.int32), "input: expected a floating dtype"),
    ("weight", torch.randn(4, 1, 4, 4), r"weight: expected .* C = 5 .* got shape \(4, 1, 4, 4\)"),
    ("weight", torch.randn(5, 2, 4, 4), r"weight: expected .* got shape \(5, 2, 4, 4\)"),
    ("weight", torch.randn(5, 4, 4), r"weight: expected .* got shape \(5, 4, 4\)"),
    ("weight", torch.randn(5, 1, 0, 4), r"weight: expected .* Sh, Sw >= 1, got shape \(5, 1, 0, 4\)"),
    ("weight", torch.randn(5, 1, 4, 4).double(), "weight: expected dtype (torch.)?float32, got (torch.)?float64"),
    ("data_offset", torch.randn(2, 18, 6, 6), r"data_offset: expected shape .*\(2, 18, 6, 7\), got \(2, 18, 6, 6\)"),
    ("kernel_offset", torch.randn(2, 9, 6, 7), r"kernel_offset: expected shape .*\(2, 18, 6, 7\), got \(2, 9, 6, 7\)"),
    ("kernel_offset", torch.randn(1, 18, 6, 7), r"kernel_offset: expected shape .* got \(1, 18, 6, 7\)"),
    ("kernel_offset", torch.randn(2, 18), r"kernel_offset: expected shape .* got \(2, 18\)"),
    ("data_offset", torch.randn(2, 18, 6, 7).half(), "data_offset: expected dtype .*float32, got (torch.)?float16"),
    ("kernel_offset", torch.ones(2, 18, 6, 7).long(), "kernel_offset: expected dtype (torch.)?float32"),
    ("kernel_size", (0, 3), r"kernel_size: expected values of at least 1, got \(0, 3\)"),
    ("kernel_size", (9, 3), r"input: the padded size \(8, 9\) is smaller than the \(9, 3\) pixels"),
    ("kernel_size", (3, 3, 3), r"kernel_size: expected an int or a pair of ints, got \(3, 3, 3\)"),
    ("kernel_size", 3.0, "kernel_size: expected an int or a pair of ints, got 3.0"),
    ("stride", (1, 0), r"stride: expected values of at least 1, got \(1, 0\)"),
    ("padding", (-1, 1), r"padding: expected values of at least 0, got \(-1, 1\)"),
    ("padding", "same", "padding: expected an int or a pair of ints, got 'same'"),
    ("dilation", (1, 0), r"dilation: expected values of at least 1, got \(1, 0\)"),
]


@BOTH
def test_good_arguments_are_taken(module):
    assert module.deform_kernel_conv(**good()).shape == (2, 5, 6, 7)


@BOTH
@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_fault_is_named(module, name, value, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        module.deform_kernel_conv(**{**good(), name: value})


@pytest.mark.parametrize(("name", "value", "message"), [f for f in FAULTS if isinstance(f[1], torch.Tensor)])
def test_fault_is_named_by_the_fake_operator(name, value, message):
    arguments = {**good(), name: value}
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        with pytest.raises((RuntimeError, ValueError), match=message):
            functional.deform_kernel_conv(**fake)


@pytest.mark.parametrize("fake", [False, True], ids=["plain", "fake"])
@pytest.mark.parametrize("name", ["data_offset", "kernel_offset", "weight"])
def test_device_mismatch_is_named(name, fake):
    """With a tensor on the meta device, which every machine has."""
    arguments = good()
    with FakeTensorMode() if fake else nullcontext() as mode:
        if fake:
            arguments = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        arguments[name] = torch.empty(arguments[name].shape, device="meta")
        with pytest.raises((RuntimeError, ValueError), match=f"^{name}: expected device cpu, got meta$"):
            functional.deform_kernel_conv(**arguments)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["data_offset", "kernel_offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_offset_is_an_error_that_tells_where(dtype, name, backward):
    arguments = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in good().items()}
    arguments[name][1, 7, 2, 5] = torch.nan
    message = rf"{name}: NaN at index \(1, 7, 2, 5\)"
    if backward:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.dk_bench.deform_kernel_conv_backward(arguments["input"], *arguments.values(), False)
        return
    for mode, kind in (
        (torch.enable_grad, NotFinite),
        (torch.no_grad, NotFinite),
        (torch.inference_mode, RuntimeError),
    ):
        with mode(), pytest.raises(kind, match=message):
            functional.deform_kernel_conv(**arguments)


def test_nan_in_the_image_is_not_an_error():
    """It goes on to the outputs that read it, as in a convolution."""
    arguments = {**good(), "data_offset": None}
    arguments["input"][0, 3, 0, 0] = torch.nan
    out = functional.deform_kernel_conv(**arguments)
    assert out.isnan().sum() == 4 and out[0, 3, :2, :2].isnan().all()


def test_infinite_offsets_are_far_outside():
    """At the scope's corner where clipped; outside the image for data."""
    arguments = {**good(), "data_offset": None}
    arguments["kernel_offset"] = torch.full((2, 18, 6, 7), torch.inf)
    everywhere = {**arguments, "weight": arguments["weight"][..., 3:, 3:].contiguous()}
    expected = functional.deform_kernel_conv(**{**everywhere, "kernel_offset": torch.zeros(2, 18, 6, 7)})
    torch.testing.assert_close(functional.deform_kernel_conv(**arguments), expected)
    assert not functional.deform_kernel_conv(**{**arguments, "clip": False}).any()
    assert not functional.deform_kernel_conv(**{**good(), "data_offset": torch.full((2, 18, 6, 7), -torch.inf)}).any()


@BOTH
@pytest.mark.parametrize(
    ("name", "weight"), [("deform_kernel_conv", (5, 1, 4, 4)), ("dense_deform_kernel", (4, 5, 4, 4))]
)
def test_gradients_at_infinite_data_offsets_are_those_far_outside(module, name, weight):
    arguments = {**good(), "weight": torch.randn(weight)}
    found = []
    for far in (100.0, torch.inf):
        arguments["data_offset"][:, 2, ::2], arguments["data_offset"][:, 7, :, ::3] = far, -far
        leaves = {k: v.clone().requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        output = getattr(module, name)(**{**arguments, **leaves})
        found.append(torch.autograd.grad(output.sin().sum(), list(leaves.values())))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.randn(3, 4, 4)}, "weight: expected .* got shape"),
        ({"weight": torch.ones(3, 2, 4, 4, dtype=torch.int64)}, "weight: expected a floating dtype"),
        ({"kernel_offset": torch.randn(2, 9)}, r"kernel_offset: expected shape .* \(N, 18\), got \(2, 9\)"),
        (
            {"kernel_offset": torch.randn(2, 18).double()},
            "kernel_offset: expected dtype torch.float32, got torch.float64",
        ),
        ({"kernel_size": 0}, "kernel_size: expected values of at least 1"),
    ],
)
def test_fault_of_a_global_kernel_is_named(module, change, message):
    arguments = {"weight": torch.randn(3, 2, 4, 4), "kernel_offset": torch.randn(2, 18), "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        module.sample_kernel(**{**arguments, **change})
