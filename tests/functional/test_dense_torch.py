"""Local deformable kernels on dense convolutions inside PyTorch: opcheck, fake tensors, torch.compile, autocast, FLOPs;
and bad input."""

from __future__ import annotations

import itertools
import warnings
from contextlib import nullcontext

import pytest
import torch
from dense_cases import SQUARE, backward_op, dense, dense_case, op, unfold
from operator_cases import LAYOUTS, OFFSETS, check_any_number_of_threads, make_tensors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dk_bench import functional, reference
from dk_bench.functional.flops import SAMPLING_MACS
from dk_bench.functional.unfold_bound import UNFOLD_BYTES, VARIABLE
from dk_bench.reference.checks import NotFinite

BOTH = pytest.mark.parametrize("module", [reference, functional], ids=["reference", "compiled"])
GEOMETRY = tuple(SQUARE.values())
UNFOLD = ((3, 3), (4, 3), *GEOMETRY[1:])  # settings of the unfolding, in the operator's order
unfold_op, unfold_backward_op = torch.ops.dk_bench.scope_unfold, torch.ops.dk_bench.scope_unfold_backward


def plain(operands) -> list:
    return [t if t is None else t.detach() for t in operands]


@pytest.mark.parametrize(
    ("offsets", "layout"), [("none", "channels_last"), ("kernel", "cropped"), ("both", "contiguous")]
)
def test_opcheck(offsets, layout):
    operands, grad = make_tensors(dense_case(offsets=offsets, dtype=torch.float64, layout=layout))
    for memory in (0, UNFOLD_BYTES):
        torch.library.opcheck(op, (*operands, *GEOMETRY, memory))
        torch.library.opcheck(backward_op, (grad, *plain(operands), *GEOMETRY, memory, False))
    torch.library.opcheck(unfold_op, (*operands[:3], *UNFOLD))
    grad = torch.ones_like(unfold_op(*operands[:3], *UNFOLD))
    torch.library.opcheck(unfold_backward_op, (grad, *plain(operands[:3]), *UNFOLD, False))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 4])
def test_fake_tensors_have_the_strides_of_real_ones(groups, layout):
    operands, grad = make_tensors(dense_case(4, 8, groups, layout=layout))
    operands = plain(operands)
    unfolded = torch.ones_like(unfold_op(*operands[:3], *UNFOLD))

    def compute(grad, unfolded, *operands):
        return [
            op(*operands, *GEOMETRY, 0),
            *backward_op(grad, *operands, *GEOMETRY, 0, False),
            unfold_op(*operands[:3], *UNFOLD),
            *unfold_backward_op(unfolded, *operands[:3], *UNFOLD, False),
        ]

    with FakeTensorMode() as mode:
        fakes = compute(*map(mode.from_tensor, (grad, unfolded, *operands)))
    for real, fake in zip(compute(grad, unfolded, *operands), fakes, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_compile():
    """Whole graph, with the environment's bound; a second batch size compiles no third time."""

    def call(x, offset, weight):
        return functional.dense_deform_kernel(x, offset, weight, **SQUARE).sin()

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    counts = []
    for batch in (2, 3, 5):
        (x, _, offset, weight), grad = make_tensors(dense_case(offsets="kernel", batch=batch))
        actual, expected = compiled(x, offset, weight), call(x, offset, weight)
        assert torch.equal(actual, expected)
        gradients = [torch.autograd.grad(out, (x, offset, weight), grad) for out in (actual, expected)]
        assert all(torch.equal(a, e) for a, e in zip(*gradients, strict=True))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[1] == counts[2]
    offset.data[0, 3, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match=r"^kernel_offset: NaN at index \(0, 3, 0, 0\)$"):
        compiled(x, offset, weight)


class Convolve(nn.Module):
    def forward(self, x, offset, weight):
        unfolded = functional.scope_unfold(x, offset, scope=(4, 3), **SQUARE)
        return functional.dense_deform_kernel(x, offset, weight, **SQUARE).flatten(2), unfolded


def test_export_with_a_dynamic_batch():
    (x, _, offset, weight), _ = make_tensors(dense_case(offsets="kernel"))
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {0: batch}, None)
    program = torch.export.export(Convolve(), (x, offset, weight), dynamic_shapes=shapes)
    (x, _, offset, weight), _ = make_tensors(dense_case(offsets="kernel", batch=5))
    found, expected = program.module()(x, offset, weight), Convolve()(x, offset, weight)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("offsets", OFFSETS)
