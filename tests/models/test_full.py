"""The 20 large models of the paper, and those beyond it: forward, every parameter's gradient, feature strides."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dk_bench.models import LARGE_MODELS, PAPER_MODELS
from dk_bench.models.probe import evaluating
from dk_bench.nn import OffsetGenerator

TWENTY = [name for name in PAPER_MODELS if name not in ("resnet50", "mobilenetv2_100")]


def move_offsets(model: nn.Module) -> None:
    """Random offsets of a tenth of a pixel. Half a pixel would clip the only tap of a 1x1 kernel in its scope of 2, and
    a clipped tap rightly has no gradient."""
    for module in model.modules():
        if isinstance(module, OffsetGenerator):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=0.1 / fan_in**0.5)
            nn.init.normal_(module.bias, std=0.1)


BEYOND = ["resnet50_gdk", "resnet50_dcn_dk", "mobilenetv2_100_dk_lpw"]  # every kind of layer; others are like them


@pytest.mark.parametrize("name, size", [*((name, 224) for name in TWENTY), *((name, 64) for name in BEYOND)])
def test_forward_and_backward(name, size):
    torch.manual_seed(0)
    model = timm.create_model(name)
    for module in model.modules():  # timm starts the last normalisation of a block at zero, which blocks gradients
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    move_offsets(model)
    out = model(torch.randn(1, 3, size, size))
    assert out.shape == (1, 1000) and out.isfinite().all()
    nn.functional.cross_entropy(out, torch.tensor([3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert not [key for key, parameter in model.named_parameters() if not parameter.grad.any()]


@pytest.mark.parametrize("name", [*TWENTY, *LARGE_MODELS])
def test_features_have_strides_to_32(name):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
        with evaluating(model):
            maps = model(torch.empty(1, 3, 224, 224))
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert [224 // m.shape[-1] for m in maps] == [2, 4, 8, 16, 32]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
