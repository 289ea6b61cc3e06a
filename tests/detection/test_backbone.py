"""The backbone of any timm model: its maps, what learns and what is frozen, weights of classification runs, errors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from mmdet.registry import MODELS
from new_python import run_new_python
from torch import nn
from training_cases import ONE_STEP

from dk_bench import KernelSpec, deform
from dk_bench.config import load_config
from dk_bench.detection.backbone import TimmBackbone, check_neck
from dk_bench.errors import UserError
from dk_bench.nn import DeformConv2d, DeformKernel2d
from dk_bench.training import load_model, run_folder, train

ROOT = Path(__file__).parents[2]
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def build(model_name="test_resnetdw", **arguments):
    return MODELS.build({"type": "dk_bench.TimmBackbone", "model_name": model_name, **arguments})


def shapes(net):
    return {name: value.shape for name, value in net.state_dict().items()}


# The registry


def test_a_bare_mmdet_config_finds_the_backbone():
    done = run_new_python(
        [
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from mmdet.registry import MODELS\n"
            "assert not any(name.startswith('dk_bench') for name in sys.modules)\n"
            "net = MODELS.build(dict(type='dk_bench.TimmBackbone', model_name='test_resnetdw_dk'))\n"
            "print(type(net).__module__, net.out_channels, net.strides)\n",
        ]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "dk_bench.detection.backbone [32, 64, 128, 256] [4, 8, 16, 32]"


# Feature maps


@pytest.mark.parametrize(
    "name, more",
    [
        ("test_resnetdw_dcn_dk", {}),
        ("test_resnet_dcn_dk", {}),
        ("test_resnetdw_dk_lpw", {}),
        ("mobilenetv2_100", {}),
        ("test_resnet", {}),
        ("test_efficientnet", {}),
        ("test_convnext", {}),
        ("regnetx_002", {}),
        ("test_vit", {"img_size": 64}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)}),
        ("test_resnet", {"output_stride": 16}),
    ],
)
def test_maps_have_the_channels_and_strides_it_says(name, more):
    net = build(name, **more).eval()
    maps = net(torch.randn(2, 3, 64, 64))
    assert isinstance(maps, tuple)
    expected = [(2, c, 64 // s, 64 // s) for c, s in zip(net.out_channels, net.strides, strict=True)]
    assert [tuple(one.shape) for one in maps] == expected
    assert len(set(net.strides)) == len(net.strides) and min(net.strides) >= 4


def test_mobilenet_gives_the_last_map_of_each_resolution():
    net = build("mobilenetv2_100").eval()
    assert (net.out_channels, net.strides) == ([24, 32, 96, 320], [4, 8, 16, 32])
    by_height = {}
    for block in net.net.blocks.modules():
        if type(block).__name__ in ("InvertedResidual", "DepthwiseSeparableConv"):
            block.register_forward_hook(lambda module, args, output: by_height.update({output.shape[-1]: output}))
    for one in net(torch.randn(1, 3, 64, 64)):
        assert torch.equal(one, by_height[one.shape[-1]])


@pytest.mark.parametrize("indices, strides", [((0, 2), [2, 8]), ([3], [16]), ((-2, -1), [16, 32])])
def test_out_indices_choose_maps(indices, strides):
    net = build("test_resnetdw_dk", out_indices=indices).eval()
    assert net.strides == strides
    assert [64 // one.shape[-1] for one in net(torch.randn(1, 3, 64, 64))] == strides


def test_a_spec_deforms_the_model_named():
    spec = {"depthwise": "local", "kernel_size": 7, "scope": 8}
    net = build("test_convnext", spec=spec)
    expected = deform(timm.create_model("test_convnext", features_only=True), KernelSpec(**spec))
    assert sum(isinstance(m, DeformKernel2d) for m in net.modules()) > 0
    assert shapes(net.net) == shapes(expected)


def test_full_deformable_convolution_of_a_rigid_resnet():
    """Dai et al., ICCV 2017: the dense 3x3 convolutions of the last stage, which is dilated."""
    spec = {"dense_dcn": "v1", "dense_dcn_groups": 4, "dilate_last": True}
    net = build("resnet18", spec=spec, out_indices=(1, 2, 3, 4)).eval()
    convs = [module for module in net.modules() if isinstance(module, DeformConv2d)]
    assert len(convs) == 4 and all(conv.deform_groups == 4 for conv in convs)
    assert (net.out_channels, net.strides) == ([64, 128, 256, 512], [4, 8, 16, 16])
    assert [tuple(one.shape[1:]) for one in net(torch.randn(1, 3, 64, 64))] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 4, 4),
    ]
    assert build("resnet18", spec=spec).out_channels == [64, 128, 512]  # the last map of each stride


# What learns


def frozen(net):
    return {name.removeprefix("net.") for name, p in net.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    "name, stages, modules",
    [
        ("test_resnetdw_dk", -1, ()),
        ("test_resnetdw_dk", 0, ("conv1", "bn1")),
        ("test_resnetdw_dk", 1, ("conv1", "bn1", "layer1")),
        ("test_resnetdw_dk", 4, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
        ("mobilenetv2_100", 0, ("conv_stem", "bn1", "blocks.0")),
        ("mobilenetv2_100", 1, ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        ("mobilenetv2_100", 3, ("conv_stem", "bn1", *(f"blocks.{i}" for i in range(5)))),
        ("test_convnext", 0, ("stem_0", "stem_1")),
        ("test_convnext", 2, ("stem_0", "stem_1", "stages_0", "stages_1")),
        (
            "densenet121",
            2,
            (
                "features_conv0",
                "features_norm0",
                "features_denseblock1",
                "features_transition1",
                "features_denseblock2",
            ),
        ),
    ],
)
def test_frozen_stages(name, stages, modules):
    net = build(name, frozen_stages=stages, norm_eval=False).train()
    expected = {k for k, _ in net.net.named_parameters() if any(k.startswith(module + ".") for module in modules)}
    assert frozen(net) == expected
    for module_name, module in net.net.named_modules():
        is_frozen = any(module_name == m or module_name.startswith(m + ".") for m in modules)
        if isinstance(module, BATCH_NORM):
            assert module.training is not is_frozen, module_name
    assert net.training and not any(module.training for module in net.eval().modules())


def test_norm_eval_and_frozen_stages_survive_copies_and_conversion():
    for norm_eval in (True, False):
        net = build(frozen_stages=1, norm_eval=norm_eval)
        net = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)).train()
        norms = {name: m for name, m in net.net.named_modules() if isinstance(m, nn.SyncBatchNorm)}
        assert norms
        for name, module in norms.items():
            assert module.training is not (norm_eval or name.startswith(("conv1", "bn1", "layer1."))), name
        assert all(m.weight.requires_grad for n, m in norms.items() if n.startswith("layer2."))


def test_training_leaves_frozen_statistics_alone():
    net = build("test_resnetdw_dk", frozen_stages=1, norm_eval=False).train()
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("net.layer2", "net.layer3", "net.layer4")) for name in changed)


# Weights


@pytest.fixture(scope="module")
def rigid(tmp_path_factory):
    """The checkpoint of a classification run of test_resnetdw, of three classes."""
    return classification(tmp_path_factory.mktemp("rigid"), "test_resnetdw")


def classification(folder, name, *overrides):
    config = load_config(None, [*ONE_STEP, f"name={name}", f"model.name={name}", f"output={folder}", *overrides])
    train(config)
    return str(run_folder(config) / "last.ckpt")


@pytest.mark.parametrize("name", ["test_resnetdw", "test_resnetdw_dk", "test_resnetdw_gdk_pw", "test_resnetdw_scc_dk"])
def test_a_checkpoint_of_the_rigid_base(name, rigid):
    """Its classifier is left out, a deformed model computes what the rigid one did, and mmdet keeps the weights."""
    images = torch.randn(2, 3, 64, 64)
    net = build(name, checkpoint=rigid).eval()
    with torch.no_grad():
        expected = load_model(rigid).forward_features(images)
        torch.testing.assert_close(net(images)[-1], expected, rtol=1e-4, atol=1e-4)
        net.init_weights()
        torch.testing.assert_close(net(images)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, spec",
    [
        ("test_resnetdw_dcn_dk", None),
        ("mobilenetv2_100_gdk", None),
        ("test_vit", None),
        ("test_convnext", {"depthwise": "local", "kernel_size": 7, "scope": 8}),
    ],
)
def test_a_checkpoint_of_the_same_model(name, spec, tmp_path):
    """Every weight but the classifier's, also where timm has other names in networks that give maps."""
    kwargs = {"img_size": 32} if name == "test_vit" else {}
    overrides = [f"model.spec={spec}".replace("'", "")] if spec else []
    overrides += [f"model.kwargs={kwargs}".replace("'", "")] if kwargs else []
    path = classification(tmp_path, name, *overrides)
    net = build(name, checkpoint=path, spec=spec, **kwargs).eval()
    held = {key.replace(".", "_"): value for key, value in load_model(path).state_dict().items()}
    for key, value in net.net.state_dict().items():
        assert torch.equal(value, held[key.removeprefix("model.").replace(".", "_")]), key


