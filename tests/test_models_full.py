"""All 20 models of the paper at 224 x 224: forward, every parameter's gradient, feature strides."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dk_bench.models import PAPER_MODELS
from dk_bench.models.probe import evaluating
from dk_bench.nn import offset_parameter_names

TWENTY = [name for name in PAPER_MODELS if name not in ("resnet50", "mobilenetv2_100")]


@pytest.mark.parametrize("name", TWENTY)
def test_forward_and_backward(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    for module in model.modules():  # timm starts the last normalisation of a block at zero, which blocks gradients
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    out = model(torch.randn(1, 3, 224, 224))
    assert out.shape == (1, 1000) and out.isfinite().all()
    nn.functional.cross_entropy(out, torch.tensor([3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    still = {key for key in offset_parameter_names(model) if not model.get_parameter(key).grad.any()}
    assert not still


@pytest.mark.parametrize("name", TWENTY)
def test_features_have_strides_to_32(name):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
        with evaluating(model):
            maps = model(torch.empty(1, 3, 224, 224))
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert [224 // m.shape[-1] for m in maps] == [2, 4, 8, 16, 32]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
