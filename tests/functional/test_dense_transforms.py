"""Deformable convolutions that run on torchvision's operator, under torch.func and dual numbers, which it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from transform_cases import same, total

from dk_bench.nn import DeformConv2d

VARIANTS = pytest.mark.parametrize(
    "settings",
    [{}, {"groups": 2, "bias": False}, {"deform_groups": 2, "modulated": True, "stride": (1, 2)}],
    ids=["plain", "groups", "modulated"],
)


def make(settings: dict) -> tuple[DeformConv2d, torch.Tensor]:
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, **{"padding": 1, **settings}).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module, torch.randn(2, 4, 5, 6, dtype=torch.float64)


@VARIANTS
def test_forward_mode(settings):
    """The value is torchvision's, the derivative along a direction that of finite differences."""
    module, x = make(settings)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    v = {name: torch.randn_like(p) for name, p in parameters.items()}
    out, tangent = jvp(lambda p: functional_call(module, p, (x,)), (parameters,), (v,))
    step = 1e-6
    ahead, behind = (
        functional_call(module, {name: p + sign * step * v[name] for name, p in parameters.items()}, (x,))
        for sign in (1, -1)
    )
    same(out, module(x))
    same(tangent, (ahead - behind) / (2 * step), 1e-6)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x, x)))
    same(tuple(dual), jvp(module, (x,), (x,)))


@VARIANTS
def test_per_sample_gradients(settings):
    module, x = make(settings)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    found = vmap(grad(lambda p, image: total(functional_call(module, p, (image[None],)))), (None, 0))(parameters, x)
    loss = total(module(x))
    for name, g in zip(parameters, torch.autograd.grad(loss, list(module.parameters())), strict=True):
        same(found[name].sum(0), g)  # torchvision's backward pass


def test_second_derivatives_and_mapping():
    module, x = make({"modulated": True})
    assert hessian(lambda image: total(module(image)))(x[:1, :, :3, :3]).abs().max() > 0
    same(vmap(module)(x[:, None]), module(x)[:, None])


def test_compiles():
    module, x = make({})
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    same(compiled(x), module(x))

    def tangent(x):
        return jvp(module, (x,), (x,))[1]

    same(torch.compile(tangent, backend="aot_eager", fullgraph=True)(x), tangent(x))


def test_offsets_at_rest():
    """Zero-initialised offsets put every tap on a pixel, where the derivative jumps: torchvision's side is taken."""
    torch.manual_seed(0)
    module = DeformConv2d(4, 6, 3, padding=1, modulated=True).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(total(module(x)), list(parameters.values()))
    found = grad(lambda p: total(functional_call(module, p, (x,))))({k: p.detach() for k, p in parameters.items()})
    for name, g in zip(parameters, expected, strict=True):
        same(found[name], g)
