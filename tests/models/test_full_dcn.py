"""Full (dense) deformable convolution as a spec: where it goes, that it starts rigid, its groups, factors, dilation."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from module_cases import check_dtypes, on_meta, randomise
from torch import nn
from torchvision.ops import deform_conv2d

from dk_bench import KernelSpec, deform
from dk_bench.config import load_config
from dk_bench.errors import UserError
from dk_bench.models.cost import count_cost
from dk_bench.models.probe import output_strides
from dk_bench.nn import CondConv2d, DeformConv2d, DeformKernel2d, LocalMask, LocalOffset, offset_parameter_names

V1, V2 = KernelSpec(dense_dcn="v1"), KernelSpec(dense_dcn="v2")
RES5 = [f"layer4.{block}.conv2" for block in range(3)]  # of ResNet-50


pytestmark = pytest.mark.usefixtures("seeded")


def deformed(model: nn.Module) -> dict[str, DeformConv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DeformConv2d)}


def test_last_stage_by_default():
    assert list(deformed(deform(on_meta("resnet50"), V1))) == RES5
    basic = [f"layer4.{block}.conv{i}" for block in (0, 1) for i in (1, 2)]
    assert list(deformed(deform(on_meta("resnet18"), V2))) == basic
    grouped = deformed(deform(on_meta("resnext50_32x4d"), V1))
    assert list(grouped) == RES5 and grouped[RES5[0]].groups == 32


def test_stages_by_output_stride():
    """The second paper deforms all 3x3 convolutions of the last three stages, 13 in ResNet-50."""
    names = list(deformed(deform(on_meta("resnet50"), KernelSpec(dense_dcn="v2", dense_dcn_min_stride=8))))
    assert len(names) == 13 and not any(name.startswith("layer1") for name in names)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_parts(version, groups):
    spec = KernelSpec(dense_dcn=version, dense_dcn_groups=groups)
    model = deform(on_meta("resnet50"), spec)
    for module in deformed(model).values():
        assert module.data_offset.weight.shape == (18 * groups, 512, 3, 3)
        assert (module.data_mask is not None) == module.modulated == (version == "v2")
        if module.modulated:
            assert module.data_mask.weight.shape == (9 * groups, 512, 3, 3)
    generators = ["data_offset", "data_mask"][: 1 + (version == "v2")]
    expected = {f"{name}.{part}.{key}" for name in RES5 for part in generators for key in ("weight", "bias")}
    assert offset_parameter_names(model) == expected


@pytest.mark.parametrize(
    "name, changes",
    [
        ("resnet18", {"dense_dcn": "v1"}),
        ("resnet18", {"dense_dcn": "v2"}),
        ("resnet18", {"dense_dcn": "v1", "dense_dcn_groups": 4}),
        ("resnet18", {"dense_dcn": "v2", "dense_dcn_groups": 4, "dense_dcn_min_stride": 8}),
        ("resnet50", {"dense_dcn": "v1"}),
        ("resnet50", {"dense_dcn": "v2", "dense_dcn_groups": 4, "dense_dcn_min_stride": 8}),
        ("test_resnet", {"dense_dcn": "v2", "pointwise": "global"}),
        ("test_resnet", {"dense_dcn": "v1", "experts": 2}),
    ],
    ids=str,
)
@torch.no_grad()
def test_function_stays_until_offsets_move(name, changes):
    rigid = timm.create_model(name, num_classes=10).eval()
    for module in rigid.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: timm starts the last of a block at 0
            nn.init.uniform_(module.weight, 0.5, 1.0)
    x = torch.randn(2, 3, 64, 64)
    expected = rigid(x)
    model = deform(copy.deepcopy(rigid), KernelSpec(**changes))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    moved = randomise(model, kinds=(LocalOffset,))  # LocalMask too
    assert (moved(x) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_factor_starts_at_one_exactly():
    module = DeformConv2d.from_rigid(nn.Conv2d(6, 4, 3, padding=1), modulated=True)
    mask = module.data_mask(torch.randn(2, 6, 5, 5))
    assert mask.shape == (2, 9, 5, 5) and mask.eq(1).all()
    assert isinstance(module.data_mask, LocalMask)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("in_channels, groups, deform_groups", [(8, 1, 1), (8, 1, 4), (8, 2, 2), (8, 8, 1), (8, 8, 4)])
def test_module_is_a_written_out_deformable_convolution(in_channels, groups, deform_groups, modulated):
    """Against grid_sample: every tap of every group of channels reads at its own place, times its factor."""
    module = randomise(
        DeformConv2d(
            in_channels, 8, 3, stride=2, padding=1, groups=groups, deform_groups=deform_groups, modulated=modulated
        )
    )
    x = torch.randn(2, in_channels, 7, 6)
    offset = module.data_offset(x).unflatten(1, (deform_groups, 9, 2))
    mask = module.data_mask(x).unflatten(1, (deform_groups, 9)) if modulated else torch.ones_like(offset[:, :, :, 0])
    height, width = offset.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))  # so that align_corners addresses whole pixels beyond the border too
    columns = []
    for tap in range(9):
        parts = []
        for group, channels in enumerate(padded.chunk(deform_groups, 1)):
            y = torch.arange(height).view(-1, 1) * 2 + tap // 3 + offset[:, group, tap, 0]
            x_ = torch.arange(width) * 2 + tap % 3 + offset[:, group, tap, 1]
            grid = torch.stack((2 * x_ / (padded.shape[3] - 1) - 1, 2 * y / (padded.shape[2] - 1) - 1), -1)
            parts.append(F.grid_sample(channels, grid, align_corners=True) * mask[:, group, None, tap])
        columns.append(torch.cat(parts, 1))
    read = torch.stack(columns, 2)  # (N, Cin, taps, H, W)
    weight = module.weight.flatten(2).unflatten(0, (groups, -1))
    out = torch.einsum("ngcthw,goct->ngohw", read.unflatten(1, (groups, -1)), weight).flatten(1, 2)
    torch.testing.assert_close(module(x), out + module.bias.view(-1, 1, 1), rtol=1e-4, atol=1e-5)


def test_depthwise_with_factors_agrees_with_torchvision():
    module = randomise(DeformConv2d(6, 6, 3, padding=1, groups=6, modulated=True, bias=False))
    x = torch.randn(2, 6, 9, 8)
    expected = deform_conv2d(x, module.data_offset(x), module.weight, padding=1, mask=module.data_mask(x))
    torch.testing.assert_close(module(x), expected)


def test_every_parameter_gets_a_gradient():
    rigid = timm.create_model("resnet18", num_classes=4, zero_init_last=False)
    model = deform(rigid, KernelSpec(dense_dcn="v2", dense_dcn_groups=4))
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert len(offset_parameter_names(model)) == 4 * 2 * 2
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("mode", ["autocast", "bfloat16", "float64"])
def test_dtypes(mode):
    module = randomise(DeformConv2d(8, 4, 3, padding=1, deform_groups=2, modulated=True), 0.05)
    check_dtypes(mode, module, torch.randn(2, 8, 6, 6))


def test_empty_batch():
    module = DeformConv2d(8, 4, 3, padding=1, deform_groups=2, modulated=True)
    assert module(torch.randn(0, 8, 6, 6)).shape == (0, 4, 6, 6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_last_stage(name):
    """Stride 1, dilation 2 in all of the stage's 3x3 kernels (the first paper's res5), deformed ones included."""
    strides = output_strides(on_meta(name))
    stage = [key for key, stride in strides.items() if stride == 32]
    model = deform(timm.create_model(name).eval(), KernelSpec(dense_dcn="v1", dilate_last=True))
    assert deformed(model).keys() <= set(stage)
    for key in stage:
        module = model.get_submodule(key)
        assert module.stride == (1, 1)
        if module.kernel_size == (3, 3):
            assert module.dilation == module.padding == (2, 2)
            assert module.data_offset.dilation == (2, 2) and isinstance(module, DeformConv2d)
    assert model.feature_info[-1]["reduction"] == 16
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[-2:] == (4, 4)


def test_dilation_keeps_what_kernels_reach():
    """Far from borders a later block of the dilated stage computes at even positions what it did at all of them."""
    rigid = timm.create_model("resnet18").eval()
    model = deform(copy.deepcopy(rigid), KernelSpec(dilate_last=True))
    x = torch.randn(1, 512, 20, 20)
    with torch.no_grad():
        dilated, plain = model.layer4[1](x), rigid.layer4[1](x[:, :, ::2, ::2])
    torch.testing.assert_close(dilated[:, :, ::2, ::2][:, :, 2:-2, 2:-2], plain[:, :, 2:-2, 2:-2])


def test_dilation_of_a_model_of_features():
    model = deform(timm.create_model("resnet18", features_only=True), KernelSpec(dilate_last=True))
    assert model.feature_info.reduction() == [2, 4, 8, 16, 16]
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 4, 4]


def test_dilation_leaves_squeeze_and_excitation_alone():
    model = deform(on_meta("seresnet50"), KernelSpec(dense_dcn="v1", dilate_last=True))
    assert list(deformed(model)) == RES5
    assert model.feature_info[-1]["reduction"] == 16


@pytest.mark.parametrize("name, options", [("resnet50d", {}), ("resnet18", {"output_stride": 8}), ("test_vit", {})])
def test_what_cannot_be_dilated_stays_as_it_was(name, options):
    model = timm.create_model(name, **options)
    before = repr(model), copy.deepcopy(model.feature_info)
    with pytest.raises(ValueError, match="dilate_last: .*output_stride"):
        deform(model, KernelSpec(dilate_last=True))
    assert (repr(model), model.feature_info) == before


def test_dilation_is_undone_where_the_rest_is_refused():
    model = timm.create_model("resnet18")
    before = repr(model), copy.deepcopy(model.feature_info)
    with pytest.raises(ValueError, match=r"depthwise: ResNet has no depthwise"):
        deform(model, KernelSpec(depthwise="local", dilate_last=True))
    assert (repr(model), model.feature_info) == before


def test_cost():
    """9 Cin Cout for the kernel, 9 Cin a channel of offsets and factors; sampling as for one group, 4 * 9 * Cin."""
    positions = 5 * 4
    for groups in (1, 2):
        for modulated in (False, True):
            module = DeformConv2d(6, 10, 3, 2, 1, deform_groups=groups, modulated=modulated)
            cost = count_cost(module, (6, 9, 8))
            outputs = groups * 9 * (3 if modulated else 2)
            assert (cost.macs, cost.sampling_macs) == (9 * 6 * (10 + outputs) * positions, 4 * 9 * 6 * positions)
            assert cost.params == (9 * 6 + 1) * (10 + outputs)
    rigid, model = on_meta("resnet50"), deform(on_meta("resnet50"), V1)
    assert count_cost(model).macs - count_cost(rigid).macs == 3 * 9 * 512 * 18 * 7 * 7


def test_combines_with_the_other_parts():
    both = deform(on_meta("resnet50"), KernelSpec(dense_dcn="v1", experts=2))
    assert list(deformed(both)) == RES5
    assert sum(isinstance(module, CondConv2d) for module in both.modules()) == 16 * 3 - 3
    mixed = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 3)))
    deform(mixed, KernelSpec(depthwise="local", dense_dcn="v1", dense_dcn_min_stride=2))
    assert isinstance(mixed[1][0], DeformKernel2d) and isinstance(mixed[1][1], DeformConv2d)


def test_spec_is_plain_data():
    spec = KernelSpec(dense_dcn="v2", dense_dcn_groups=4, dense_dcn_min_stride=16, dilate_last=True)
    assert KernelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.changed() == {"dense_dcn": "v2", "dense_dcn_groups": 4, "dense_dcn_min_stride": 16, "dilate_last": True}
    assert KernelSpec.from_dict({"dcn": True}) == KernelSpec(dcn=True)  # records from before these fields
    assert not spec.is_rigid and not KernelSpec(dilate_last=True).is_rigid
    assert KernelSpec(dense_dcn_groups=4).is_rigid


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dense_dcn": "v3"}, r"dense_dcn: expected one of \(None, 'v1', 'v2'\), got 'v3'"),
        ({"dense_dcn": True}, "dense_dcn: expected one of"),
        ({"dense_dcn_groups": 0}, "dense_dcn_groups: expected an int of at least 1, got 0"),
        ({"dense_dcn_min_stride": "32"}, "dense_dcn_min_stride: expected an int of at least 1, got '32'"),
        ({"dilate_last": 1}, "dilate_last: expected a bool, got 1"),
    ],
    ids=str,
)
def test_bad_specs(changes, message):
    with pytest.raises(ValueError, match=message):
        KernelSpec(**changes)


@pytest.mark.parametrize(
    "name, spec, message",
    [
        (
            "resnet18",
            KernelSpec(dense_dcn="v1", dense_dcn_min_stride=64),
            r"dense_dcn: ResNet has no dense 3x3 convolution of output stride 64.*\[\(3, 3\)\]",
        ),
        ("resnet18", KernelSpec(dense_dcn="v1", kernel_size=5), r"dense_dcn: ResNet has no dense 5x5"),
        ("resnet18", KernelSpec(dense_dcn="v1", dcn=True), "dcn: ResNet has no depthwise 3x3"),
        ("test_resnetdw", V1, r"dense_dcn: ResNet has no dense 3x3"),
        (
            "resnet18",
            KernelSpec(dense_dcn="v1", dense_dcn_groups=7),
            r"layer4\.0\.conv1: cannot be deformed: deform_groups: expected a divisor of in_channels = 256, got 7",
        ),
    ],
    ids=str,
)
def test_refusals_leave_the_model_alone(name, spec, message):
    model = timm.create_model(name)
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        deform(model, spec)
    assert repr(model) == before


@pytest.mark.parametrize("groups", [0, 3, 2.0, True])
def test_module_names_bad_groups(groups):
    with pytest.raises(ValueError, match="deform_groups: expected a divisor of in_channels = 8"):
        DeformConv2d(8, 8, 3, deform_groups=groups)


def test_configuration_takes_the_fields(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: full_dcn\nmodel: {name: test_resnet, spec: {dense_dcn: v2, dense_dcn_groups: 2}}\n")
    assert load_config(path).model.spec == {"dense_dcn": "v2", "dense_dcn_groups": 2}
    with pytest.raises(UserError, match="dense_dcn: expected one of"):
        load_config(path, ["model.spec.dense_dcn=v3"])