def test_weights_of_timm(tmp_path):
    """From a file, as timm would have downloaded it."""
    torch.manual_seed(1)
    source = timm.create_model("mobilenetv2_100").eval()
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    overlay = {"file": str(tmp_path / "weights.pt")}
    images = torch.randn(1, 3, 64, 64)
    for name in ("mobilenetv2_100", "mobilenetv2_100_dk"):
        net = build(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
        with torch.no_grad():
            expected = source.blocks(source.bn1(source.conv_stem(images)))
            torch.testing.assert_close(net(images)[-1], expected, rtol=1e-4, atol=1e-4)


def test_mmengine_loads_a_backbone_and_does_not_start_it_anew(tmp_path):
    torch.manual_seed(0)
    source = build("hrnet_w18_small")  # has an init_weights() of its own
    before = copy.deepcopy(source.state_dict())
    source.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    torch.save(before, tmp_path / "backbone.pth")
    other = build("hrnet_w18_small", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "backbone.pth")})
    assert not torch.equal(other.net.conv1.weight, source.net.conv1.weight)
    other.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_random_weights_that_stay_are_told(rigid, caplog):
    build(frozen_stages=-1, norm_eval=False)
    build(checkpoint=rigid, frozen_stages=1)
    assert not caplog.records
    build(frozen_stages=1)
    assert "test_resnetdw starts from random weights, of which frozen_stages=1 and norm_eval=True keep" in caplog.text


