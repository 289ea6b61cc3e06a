"""Graphs of any batch size by torch.compile; by torch.export, tests/trained/test_graphs.py has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from export_cases import moved
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from dk_bench.nn import CondConv2d, GlobalDeformKernel2d

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


PER_IMAGE = [
    GlobalDeformKernel2d(4, 6, 6, 3, padding=1, groups=6),
    CondConv2d(2, 6, 6, 3, padding=1, stride=2, groups=2),
]


def begun(module: torch.nn.Module) -> torch.nn.Module:
    """The module with the same weights in every test."""
    torch.manual_seed(0)
    module.reset_parameters()
    torch._dynamo.reset()
    return moved(module)


@pytest.mark.parametrize("module", PER_IMAGE, ids=lambda m: type(m).__name__)
def test_one_compiled_graph_for_all_batches(module):
    """With gradients. Inductor takes a convolution's number of groups for a constant, so that images may be none."""
    begun(module)
    operators: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=record), fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for images in (2, 3, 5):
            x = torch.randn(images, 6, 9, 8)
            torch._dynamo.mark_dynamic(x, 0)
            gradients = []
            for run in (compiled, module):
                out = run(x)
                module.zero_grad()
                out.square().sum().backward()
                gradients.append([out.detach(), *(p.grad for p in module.parameters())])
            for found, expected in zip(*gradients, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert len(operators) > 50 and not any("convolution" in name for name in operators)


def test_compiled_graph_under_autocast():
    """What it multiplies element by element takes autocast's dtype, as the convolution does, and loses hardly more: a
    matrix product is rounded for every tap, a convolution once."""
    for module, dtype in itertools.product(PER_IMAGE, (torch.bfloat16, torch.float16)):
        begun(module)
        x = torch.randn(2, 6, 9, 8)
        expected = module(x)
        with torch.autocast("cpu", dtype):
            results = torch.compile(module, backend="aot_eager", fullgraph=True)(x), module(x)
        assert [out.dtype for out in results] == [dtype] * 2
        compiled, eager = ((out.float() - expected).square().mean().sqrt() for out in results)
        assert 0 < compiled < 1.3 * eager, (module, dtype)


def test_compiled_graph_keeps_channels_last():
    module = begun(PER_IMAGE[0])
    x = torch.randn(2, 6, 9, 8).to(memory_format=torch.channels_last)
    out = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, module(x), atol=1e-5, rtol=1e-5)