def test_autocast(offsets):
    """Image and kernel are rounded, float32 offsets are not; in the backward pass no product is rounded again."""
    operands, _ = make_tensors(dense_case(offsets=offsets))
    given = [t for t in operands if t is not None]
    x, data, kernel, weight = operands
    expected = dense(x.bfloat16(), data, kernel, weight.bfloat16(), **SQUARE)
    outside = torch.autograd.grad(expected.float().sin().sum(), given)
    with torch.autocast("cpu", torch.bfloat16):
        out = dense(*operands, **SQUARE)
        inside = torch.autograd.grad(out.float().sin().sum(), given)
        unfolded = unfold(x, data if data is None else data.bfloat16(), kernel, scope=(4, 3), **SQUARE)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected) and unfolded.dtype == torch.float32
    assert all(i.dtype == torch.float32 and torch.equal(i, o) for i, o in zip(inside, outside, strict=True))
    wide = [t if t is None else t.double() for t in operands]
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            torch.equal(dense(*wide, **SQUARE), dense(*wide, **SQUARE))
            and dense(*wide, **SQUARE).dtype == wide[0].dtype
        )


def test_inference_mode():
    operands, _ = make_tensors(dense_case())
    with torch.inference_mode():
        out, unfolded = dense(*operands, **SQUARE, memory=5_000), unfold(*operands[:3], scope=4, **SQUARE)
    assert torch.equal(out, dense(*operands, **SQUARE, memory=5_000))
    assert torch.equal(unfolded, unfold(*operands[:3], scope=4, **SQUARE))


def test_deterministic_algorithms():
    """On the CPU nothing changes: no error, no warning, the same bits. New memory is NaN, which shows what is left."""
    operands, grad = make_tensors(dense_case())

    def compute():
        outputs = dense(*operands, **SQUARE, memory=9_000), unfold(*operands[:3], scope=(4, 3), **SQUARE)
        gradients = [torch.autograd.grad(o, operands, torch.ones_like(o), allow_unused=True) for o in outputs]
        return [*outputs, *(g for found in gradients for g in found if g is not None)]

    expected = compute()
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = compute()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_unfolding_is_the_same_bits_for_any_number_of_threads():
    """And so are its gradients. The product is PyTorch's, which promises that for one number of threads."""
    operands, _ = make_tensors(dense_case(33, 1, 1, size=(9, 11)))

    def compute():
        out = unfold(*operands[:3], scope=(4, 3), **SQUARE)
        return [out, *torch.autograd.grad(out.sin().sum(), operands[:3])]

    check_any_number_of_threads(compute)


@pytest.mark.parametrize("mask", [*itertools.product((True, False), repeat=2)])
def test_flops_are_those_of_the_scope(mask):
    """A convolution by a kernel as large as the scope: in the backward pass once for weight, once for all others."""
    (x, _, offset, weight), _ = make_tensors(dense_case(offsets="kernel"))
    with FlopCounterMode(display=False) as counter:
        out = dense(x, None, offset, weight, **SQUARE)
    forward = counter.get_total_flops()
    assert forward == 2 * 2 * 12 * out.numel() > 0
    assert SAMPLING_MACS[op](x, None, offset, weight, (3, 3), out_val=out) == 4 * 9 * 2 * 4 * 30
    for_image, for_kernel = mask
    chosen = [t for t, want in ((x, for_image), (offset, for_image), (weight, for_kernel)) if want]
    for t in (x, offset, weight):
        t.requires_grad_(any(t is c for c in chosen))
    if chosen:
        out = dense(x, None, offset, weight, **SQUARE)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(out.sum(), chosen)
        assert counter.get_total_flops() == forward * (for_image + for_kernel)
    with FlopCounterMode(display=False) as counter:
        unfolded = unfold_op(x, None, offset, *UNFOLD)
    assert counter.get_total_flops() == 0
    assert SAMPLING_MACS[unfold_op](x, None, offset, (3, 3), out_val=unfolded) == 4 * 9 * 2 * 4 * 30


def good() -> dict:
    return {
        "input": torch.randn(2, 6, 5, 7),
        "kernel_offset": torch.randn(2, 18, 5, 7),
        "weight": torch.randn(8, 3, 4, 4),
        "data_offset": torch.randn(2, 18, 5, 7),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "clip": True,
    }