# Messages


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model_name": "resnet50dv"}, "'model_name' is 'resnet50dv', which timm does not know, did you mean"),
        ({"out_indices": (1, 7)}, "test_resnetdw cannot be made with {'out_indices': (1, 7)}"),
        ({"out_indices": (3, 1)}, "'out_indices' is (3, 1), expected rising integers"),
        ({"out_indices": ()}, "'out_indices' is (), expected rising integers"),
        ({"out_indices": (-1, 0)}, "'out_indices' is (-1, 0), expected rising integers"),
        ({"frozen_stages": 5}, "'frozen_stages' is 5, expected at most 4, the number of stages"),
        ({"frozen_stages": -2}, "'frozen_stages' is -2, expected an integer of at least -1"),
        ({"model_name": "hrnet_w18_small", "frozen_stages": 1}, "'frozen_stages' cannot be followed"),
        ({"depth": 50}, "test_resnetdw cannot be made with {'depth': 50}"),
        ({"model_name": "resnet50dw", "pretrained": True}, "'pretrained' is True, expected false unless timm has"),
        ({"model_name": "test_resnetdw_dk", "spec": {"dcn": True}}, "'spec' is {'dcn': True}, expected null for"),
        ({"model_name": "test_resnet", "spec": {"depthwise": "local"}}, "'spec' is {'depthwise': 'local'}, which does"),
        (
            {"spec": {"depth": "local"}},
            "'spec' is {'depth': 'local'}, which makes no spec: KernelSpec: unknown key 'depth'",
        ),
        ({"checkpoint": "none.ckpt"}, "none.ckpt: no checkpoint can be read there: No such file"),
        ({"checkpoint": ""}, "argument 'checkpoint' is '', expected a file or None"),
        ({"pretrained": "no"}, "argument 'pretrained' is 'no', expected True or False"),
        ({"norm_eval": "off"}, "argument 'norm_eval' is 'off', expected True or False"),
        ({"with_cp": 1}, "argument 'with_cp' is 1, expected True or False"),
        ({"checkpoint": "none.ckpt", "pretrained": True}, "checkpoint and pretrained both set weights"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError) as caught:
        build(**arguments)
    assert message in str(caught.value) and str(caught.value).startswith("TimmBackbone: ")


def test_a_checkpoint_of_another_model_is_named(rigid, tmp_path):
    with pytest.raises(UserError, match=r"last.ckpt', a checkpoint of test_resnetdw, expected one of test_resnet$"):
        build("test_resnet", checkpoint=rigid)
    with pytest.raises(UserError, match=r"its weights \(test_resnetdw\) do not fit .*layer1.0.downsample"):
        build(checkpoint=rigid, stem_width=16)
    with pytest.raises(UserError, match="'checkpoint' is .* expected one of test_convnext"):
        build("test_convnext", checkpoint=rigid)
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="bad.ckpt: not a checkpoint of plain data"):
        build(checkpoint=str(tmp_path / "bad.ckpt"))


def test_keys_that_the_network_of_maps_has_alone_are_named(monkeypatch):
    other = timm.create_model("test_resnetdw", channels=(8, 16, 32, 96))
    monkeypatch.setattr("dk_bench.detection.backbone.build_model", lambda *_: other)
    with pytest.raises(UserError, match=r"do not fit the network of its feature maps at \d+ keys: layer4.0"):
        build(pretrained=True)


def test_a_neck_of_other_channels_is_named():
    neck = {"type": "mmdet.FPN", "in_channels": [256, 512, 1024, 2048], "out_channels": 8, "num_outs": 4}
    detector = nn.Module()
    detector.backbone, detector.neck = build("test_resnetdw_dk"), MODELS.build(neck)
    with pytest.raises(UserError) as caught:
        check_neck(detector)
    assert str(caught.value) == (
        "key 'model.neck.in_channels' is [256, 512, 1024, 2048], expected [32, 64, 128, 256], the channels of "
        "test_resnetdw_dk's maps of strides 4, 8, 16, 32"
    )
    detector.neck = MODELS.build(neck | {"in_channels": detector.backbone.out_channels})
    check_neck(detector)
    assert isinstance(detector.backbone, TimmBackbone)
