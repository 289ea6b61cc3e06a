"""The graphs that torch.onnx.export makes of layers, of any batch size, in onnxruntime; of models,
tests/trained/test_graphs.py has them."""

from __future__ import annotations

import pytest
import torch
from export_cases import BATCH, moved
from torch import nn
from torch.export import Dim

from dk_bench import functional, reference
from dk_bench.functional import onnx
from dk_bench.nn import (
    CondConv2d,
    DeformConv2d,
    DeformKernel2d,
    DeformKernelConv2d,
    DeformRoIPool,
    GlobalDeformKernel2d,
)

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def to_onnx(model: nn.Module, args: tuple, dynamic: tuple, **options) -> tuple[dict[str, int], object]:
    """Exports as a user does; returns how many operators of each kind there are, and what runs it in onnxruntime."""
    program = torch.onnx.export(model, args, dynamo=True, verbose=False, dynamic_shapes=dynamic, **options)
    kinds: dict[str, int] = {}
    for node in program.model.graph:
        assert node.domain == "", node
        kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        given = {slot.name: t.numpy() for slot, t in zip(session.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, given)]

    return kinds, run


MODULES = [
    (DeformKernel2d, {"scope": 4, "groups": 6, "stride": 2}, {"MatMul": 1}),
    (DeformKernelConv2d, {"scope": 5, "groups": 6, "clip": False}, {"MatMul": 1, "GridSample": 1}),
    (DeformKernel2d, {"scope": 4, "groups": 2, "out_channels": 4, "stride": 2, "dilation": 2}, {"MatMul": 2}),
    (DeformKernelConv2d, {"scope": 4, "out_channels": 5}, {"MatMul": 2, "GridSample": 1}),
    (DeformKernel2d, {"scope": 2, "kernel_size": 1, "padding": 0}, {"MatMul": 2}),
    (DeformConv2d, {"groups": 6, "stride": 2}, {"DeformConv": 1}),
    (DeformConv2d, {"deform_groups": 2, "modulated": True, "groups": 2}, {"DeformConv": 1}),
    (GlobalDeformKernel2d, {"scope": 4, "groups": 6}, {}),
    (GlobalDeformKernel2d, {"scope": 2, "kernel_size": 1, "padding": 0}, {"Conv": 0}),
    (CondConv2d, {"experts": 3, "groups": 2, "stride": 2, "dilation": 2}, {"Conv": 0}),
]