FAULTS = [
    ("input", torch.randn(6, 5, 7), r"input: expected \(N, C, H, W\), got shape \(6, 5, 7\)"),
    ("input", torch.ones(2, 6, 5, 7, dtype=torch.int32), "input: expected a floating dtype"),
    ("data_offset", torch.randn(2, 18, 5, 6), r"data_offset: expected shape .*\(2, 18, 5, 7\), got \(2, 18, 5, 6\)"),
    ("kernel_offset", torch.randn(2, 9, 5, 7), r"kernel_offset: expected shape .*\(2, 18, 5, 7\), got \(2, 9, 5, 7\)"),
    ("kernel_offset", torch.randn(2, 18, 5, 7).half(), "kernel_offset: expected dtype .*float32, got (torch.)?float16"),
    ("kernel_size", (0, 3), r"kernel_size: expected values of at least 1, got \(0, 3\)"),
    ("kernel_size", 3.0, "kernel_size: expected an int or a pair of ints, got 3.0"),
    ("stride", (1, 0), r"stride: expected values of at least 1, got \(1, 0\)"),
    ("padding", "same", "padding: expected an int or a pair of ints, got 'same'"),
    ("dilation", (3, 9), r"input: the padded size \(7, 9\) is smaller than the \(7, 19\) pixels"),
]
OF_KERNELS = [
    ("weight", torch.randn(8, 3, 4), r"weight: expected \(Cout, Cin / groups, Sh, Sw\).* got shape \(8, 3, 4\)"),
    ("weight", torch.randn(8, 3, 4, 0), r"weight: expected .* all at least 1, .* got shape \(8, 3, 4, 0\)"),
    ("weight", torch.randn(8, 4, 4, 4), r"weight: expected .* a divisor of the 6 channels .* got shape \(8, 4, 4, 4\)"),
    ("weight", torch.randn(9, 3, 4, 4), r"weight: expected Cout to be a multiple of the 2 groups, .* \(9, 3, 4, 4\)"),
    ("weight", torch.randn(8, 3, 4, 4).double(), "weight: expected dtype (torch.)?float32, got (torch.)?float64"),
]
OF_SCOPES = [
    ("scope", (4, 0), r"scope: expected values of at least 1, got \(4, 0\)"),
    ("scope", (4, 4, 4), r"scope: expected an int or a pair of ints, got \(4, 4, 4\)"),
]


def call(module, arguments: dict):
    """The unfolding, where there is a scope."""
    if "scope" in arguments:
        arguments = {k: v for k, v in arguments.items() if k != "weight"}
        return module.scope_unfold(**arguments)
    return module.dense_deform_kernel(**arguments)


EVERY = [({}, *f) for f in FAULTS + OF_KERNELS] + [({"scope": (4, 4)}, *f) for f in FAULTS + OF_SCOPES]


@pytest.mark.parametrize(("more", "name", "value", "message"), EVERY)
def test_fault_is_named(more, name, value, message):
    """By the compiled operator, the fake one and the reference."""
    arguments = {**good(), **more, name: value}
    with pytest.raises((RuntimeError, TypeError), match=message):
        call(functional, arguments)
    with pytest.raises((ValueError, TypeError), match=message):
        call(reference, arguments)
    with FakeTensorMode() as mode, pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        call(functional, {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()})


@pytest.mark.parametrize("fake", [False, True], ids=["plain", "fake"])
@pytest.mark.parametrize("name", ["data_offset", "kernel_offset", "weight"])
def test_device_mismatch_is_named(name, fake):
    arguments = good()
    with FakeTensorMode() if fake else nullcontext() as mode:
        if fake:
            arguments = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        arguments[name] = torch.empty(arguments[name].shape, device="meta")
        with pytest.raises((RuntimeError, ValueError), match=f"^{name}: expected device cpu, got meta$"):
            functional.dense_deform_kernel(**arguments)


@pytest.mark.parametrize("name", ["data_offset", "kernel_offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dense", "unfold", "backward", "backward of unfolding"])
def test_nan_offset_is_an_error_that_tells_where(kind, dtype, name):
    arguments = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in good().items()}
    arguments[name][1, 7, 2, 5] = torch.nan
    operands = [arguments[k] for k in ("input", "data_offset", "kernel_offset", "weight")]
    message = rf"{name}: NaN at index \(1, 7, 2, 5\)"
    if "backward" in kind:
        with pytest.raises(RuntimeError, match=message):
            if kind == "backward":
                mask = True, True, True, False  # which unfolds nothing anew
                backward_op(torch.ones(2, 8, 5, 7, dtype=dtype), *operands, *GEOMETRY, 0, False, False, mask)
            else:
                unfold_backward_op(torch.ones(2, 6 * 12, 35, dtype=dtype), *operands[:3], *UNFOLD, False)
        return
    with pytest.raises(NotFinite, match=message):
        call(functional, {**arguments, **({"scope": 4} if kind == "unfold" else {})})
    with torch.inference_mode(), pytest.raises(RuntimeError, match=message):
        call(functional, {**arguments, **({"scope": 4} if kind == "unfold" else {})})


