"""deform(): which convolutions change, that the function stays, and what it refuses. On timm's models and ours."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import timm
import torch
from module_cases import on_meta, trained
from torch import nn

from dk_bench import KernelSpec, deform
from dk_bench.models import TEST_MODELS
from dk_bench.models.blocks import block_convolutions
from dk_bench.models.probe import output_strides
from dk_bench.nn import (
    CondConv2d,
    DeformConv2d,
    DeformKernel2d,
    DeformKernelConv2d,
    GlobalDeformKernel2d,
    OffsetGenerator,
)

LOCAL, GLOBAL = KernelSpec(depthwise="local"), KernelSpec(depthwise="global")
DENSE, BOTH_DENSE = KernelSpec(dense="local"), KernelSpec(dense="local", dense_dcn="v1")
POINTWISE, EXPERTS, DCN = KernelSpec(pointwise="global"), KernelSpec(experts=3), KernelSpec(dcn=True)
ANY_MODEL = [(model.base, model.spec) for model in TEST_MODELS.values()] + [
    ("test_convnext", KernelSpec(depthwise="local", kernel_size=7, scope=8)),
    ("test_convnext", KernelSpec(depthwise="global", kernel_size=7, scope=9)),
    ("test_efficientnet", KernelSpec(depthwise="local", pointwise="global", dcn=True)),
    ("test_efficientnet", EXPERTS),
    ("test_resnet", POINTWISE),
    ("test_resnet", EXPERTS),
    ("test_resnet", DENSE),
    ("test_resnet", KernelSpec(dense="global", pointwise="local", scope=5, grid="spread")),
    ("test_resnet", KernelSpec(dense="local", dense_dcn="v1", dense_dcn_min_stride=16, experts=2)),
    ("test_efficientnet", KernelSpec(depthwise="local", dense="local", pointwise="local")),
    ("inception_next_atto", LOCAL),
    ("regnetx_002", POINTWISE),
]


pytestmark = pytest.mark.usefixtures("seeded")


def kinds(model: nn.Module) -> dict[str, type]:
    ours = (CondConv2d, DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d)
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, ours)}


@pytest.mark.parametrize("name, spec", ANY_MODEL, ids=lambda v: v if isinstance(v, str) else str(v.changed()))
@torch.no_grad()
def test_function_stays_until_offsets_move(name, spec):
    rigid = trained(name, num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    expected = rigid(x)
    model = deform(copy.deepcopy(rigid), spec)
    out = model(x)
    assert (out - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
    if spec.is_rigid:
        return
    assert not any(module.training for module in model.modules())
    for module in model.modules():
        if isinstance(module, OffsetGenerator):
            nn.init.constant_(module.bias, 0.7)
        if isinstance(module, CondConv2d):
            nn.init.normal_(module.routing.bias)
    assert (model(x) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", TEST_MODELS)
@torch.no_grad()
def test_function_of_a_float64_model_stays_in_float64(name):
    rigid = trained(TEST_MODELS[name].base, num_classes=10).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = rigid(x)
    out = deform(copy.deepcopy(rigid), TEST_MODELS[name].spec)(x)
    assert out.dtype == torch.float64
    assert (out - expected).abs().max() <= 1e-13 * expected.abs().max().clamp(min=1)


def test_depthwise():
    depthwise = [n for n, m in on_meta("mobilenetv2_100").named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert kinds(deform(on_meta("mobilenetv2_100"), LOCAL)) == dict.fromkeys(depthwise, DeformKernel2d)
    assert kinds(deform(on_meta("mobilenetv2_100"), GLOBAL)) == dict.fromkeys(depthwise, GlobalDeformKernel2d)
    assert len(depthwise) == 17


def test_pointwise_is_in_the_blocks_alone():
    resnet = kinds(deform(on_meta("resnet50dw"), POINTWISE))
    assert len(resnet) == 2 * 16 and all(name.endswith(("conv1", "conv3")) and "layer" in name for name in resnet)
    mobilenet = kinds(deform(on_meta("mobilenetv2_100"), POINTWISE))
    assert "conv_head" in mobilenet and "conv_stem" not in mobilenet
    assert len(mobilenet) == 1 + 2 * 16 + 1  # first block, the others, last 1x1


def test_squeeze_and_excitation_stays():
    model = deform(timm.create_model("test_efficientnet"), EXPERTS)
    assert not any(".se." in name for name in kinds(model)) and kinds(model)
    assert any(".se." in name for name, module in model.named_modules() if type(module) is nn.Conv2d)


@pytest.mark.parametrize(
    "name, attention, count",
    [
        ("resnest14d", ".conv2.fc1", 4),
        ("resnest14d", ".conv2.fc2", 4),
        ("cspnext_s", ".attention.fc", 4),
        ("hgnet_tiny", ".aggregation.1.conv", 5),
        ("botnet26t_256", ".self_attn.qkv", 3),
        ("efficientvit_b0", ".context_module.main.qkv.conv", 4),
    ],
)
def test_attention_stays_whatever_it_is_called(name, attention, count):
    model = deform(on_meta(name), POINTWISE)
    assert len(kinds(model)) > 4 and not any(changed.endswith(attention) for changed in kinds(model))
    stays = [key for key, module in model.named_modules() if type(module) is nn.Conv2d and key.endswith(attention)]
    assert len(stays) == count


STEMS = {  # family -> what comes before the first convolution of a block
    "resnet18": ["conv1"],
    "resnest14d": ["conv1.0", "conv1.3", "conv1.6"],
    "densenet121": ["features.conv0"],
    "dpn48b": ["features.conv1_1.conv"],
    "tresnet_m": ["body.conv1.conv"],
    "inception_v3": [f"Conv2d_{name}.conv" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")],
    "inception_v4": ["features.0.conv", "features.1.conv", "features.2.conv", "features.3.conv.conv"],
    "hrnet_w18_small": ["conv1", "conv2"],
    "dla34": ["base_layer.0", "level0.0", "level1.0"],
    "legacy_xception": ["conv1", "conv2"],
    "legacy_seresnet18": ["layer0.conv1"],
    "vgg11": ["features.0"],
    "convnext_atto": ["stem.0"],
    "regnetx_002": ["stem.conv"],
    "rexnet_100": ["stem.conv"],
    "mobilenetv3_small_050": ["conv_stem"],
    "visformer_tiny": ["stem.0", "patch_embed1.proj"],
    "vitamin_small_224": ["patch_embed.backbone.stem.conv1", "patch_embed.backbone.stem.conv2"],
    "test_vit": ["patch_embed.proj"],
}


@pytest.mark.parametrize("name", STEMS)
def test_stem_and_classifier_are_no_blocks(name):
    model = on_meta(name)
    blocks = dict(block_convolutions(model))
    before = []
    for key, module in model.named_modules():
        if key in blocks:
            break
        if isinstance(module, nn.Conv2d) and "skip" not in key:
            before.append(key)
    assert before == STEMS[name]
    assert bool(blocks) == (name != "test_vit")
    assert not any(module is model.get_classifier() for module in blocks.values())


@pytest.mark.parametrize("name", ["densenet121", "tresnet_m", "inception_v4", "vgg11"])
def test_families_whose_stem_shares_a_container_with_the_blocks(name):
    selected = list(kinds(deform(on_meta(name), EXPERTS)))
    assert not set(selected) & set(STEMS[name])
    every = [key for key, module in on_meta(name).named_modules() if isinstance(module, nn.Conv2d)]
    assert len(selected) > len(every) // 2
    assert len(kinds(deform(on_meta(name, features_only=True), EXPERTS))) == len(selected)  # timm renames modules there


def test_dcn_is_on_output_stride_8_and_more():
    strides = output_strides(on_meta("resnet50dw"))
    assert strides["layer1.0.conv2"] == 4 and strides["layer2.0.conv1"] == 4 and strides["layer2.0.conv2"] == 8
    names = [name for name in strides if name.endswith("conv2")]
    assert kinds(deform(on_meta("resnet50dw"), DCN)) == {
        name: DeformConv2d for name in names if not name.startswith("layer1")
    }
    both = kinds(deform(on_meta("resnet50dw"), KernelSpec(dcn=True, depthwise="local")))
    assert both == {n: DeformKernel2d if n.startswith("layer1") else DeformKernelConv2d for n in names}
    all_of_them = KernelSpec(dcn=True, dcn_min_stride=4)
    assert kinds(deform(on_meta("resnet50dw"), all_of_them)) == dict.fromkeys(names, DeformConv2d)


def test_dense_kernels_on_deformed_data_are_on_high_output_strides():
    names = [f"layer{i}.{j}.conv2" for i, count in ((1, 3), (2, 4), (3, 6), (4, 3)) for j in range(count)]
    assert kinds(deform(on_meta("resnet50"), DENSE)) == dict.fromkeys(names, DeformKernel2d)
    assert kinds(deform(on_meta("resnext50_32x4d"), DENSE)) == dict.fromkeys(names, DeformKernel2d)
    assert kinds(deform(on_meta("resnet50"), KernelSpec(dense="global"))) == dict.fromkeys(names, GlobalDeformKernel2d)
    for spec, last in ((BOTH_DENSE, "layer4"), (dataclasses.replace(BOTH_DENSE, dense_dcn_min_stride=8), "layer234")):
        assert kinds(deform(on_meta("resnet50"), spec)) == {
            name: DeformKernelConv2d if name[5] in last[5:] else DeformKernel2d for name in names
        }


def test_local_pointwise_kernels():
    found = kinds(deform(on_meta("resnet50"), KernelSpec(pointwise="local")))
    assert set(found) == set(kinds(deform(on_meta("resnet50"), POINTWISE)))
    assert set(found.values()) == {DeformKernel2d}


def test_output_strides_of_an_input_that_does_not_divide():
    model = timm.create_model("test_resnetdw")
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 225, 225)}
    assert set(output_strides(model).values()) == {2, 4, 8, 16, 32}


def test_experts_leave_depthwise_kernels_to_dk():
    found = kinds(deform(timm.create_model("test_resnetdw"), KernelSpec(experts=4, depthwise="local")))
    deformed = {name for name, kind in found.items() if kind is DeformKernel2d}
    assert deformed == {f"layer{i}.0.conv2" for i in (1, 2, 3, 4)}
    assert {name for name, kind in found.items() if kind is CondConv2d} == {
        f"layer{i}.0.conv{j}" for i in (1, 2, 3, 4) for j in (1, 3)
    }


def test_features_only_before_and_after():
    inside = timm.create_model("test_resnetdw_dk", features_only=True)
    outside = deform(timm.create_model("test_resnetdw", features_only=True), LOCAL)
    assert list(inside.state_dict()) == list(outside.state_dict())


def test_feature_hooks_survive():
    """timm's extractor hooks the projections of MobileNet-V2's blocks, which pointwise replaces."""
    model = timm.create_model("mobilenetv2_100", features_only=True, feature_location="expansion").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        maps = deform(model, POINTWISE)(x)
    for out, rigid in zip(maps, expected, strict=True):
        torch.testing.assert_close(out, rigid, atol=1e-3, rtol=1e-3)


def test_shared_convolution_is_replaced_everywhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Conv2d(4, 4, 3, padding=1, groups=4)

        def forward(self, x):
            return self.second(self.first(x))

    model = deform(Twice(), LOCAL)
    assert model.first is model.second and isinstance(model.first, DeformKernel2d)


@pytest.mark.parametrize(
    "name, spec, message",
    [
        ("test_resnet", LOCAL, "depthwise: ResNet has no depthwise 3x3 convolution"),
        ("test_convnext", LOCAL, r"depthwise: ConvNeXt has no depthwise 3x3 .* sizes \[\(7, 7\)\]"),
        # experts take what depthwise should have changed, and do not stand in for it
        ("test_convnext", KernelSpec(depthwise="local", experts=2), "depthwise: ConvNeXt has no depthwise 3x3"),
        ("test_convnext", KernelSpec(depthwise="global", pointwise="global"), "depthwise: ConvNeXt has no depthwise"),
        ("test_resnet", DCN, "dcn: ResNet has no depthwise 3x3 convolution of output stride 8"),
        ("test_resnetdw", KernelSpec(dcn=True, dcn_min_stride=64), "dcn: .* output stride 64"),
        ("test_resnet", KernelSpec(dense="local", kernel_size=5, scope=6), "dense: ResNet has no dense 5x5 .*3, 3"),
        ("test_resnet", dataclasses.replace(BOTH_DENSE, dense_dcn_min_stride=64), "dense_dcn: .* output stride 64"),
        (
            "test_convnext",
            KernelSpec(dense="local"),
            r"dense 3x3 .* none, .* everywhere=True adds \[\(2, 2\), \(4, 4\)\]",
        ),
        (
            "test_convnext",
            KernelSpec(dense="local", everywhere=True),
            r"no dense 3x3 convolution outside of the classifier and attention; .* \[\(2, 2\), \(4, 4\)\]$",
        ),
        (
            "resnet18",
            KernelSpec(dense="local", experts=2),
            "experts: other parts of the spec change every convolution in",
        ),
        ("test_vit", KernelSpec(pointwise="local"), "pointwise: VisionTransformer has no 1x1 convolution"),
        ("test_vit", EXPERTS, "experts: VisionTransformer has no convolution"),
        ("test_vit", POINTWISE, "pointwise: VisionTransformer has no 1x1 convolution"),
        ("test_resnetdw_dk", GLOBAL, "model: ResNet is deformed already"),
        ("tf_mobilenetv3_small_minimal_100", LOCAL, r"blocks\.0\.0\.conv_dw: cannot be deformed.*Conv2dSame"),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v.changed()),
)
def test_refusals_leave_the_model_alone(name, spec, message):
    model = timm.create_model(name)
    before = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        deform(model, spec)
    assert {n: type(m) for n, m in model.named_modules()} == before


def test_rigid_spec_changes_nothing():
    model = timm.create_model("test_resnetdw")
    assert deform(model, KernelSpec()) is model and not kinds(model)