@pytest.mark.parametrize("kind, options, expected", MODULES, ids=lambda v: getattr(v, "__name__", None) or str(v))
@torch.no_grad()
def test_modules_in_onnx(kind, options, expected):
    module = moved(kind(**{"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1, **options}))
    kinds, run = to_onnx(module, (torch.randn(2, 6, 9, 8),), (BATCH,), optimize=False)
    assert {key: kinds.get(key, 0) for key in expected} == expected
    for images in (1, 5):
        x = torch.randn(images, 6, 9, 8)
        torch.testing.assert_close(run(x)[0], module(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_any_image_size_in_onnx():
    """Height and width of the graph are open too."""
    module = moved(nn.Sequential(DeformKernelConv2d(4, 6, 6, 3, 2, 1, groups=6), DeformKernel2d(5, 6, 6, 3, groups=6)))
    sizes = ({0: Dim("batch"), 2: Dim("height", min=6), 3: Dim("width", min=6)},)
    _, run = to_onnx(module, (torch.randn(2, 6, 9, 8),), sizes, optimize=False)
    for size in ((1, 6, 9, 8), (5, 6, 7, 12), (3, 6, 16, 6)):
        x = torch.randn(size)
        torch.testing.assert_close(run(x)[0], module(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("scope", [(3, 2), (4, 5), (2, 1)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_onnx_form_is_the_operator(dtype, tolerance, scope, clip):
    """In every combination of offsets, for scopes larger and smaller than the taps; without exporting it."""
    torch.manual_seed(0)
    geometry = ((3, 2), (1, 2), (2, 1), (2, 1))
    x, weight = torch.randn(2, 3, 5, 7).to(dtype), torch.randn(3, 1, *scope).to(dtype)
    data, kernel = (2 * torch.randn(2, 12, 5, 4).to(dtype) for _ in range(2))
    names = ("kernel_size", "stride", "padding", "dilation")
    for offsets in ((None, None), (data, None), (None, kernel), (data, kernel)):
        found = onnx.deform_kernel_conv(x, *offsets, weight, *geometry, clip)
        expected = reference.deform_kernel_conv(
            x, *offsets, weight, clip=clip, **dict(zip(names, geometry, strict=True))
        )
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kernel_size, scope", [((3, 2), (4, 5)), ((3, 2), (2, 1)), ((1, 1), (2, 2))], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_onnx_forms_of_dense_kernels_are_the_operators(dtype, tolerance, kernel_size, scope, clip, groups):
    torch.manual_seed(0)
    geometry = (kernel_size, (1, 2), (2, 1), (2, 1))
    names = dict(zip(("kernel_size", "stride", "padding", "dilation"), geometry, strict=True), clip=clip)
    x, weight = torch.randn(2, 4, 5, 7).to(dtype), torch.randn(4, 4 // groups, *scope).to(dtype)
    size = reference.dense_deform_kernel(x, None, weight, **names).shape[2:]
    data, kernel = (2 * torch.randn(2, 2 * kernel_size[0] * kernel_size[1], *size).to(dtype) for _ in range(2))
    for offsets in ((None, None), (data, None), (None, kernel), (data, kernel)):
        of_data, of_kernel = offsets
        found = (
            onnx.dense_deform_kernel(x, *offsets, weight, *geometry, clip, 0),
            onnx.scope_unfold(x, *offsets, geometry[0], scope, *geometry[1:], clip),
        )
        expected = (
            reference.dense_deform_kernel(x, of_kernel, weight, data_offset=of_data, **names),
            reference.scope_unfold(x, of_kernel, scope=scope, data_offset=of_data, **names),
        )
        assert [t.dtype for t in found] == [dtype] * 2
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


class Unfold(nn.Module):
    def forward(self, x, offset):
        return functional.scope_unfold(x, offset, kernel_size=3, scope=4, padding=1)


@torch.no_grad()
def test_unfolding_in_onnx():
    sizes = {0: Dim("batch"), 2: Dim("height", min=3), 3: Dim("width", min=3)}
    _, run = to_onnx(
        Unfold().eval(), (torch.randn(2, 3, 6, 5), torch.randn(2, 18, 6, 5)), (sizes, sizes), optimize=False
    )
    for size in ((1, 6, 5), (3, 4, 7)):
        x, offset = (torch.randn(size[0], channels, *size[1:]) for channels in (3, 18))
        torch.testing.assert_close(run(x, offset)[0], Unfold()(x, offset), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_onnx_of_an_exported_program():
    """A program that was exported without ONNX in mind holds our operators until they are decomposed."""
    layers = (DeformKernel2d(4, 6, 6, 3, groups=6), DeformKernel2d(4, 6, 6, 3), DeformConv2d(6, 6, 3, groups=6))
    model = moved(nn.Sequential(*layers))
    program = torch.export.export(model, (torch.randn(2, 6, 9, 8),), dynamic_shapes=(BATCH,))
    assert sum("dk_bench" in str(node.target) for node in program.graph.nodes) == 3
    program = program.run_decompositions(onnx.DECOMPOSITIONS)
    assert not any("dk_bench" in str(node.target) for node in program.graph.nodes)
    _, run = to_onnx(program, (), None, optimize=False)
    x = torch.randn(3, 6, 9, 8)
    torch.testing.assert_close(run(x)[0], model(x), atol=1e-4, rtol=1e-4)


def test_roi_pooling_has_no_onnx_form():
    pool = DeformRoIPool(6, 2, hidden=4).eval()
    args = (torch.randn(1, 6, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]))
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as error:
        torch.onnx.export(pool, args, dynamo=True, verbose=False)
    assert "dk_bench.functional.deform_roi_pool has no ONNX form" in str(error.value)