def test_nan_in_the_image_is_not_an_error():
    """It goes on to the outputs that read it, as in a convolution."""
    arguments = {**good(), "data_offset": None}
    arguments["input"][0, 3, 0, 0] = torch.nan
    out = functional.dense_deform_kernel(**arguments)
    assert out.isnan().sum() == 4 * 4 and out[0, 4:, :2, :2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_that_holds_no_position_is_an_error_that_tells_the_least(dtype, monkeypatch):
    arguments = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in good().items()}
    least = 6 * 16 * max(4, dtype.itemsize)
    expected = functional.dense_deform_kernel(**arguments)
    torch.testing.assert_close(functional.dense_deform_kernel(**arguments, memory=least), expected)
    words = f"expected at least the {least} bytes of one position's columns, got {least - 1}"
    for memory, got in ((least - 1, words), (0, "got 0"), (-5, "got -5")):
        with pytest.raises(RuntimeError, match=f"^memory: .*{got}"):
            functional.dense_deform_kernel(**arguments, memory=memory)
    monkeypatch.setenv(VARIABLE, str(least - 1))
    with pytest.raises(RuntimeError, match=f"^environment variable DK_BENCH_UNFOLD_BYTES: {words}"):
        functional.dense_deform_kernel(**arguments)
    functional.dense_deform_kernel(**arguments, memory=least)  # what is asked for goes before the environment
    monkeypatch.setenv(VARIABLE, str(least))
    torch.testing.assert_close(functional.dense_deform_kernel(**arguments), expected)


def test_memory_is_of_no_account_where_nothing_is_unfolded(monkeypatch):
    """Depthwise kernels are as they are under any bound; that it is a number of bytes is asked of it all the same."""
    arguments = {**good(), "weight": torch.randn(6, 1, 4, 4)}
    expected = functional.dense_deform_kernel(**arguments)
    monkeypatch.setenv(VARIABLE, "1")
    for memory in (None, 0):
        assert torch.equal(functional.dense_deform_kernel(**arguments, memory=memory), expected)
    with pytest.raises(RuntimeError, match="^memory: expected at least the 0 bytes .* got -5"):
        functional.dense_deform_kernel(**arguments, memory=-5)


def test_memory_has_no_upper_bound(monkeypatch):
    """Also beyond the integers that an operator takes."""
    arguments = good()
    expected = functional.dense_deform_kernel(**arguments)
    assert torch.equal(functional.dense_deform_kernel(**arguments, memory=2**63), expected)
    monkeypatch.setenv(VARIABLE, "1" + 30 * "0")
    assert torch.equal(functional.dense_deform_kernel(**arguments), expected)


@pytest.mark.parametrize("text", ["64 MiB", "1e6", "-1", ""])
def test_environment_that_is_no_number_is_named(text, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(RuntimeError, match=f"{VARIABLE}: expected a number of bytes, got {text!r}"):
        functional.dense_deform_kernel(**good())
    with pytest.raises(RuntimeError, match=f"{VARIABLE}: expected a number of bytes, got {text!r}"):
        call(functional, {**good(), "scope": 4})


@pytest.mark.parametrize("memory", [1e6, "64", True])
def test_memory_that_is_no_int_is_named(memory):
    with pytest.raises(TypeError, match=f"memory: expected an int, a number of bytes, or None, got {memory!r}"):
        functional.dense_deform_kernel(**good(), memory=memory)


def test_gradient_that_does_not_fit_is_named():
    operands, grad = make_tensors(dense_case())
    given = *plain(operands), *GEOMETRY, 0, False, False
    with pytest.raises(RuntimeError, match=r"grad: expected shape \(2, 6, 6, 5\), got \(2, 6, 6, 4\)"):
        backward_op(grad[..., 1:], *given)
    with pytest.raises(RuntimeError, match="grad: expected dtype torch.float32, got torch.float64"):
        backward_op(grad.double(), *given)
    with pytest.raises(RuntimeError, match="output_mask: expected 4 values, got 2"):
        backward_op(grad, *given, (True, True))
