"""The small models for small images: names, arms, cost, maps, and that deforming keeps the function."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from module_cases import on_meta
from torch import nn

from dk_bench import KernelSpec, deform
from dk_bench.models import PAPER_MODELS, SMALL_MODELS
from dk_bench.models.blocks import block_convolutions
from dk_bench.models.cost import count_cost
from dk_bench.models.probe import output_strides
from dk_bench.nn import DeformConv2d, RigidStart2d, offset_parameter_names
from dk_bench.nn.convolution import is_depthwise
from dk_bench.tables.paper import figures_of_model

DEPTHWISE = ["small_resnetdw", "small_mobilenetv2"]
RIGID = [name for name, model in SMALL_MODELS.items() if model.spec.is_rigid]


pytestmark = pytest.mark.usefixtures("seeded")


def test_arms_are_those_of_the_paper_and_more():
    assert RIGID == [*DEPTHWISE, "small_resnet"]
    papers = {model.suffix for model in PAPER_MODELS.values()}
    for base in DEPTHWISE:
        suffixes = {model.suffix for model in SMALL_MODELS.values() if model.base == base}
        assert papers | {"_dk_spread", "_dk_unclipped", "_dk_lpw"} <= suffixes
        spec = {name: model.spec for name, model in SMALL_MODELS.items()}
        assert spec[base + "_dk"] == KernelSpec(depthwise="local")
        assert spec[base + "_dk_spread"] == KernelSpec(depthwise="local", grid="spread")
        assert spec[base + "_dk_unclipped"] == KernelSpec(depthwise="local", clip=False)
        assert spec[base + "_dcn_dk"] == KernelSpec(depthwise="local", dcn=True, dcn_min_stride=2)
    dense = {model.suffix: model.spec for model in SMALL_MODELS.values() if model.base == "small_resnet"}
    assert dense == {
        "": KernelSpec(),
        "_dk_s3": KernelSpec(dense="local", scope=3),
        "_dk": KernelSpec(dense="local"),
        "_dk_spread": KernelSpec(dense="local", grid="spread"),
        "_gdk": KernelSpec(dense="global"),
        "_dcn": KernelSpec(dense_dcn="v1", dense_dcn_min_stride=2),
        "_dcn_dk": KernelSpec(dense="local", dense_dcn="v1", dense_dcn_min_stride=2),
    }
    assert all(figures_of_model(name) == {} for name in SMALL_MODELS)


@pytest.mark.parametrize("name, millions", [*((name, 5) for name in DEPTHWISE), ("small_resnet", 8)])
def test_cost_is_about_five_million_multiply_adds(name, millions):
    """Eight where the convolutions are dense."""
    assert abs(count_cost(on_meta(name, num_classes=10), (3, 32, 32)).macs / 1e6 - millions) < 1


@pytest.mark.parametrize("name, convs, first", [*((name, 6, 1) for name in DEPTHWISE), ("small_resnet", 8, 2)])
def test_all_stages_but_the_first_have_dcn(name, convs, first):
    """About the share of 3x3 convolutions that have it in the paper's models."""
    model = on_meta(name)
    strides = output_strides(model)
    of_3x3 = {key: conv for key, conv in block_convolutions(model) if conv.kernel_size == (3, 3)}
    assert all(is_depthwise(conv) == (name in DEPTHWISE) for conv in of_3x3.values())
    assert len(of_3x3) == convs and [strides[key] for key in of_3x3].count(1) == first
    assert sum(isinstance(module, DeformConv2d) for module in on_meta(name + "_dcn").modules()) == convs - first


def test_widths_fill_the_vectors_of_compiled_kernels():
    channels = {key: conv.out_channels for key, conv in block_convolutions(on_meta("small_resnet"))}
    assert len(channels) == 8 and not any(width % 16 for width in channels.values())


@pytest.mark.parametrize("name", RIGID)
def test_stem_keeps_the_size(name):
    model = timm.create_model(name, features_only=True).eval()
    reductions = model.feature_info.reduction()
    assert reductions[0] == 1 and reductions == sorted(reductions)
    maps = model(torch.randn(1, 3, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 32 // stride, 48 // stride)
        for channels, stride in zip(model.feature_info.channels(), reductions, strict=True)
    ]
    deformed = timm.create_model(name + "_dk", features_only=True, out_indices=(0, 2))
    assert deformed.feature_info.reduction() == [reductions[0], reductions[2]]
    assert any(isinstance(module, RigidStart2d) for module in deformed.modules())


@pytest.mark.parametrize("name", RIGID)
def test_in_chans_and_widths_of_the_stem(name):
    model = timm.create_model(name, in_chans=1, num_classes=7).eval()
    assert model(torch.randn(2, 1, 24, 24)).shape == (2, 7)
    [stem] = [conv for conv in model.modules() if isinstance(conv, nn.Conv2d)][:1]
    assert stem.stride == (1, 1) and stem.weight.shape[:2] == (16, 1)
    # Drawn as timm draws the others: normal, by the number of outputs of an input pixel.
    assert stem.weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.3)


@pytest.mark.parametrize("name", [name for name in SMALL_MODELS if name not in RIGID])
@torch.no_grad()
def test_deforming_keeps_the_function(name):
    model = SMALL_MODELS[name]
    rigid = timm.create_model(model.base, num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = rigid(x)
    out = deform(copy.deepcopy(rigid), model.spec)
    assert out.pretrained_cfg["architecture"] == name and out.pretrained_cfg["input_size"] == (3, 32, 32)
    assert (out(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert bool(offset_parameter_names(out)) == bool(set(model.spec.changed()) - {"experts"})


@pytest.mark.parametrize("name", [*RIGID, "small_resnetdw_dcn_dk", "small_resnet_dcn_dk"])
def test_pretrained_takes_weights_of_ones_own_alone(name, tmp_path):
    with pytest.raises(RuntimeError, match=f"{name}: no pretrained weights are published"):
        timm.create_model(name, pretrained=True)
    held = timm.create_model(name, num_classes=10).state_dict()
    torch.save(held, tmp_path / "mine.pth")
    overlay = {"file": str(tmp_path / "mine.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10)
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())
