"""Whole models under torch.func: forward mode, per-sample gradients, ensembles."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.func import functional_call, grad, jvp, vjp, vmap
from transform_cases import same, total

import dk_bench  # noqa: F401  (registers the models)


@pytest.mark.parametrize("kinds", ["dk", "dcn_dk", "gdk", "scc_dk"])
def test_models(kinds):
    """Forward mode agrees with reverse mode, per-sample gradients and an ensemble with one image and one model."""
    torch.manual_seed(0)
    model = timm.create_model(f"test_resnetdw_{kinds}", num_classes=3).double().eval()
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    for key, p in parameters.items():
        if "offset" in key or "routing" in key:
            p.add_(0.05 * torch.randn_like(p))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def call(parameters, x):
        return functional_call(model, parameters, (x,))

    directions = {key: 0.1 * torch.randn_like(p) for key, p in parameters.items()}
    out, tangent = jvp(lambda p: call(p, x), (parameters,), (directions,))
    gradient = torch.randn_like(out)
    (gradients,) = vjp(lambda p: call(p, x), parameters)[1](gradient)
    assert tangent.abs().max() > 0
    same((tangent * gradient).sum(), sum((gradients[key] * d).sum() for key, d in directions.items()))
    loss = grad(lambda p, image: total(call(p, image[None])))
    per_sample = vmap(loss, (None, 0))(parameters, x)
    for key, expected in loss(parameters, x[1]).items():
        same(per_sample[key][1], expected)
    several = {key: torch.stack((p, p + 0.01)) for key, p in parameters.items()}
    second = call({key: p[1] for key, p in several.items()}, x)
    same(vmap(call, (0, None))(several, x)[1], second)
