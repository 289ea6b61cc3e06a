"""The operators inside PyTorch: opcheck, fake tensors, torch.compile, export, autocast; and memory."""

from __future__ import annotations

import pytest
import torch
from operator_cases import LAYOUTS, OFFSETS, Case, make_tensors
from torch._subclasses.fake_tensor import FakeTensorMode

from dk_bench import functional
from dk_bench.analysis.bench.clock import peak_memory
from dk_bench.functional.deform_kernel_conv import _operator
from dk_bench.functional.private import check_torch
from dk_bench.reference.checks import NotFinite

GEOMETRY = {"kernel_size": (3, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 2), "clip": True}


def small(offsets: str, layout: str = "contiguous", dtype=torch.float32, batch: int = 2) -> tuple[list, torch.Tensor]:
    return make_tensors(Case(5, batch, 3, (6, 7), (4, 3), offsets, GEOMETRY, dtype, dtype, (layout,) * 5, False))


@pytest.mark.parametrize(
    ("offsets", "layout"),
    [("none", "contiguous"), ("data", "cropped"), ("kernel", "contiguous"), ("both", "channels_last")],
)
def test_opcheck(offsets, layout):
    operands, grad = small(offsets, layout, torch.float64)
    arguments = (*operands, *GEOMETRY.values())
    torch.library.opcheck(torch.ops.dk_bench.deform_kernel_conv, arguments)
    plain = [None if t is None else t.detach() for t in operands]
    torch.library.opcheck(torch.ops.dk_bench.deform_kernel_conv_backward, (grad, *plain, *GEOMETRY.values(), False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_tensors_have_the_strides_of_real_ones(layout):
    operands, grad = small("both", layout)
    op = torch.ops.dk_bench.deform_kernel_conv_backward
    real = [functional.deform_kernel_conv(*operands, **GEOMETRY), *op(grad, *operands, *GEOMETRY.values(), False)]
    plain = [t.detach() for t in (grad, *operands)]
    with FakeTensorMode() as mode:
        f = [mode.from_tensor(t) for t in plain]
        fake = [functional.deform_kernel_conv(*f[1:], **GEOMETRY), *op(*f, *GEOMETRY.values(), False)]
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_a_gradient_that_is_no_image_is_contiguous(shape):
    """No operator has such an operand yet; any part of one is a view that lies otherwise."""
    (x, *_, weight), grad = small("none")
    for part in (torch.ones(shape)[..., :4], torch.ones(shape)[..., ::2], torch.ones(*shape, 2)[..., 0]):
        _, gradient, *_ = _operator.allocate_gradients(grad, x, part, None, weight, *GEOMETRY.values(), False)
        assert gradient.shape == part.shape and gradient.is_contiguous()


@pytest.mark.parametrize("offsets", OFFSETS)
def test_compile(offsets):
    """Whole graph; a second batch size compiles no third time. What is refused comes out with its type."""
    compiled = torch.compile(
        lambda *operands: functional.deform_kernel_conv(*operands, **GEOMETRY).sin(),
        backend="aot_eager",
        fullgraph=True,
        dynamic=True,
    )
    counts = []
    for batch in (2, 3, 5):
        operands, grad = small(offsets, batch=batch)
        given = [t for t in operands if t is not None]
        expected = functional.deform_kernel_conv(*operands, **GEOMETRY).sin()
        actual = compiled(*operands)
        assert torch.equal(actual, expected)
        gradients = [torch.autograd.grad(out, given, grad) for out in (actual, expected)]
        assert all(torch.equal(a, e) for a, e in zip(*gradients, strict=True))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[1] == counts[2]
    if operands[1] is not None:
        operands[1].data[0, 0, 0, 0] = torch.nan
        for mode in (torch.enable_grad, torch.no_grad):
            with mode(), pytest.raises(NotFinite, match=r"^data_offset: NaN at index \(0, 0, 0, 0\)$"):
                compiled(*operands)


def test_export_with_a_dynamic_batch():
    class Module(torch.nn.Module):
        def forward(self, x, offset, weight):
            return functional.local_deform_kernel(x, offset, weight, **GEOMETRY)

    x, _, offset, weight = small("kernel")[0]
    batch = torch.export.Dim("batch")
    program = torch.export.export(Module(), (x, offset, weight), dynamic_shapes=({0: batch}, {0: batch}, None))
    x, _, offset, weight = small("kernel", batch=5)[0]
    assert torch.equal(program.module()(x, offset, weight), Module()(x, offset, weight))


@pytest.mark.parametrize("offsets", OFFSETS)
def test_autocast(offsets):
    """Image and kernel are rounded, float32 offsets are not, and the result is that of the rounded ones, exactly."""
    operands, _ = small(offsets)
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.deform_kernel_conv(*operands, **GEOMETRY)
    assert out.dtype == torch.bfloat16
    x, data, kernel, weight = operands
    expected = functional.deform_kernel_conv(x.bfloat16(), data, kernel, weight.bfloat16(), **GEOMETRY)
    assert torch.equal(out, expected)
    if offsets != "none":
        rounded = [None if o is None else o.bfloat16() for o in (data, kernel)]
        other = functional.deform_kernel_conv(x.bfloat16(), *rounded, weight.bfloat16(), **GEOMETRY)
        assert not torch.equal(out, other)
    gradients = torch.autograd.grad(out.sum(), [t for t in operands if t is not None])
    assert all(g.dtype == torch.float32 for g in gradients)


def test_autocast_leaves_float64_alone():
    operands, _ = small("both", dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.deform_kernel_conv(*operands, **GEOMETRY)
    assert torch.equal(out, functional.deform_kernel_conv(*operands, **GEOMETRY))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_no_im2col_and_no_stored_kernels(memory_format):
    """Either would be nine times the input, 113 MB; the forward pass needs its output, 12.5 MB, and little else."""
    x = torch.ones(4, 64, 112, 112).to(memory_format=memory_format).requires_grad_()
    offset = torch.zeros(4, 18, 112, 112, requires_grad=True)
    weight = torch.ones(64, 1, 4, 4, requires_grad=True)

    def forward():
        return functional.local_deform_kernel(x, offset, weight, kernel_size=3, padding=1)

    with torch.no_grad():
        peak = peak_memory(forward, x.device)
    if peak is None:
        pytest.skip("this system does not tell the peak of a stretch of a process")
    assert 0.9 * x.nbytes <= peak < x.nbytes + 8e6  # the kernel counts pages in batches, a few hundred kB off
    peak = peak_memory(lambda: torch.autograd.grad(forward().sum(), (x, offset, weight)), x.device)
    assert peak < 2 * x.nbytes + 2 * offset.nbytes + 12e6


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (torch._C, "_any_requires_grad"),
        (torch._C._functorch, "TransformType"),
        (torch.autograd.forward_ad, "_set_fwd_grad_enabled"),
    ],
)
def test_a_torch_without_what_derivatives_need_is_named(monkeypatch, module, name):
    check_torch()
    monkeypatch.delattr(module, name)
    with pytest.raises(ImportError, match=rf"^dk_bench: torch {torch.__version__[:4]}.* has no torch\..*\.{name},"):
        check_torch()
