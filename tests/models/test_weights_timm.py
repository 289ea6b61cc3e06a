"""Weights by timm's ways, there and back: last.ckpt, weights that the caller names, what deform() made; and timm's own
checkpoints in ``model.checkpoint``. Outputs must be equal, or a sentence says why not."""

import argparse
import copy
import pickle
import re

import pytest
import safetensors.torch
import timm
import torch
from timm.models import load_checkpoint, resume_checkpoint, save_for_hf
from torch import nn
from trained_cases import moved
from training_cases import PowerCut, tiny

import dk_bench
from dk_bench import KernelSpec, deform
from dk_bench.classification.module import LitClassifier
from dk_bench.classification.timm_models import build_model
from dk_bench.config import ModelConfig
from dk_bench.errors import UserError
from dk_bench.models import TEST_MODELS
from dk_bench.nn import RigidStart2d
from dk_bench.training import load_model, read_checkpoint, run_folder, train

NAMES = [*TEST_MODELS, "mobilenetv2_100_dcn_dk"]
RIGID = [f"test_resnetdw_{suffix}" for suffix in ("dk", "gdk_pw", "scc_dk", "dcn", "dk_lpw")] + ["test_resnet_dcn_dk"]
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
SHORT = ("optim.epochs=2", "optim.warmup_epochs=0", "ema.decay=0.5")


@torch.no_grad()
def assert_same(model, other, images=IMAGES, **tolerance):
    torch.testing.assert_close(model.eval()(images), other.eval()(images), **(tolerance or {"rtol": 0, "atol": 0}))


def named(name, path, **more):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **more)


# Weights that the caller names


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_name_weights(name, tmp_path):
    model = moved(timm.create_model(name, num_classes=5))
    save_for_hf(model, tmp_path / "hub", safe_serialization="both")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    state = {"state_dict": model.state_dict(), "num_classes": 5}
    assert_same(model, timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True))
    assert_same(model, timm.create_model(name, pretrained=True, pretrained_cfg_overlay=state))
    assert_same(model, named(name, tmp_path / "weights.pth", num_classes=5))  # no word of the number in the overlay
    assert_same(model, timm.create_model(name, num_classes=5, checkpoint_path=tmp_path / "weights.pth"))
    assert_same(model, named(name, tmp_path / "hub" / "model.safetensors", num_classes=5))

    other = named(name, tmp_path / "weights.pth", num_classes=7, in_chans=1).eval()
    held, made = model.state_dict(), other.state_dict()
    first, classifier = (other.pretrained_cfg[key] for key in ("first_conv", "classifier"))
    torch.testing.assert_close(made[f"{first}.weight"], held[f"{first}.weight"].sum(1, keepdim=True))
    rest = [key for key in held if not key.startswith((f"{first}.", f"{classifier}."))]
    assert all(torch.equal(held[key], made[key]) for key in rest) and made[f"{classifier}.weight"].shape[0] == 7

    for more in ({}, {"feature_cls": "getter"}, {"feature_cls": "hook"})[: 1 if "mobilenet" in name else 3]:  # time
        maps = [named(name, tmp_path / "weights.pth", features_only=True, out_indices=(1, 4), **more)]
        maps += [
            timm.create_model(
                f"local-dir:{tmp_path / 'hub'}", pretrained=True, features_only=True, out_indices=(1, 4), **more
            )
        ]
        for net in maps:
            assert_same(net, timm_features(model))


def timm_features(model):
    """Strides 4 and 32 of a whole model."""

    class Features(nn.Module):
        def forward(self, images):
            return model.forward_intermediates(images, indices=[1, 4], intermediates_only=True)

    return Features()


@pytest.mark.parametrize("name", RIGID)
def test_weights_of_the_rigid_base_are_deformed(name, tmp_path, caplog):
    base = TEST_MODELS[name].base
    rigid = moved(timm.create_model(base, num_classes=5))
    torch.save(rigid.state_dict(), tmp_path / "rigid.pth")
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_same(rigid, named(name, tmp_path / "rigid.pth", num_classes=5), **close)
    assert f"{name}: the weights are of its rigid base, and are deformed" in caplog.text
    maps = named(name, tmp_path / "rigid.pth", features_only=True, out_indices=(1, 4))
    assert_same(maps, timm_features(rigid), **close)
    grey = named(name, tmp_path / "rigid.pth", num_classes=3, in_chans=1)
    expected = named(base, tmp_path / "rigid.pth", num_classes=3, in_chans=1)
    with torch.no_grad():
        maps = (model.eval().forward_features(IMAGES[:, :1]) for model in (grey, expected))
        torch.testing.assert_close(*maps, **close)


@pytest.mark.parametrize("name", ["test_resnetdw", "test_resnetdw_dk"])
@pytest.mark.parametrize("other", ["test_resnetdw_dcn_dk", "test_resnet", "nothing"])
@pytest.mark.parametrize("more", [{"num_classes": 7}, {"num_classes": 5}, {"features_only": True}])
def test_weights_of_another_model_are_refused(name, other, more, tmp_path):
    """Also where the number of classes changes, for which timm loads what it finds, and leaves the rest random."""
    state = {"x.weight": torch.ones(1)} if other == "nothing" else timm.create_model(other, num_classes=5).state_dict()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=rf"^{name}: the weights are of another model: \d+ of its \d+ are missing"):
        named(name, tmp_path / "other.pth", **more)


# What deform() made


@pytest.mark.parametrize(
    "base, spec, name",
    [(model.base, model.spec, name) for name, model in TEST_MODELS.items() if not model.spec.is_rigid]
    + [
        ("mobilenetv2_100", KernelSpec(depthwise="local"), "mobilenetv2_100_dk"),
        ("test_resnetdw", KernelSpec(depthwise="local", scope=5, grid="spread"), "dk_deformed"),
        ("test_convnext", KernelSpec(depthwise="local", kernel_size=7, scope=8), "dk_deformed"),
        ("test_resnet", KernelSpec(dense_dcn="v2", dense_dcn_min_stride=8), "dk_deformed"),
        ("test_resnetdw", KernelSpec(dcn=True, dilate_last=True), "dk_deformed"),
        ("test_resnet", KernelSpec(dense="local", pointwise="local", grid="spread"), "dk_deformed"),
        ("test_convnext", KernelSpec("local", "local", kernel_size=None, everywhere=True), "dk_deformed"),
    ],
)
def test_deformed_model_says_what_it_is_and_is_made_again(base, spec, name, tmp_path):
    model = moved(deform(timm.create_model(base, num_classes=5, drop_path_rate=0.1), spec))
    assert model.pretrained_cfg["architecture"] == model.default_cfg["architecture"] == name
    save_for_hf(model, tmp_path, safe_serialization="both")
    made = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert_same(model, made)
    assert made.pretrained_cfg["architecture"] == name
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(-1,))
    assert_same(maps, timm_last(model))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    with torch.no_grad():
        assert torch.equal(other.eval().forward_features(IMAGES), model.forward_features(IMAGES))


def timm_last(model):
    """The last map of a whole model."""

    class Last(nn.Module):
        def forward(self, images):
            return model.forward_intermediates(images, indices=1, intermediates_only=True)

    return Last()


def test_rigid_weights_go_into_dk_deformed_and_its_arguments_are_checked(tmp_path):
    rigid = moved(timm.create_model("test_convnext", num_classes=5))
    torch.save(rigid.state_dict(), tmp_path / "rigid.pth")
    spec = {"depthwise": "global", "kernel_size": 7, "scope": 8}
    made = named("dk_deformed", tmp_path / "rigid.pth", base="test_convnext", spec=spec, num_classes=5)
    assert_same(rigid, made, rtol=1e-4, atol=1e-4)
    torch.save(moved(made).state_dict(), tmp_path / "deformed.pth")
    arguments = {"base": "test_convnext", "spec": spec, "num_classes": 5}
    assert_same(made, timm.create_model("dk_deformed", **arguments, checkpoint_path=tmp_path / "deformed.pth"))
    for arguments, message in (
        ({}, "base: expected the name of a rigid model that timm knows, got ''"),
        ({"base": "test_convnext"}, "spec: expected fields of KernelSpec that deform test_convnext, got None"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            timm.create_model("dk_deformed", **arguments)
    with pytest.raises(RuntimeError, match="dk_deformed: no pretrained weights are published"):
        timm.create_model("dk_deformed", pretrained=True, base="test_convnext", spec=spec)
    with pytest.raises(UserError, match="'model.name' is 'dk_deformed', expected the rigid base; 'model.spec' deforms"):
        build_model(ModelConfig("dk_deformed"), 5)


@pytest.mark.parametrize("dense", ["local", "global"])
def test_a_deformed_stem_takes_weights_of_another_number_of_channels(dense, tmp_path):
    """Its offset generators are adapted as timm adapts a convolution: a grey image is one of three equal channels."""
    spec = KernelSpec(dense=dense, everywhere=True)
    rigid = moved(timm.create_model("test_resnet", num_classes=5))
    torch.save(rigid.state_dict(), tmp_path / "rigid.pth")
    model = moved(deform(copy.deepcopy(rigid), spec))
    assert model.pretrained_cfg["first_conv"] == "conv1.0" and isinstance(model.conv1[0], RigidStart2d)
    save_for_hf(model, tmp_path)
    grey, close = IMAGES[:, :1], {"rtol": 1e-4, "atol": 1e-4}
    for held, made in (
        (model, timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)),
        (
            rigid,
            named(
                "dk_deformed",
                tmp_path / "rigid.pth",
                base="test_resnet",
                spec=spec.changed(),
                in_chans=1,
                num_classes=5,
            ),
        ),
    ):
        with torch.no_grad():
            torch.testing.assert_close(made.eval()(grey), held(grey.expand(-1, 3, -1, -1)), **close)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=6).conv1[0].in_channels == 6


def test_a_cfg_of_the_callers_own_leaves_the_stem_alone(tmp_path):
    model = moved(timm.create_model("test_resnetdw_scc", num_classes=5))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    given = {"file": str(tmp_path / "w.pth"), "num_classes": 5}
    assert_same(model, timm.create_model("test_resnetdw_scc", pretrained=True, pretrained_cfg=given))


@pytest.mark.parametrize("name", ["test_resnetdw_gdk", "dk_deformed"])
def test_from_the_hub(name, tmp_path, monkeypatch):
    """As `push_to_hf_hub` uploads it; a folder stands in for the hub."""
    spec = KernelSpec(depthwise="global", grid="centred" if name != "dk_deformed" else "spread")
    model = moved(deform(timm.create_model("test_resnetdw", num_classes=5), spec))
    save_for_hf(model, tmp_path, safe_serialization="both")
    monkeypatch.setattr(
        "timm.models._hub.hf_hub_download",
        lambda *_, filename=None, repo_id="", **__: str(tmp_path / (filename or _[1])),
    )
    made = timm.create_model("hf-hub:someone/model", pretrained=True)
    assert_same(model, made)
    assert made.pretrained_cfg["architecture"] == name


def test_deformed_weights_by_pytorchs_ways(tmp_path):
    spec = KernelSpec(depthwise="local", pointwise="global", dcn=True)
    model, fresh = (deform(timm.create_model("test_efficientnet", num_classes=5), spec) for _ in range(2))
    moved(model)
    torch.save(model, tmp_path / "whole.pt")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert_same(model, torch.load(tmp_path / "whole.pt", weights_only=False))
    assert_same(model, pickle.loads(pickle.dumps(model)))
    assert_same(model, copy.deepcopy(model))
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert_same(model, fresh)


# last.ckpt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The configuration of a finished run with averaged weights, and its checkpoint."""
    config = tiny(tmp_path_factory.mktemp("run"), *SHORT)
    train(config)
    return config, run_folder(config) / "last.ckpt"


def test_timm_loads_what_a_run_leaves(run, tmp_path):
    config, path = run
    name, expected = config.model.name, load_model(path)
    create = {"model_name": name, "num_classes": 6}
    assert_same(expected, timm.create_model(**create, checkpoint_path=path))
    assert_same(expected, named(name, path, num_classes=6))
    empty = timm.create_model(**create)
    load_checkpoint(empty, str(path))  # timm's validate.py and inference.py
    assert_same(expected, empty)
    empty = timm.create_model(**create)
    assert resume_checkpoint(empty, str(path), log_info=False) == 1
    assert_same(expected, empty)
    with torch.no_grad():
        maps = named(name, path, features_only=True).eval()(IMAGES)
        torch.testing.assert_close(maps[-1], expected.forward_features(IMAGES), rtol=0, atol=0)
    save_for_hf(expected, tmp_path)
    assert_same(expected, timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    held = torch.load(path, weights_only=True)["state_dict"]
    assert held.keys() == expected.state_dict().keys()
    module = LitClassifier.load_from_checkpoint(path, weights_only=True)
    assert all(torch.equal(module.model.state_dict()[key], value) for key, value in held.items())


def test_advice_of_pretrained_works_when_followed(tmp_path):
    config = tiny(tmp_path, "model.name=test_resnetdw", "optim.epochs=1", "optim.warmup_epochs=0")
    train(config)
    path = run_folder(config) / "last.ckpt"
    for name, pattern in (
        ("test_resnetdw", r"timm\.create_model\(.*?\)"),
        ("test_resnetdw_dk", r"dk_bench\.deform\(.*\)$"),
    ):
        with pytest.raises(RuntimeError, match="no pretrained weights are published") as raised:
            timm.create_model(name, pretrained=True)
        advice = re.search(pattern, str(raised.value)).group()
        blanks = {"(...,": f"({name!r},", "classes=...": "classes=6", "path=...": f"path={str(path)!r}"}
        for blank, value in blanks.items():
            advice = advice.replace(blank, value)
        model = eval(advice, {"timm": timm, "dk_bench": dk_bench})
        assert_same(model, load_model(path), rtol=1e-4, atol=1e-4)


def older(path):
    """Rewrites a checkpoint as they were written before: Lightning's names, and nothing for others."""
    checkpoint = torch.load(path, weights_only=True)
    rest = checkpoint.pop("module_state")
    checkpoint["state_dict"] = {f"model.{key}": value for key, value in checkpoint["state_dict"].items()} | rest
    torch.save(checkpoint, path)


def test_older_checkpoints_are_read_and_gone_on_from(run, tmp_path):
    config = tiny(tmp_path, *SHORT, "trainer.checkpoint_every_n_steps=2")
    path = run_folder(config) / "last.ckpt"
    for step in (3, 5):  # checkpoints of the first epoch's end, and inside the second
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, callbacks=[PowerCut(step)])
        older(path)
        assert all(name.startswith(("model.", "train_loss.")) for name in read_checkpoint(path)["state_dict"])
        load_model(path)
    train(config)
    held, expected = (read_checkpoint(one) for one in (path, run[1]))
    for part in ("state_dict", "current_model_state", "module_state"):
        assert held[part].keys() == expected[part].keys() and held[part]
        assert all(torch.equal(held[part][key], value) for key, value in expected[part].items())
    whole = load_model(path)
    older(path)
    assert_same(whole, load_model(path))


# Other tools' files in model.checkpoint


def timms(model, average, path, **more):
    """A checkpoint of timm's train.py."""
    held = {
        "epoch": 3,
        "arch": "test_resnetdw",
        "state_dict": model.state_dict(),
        "optimizer": {},
        "version": 2,
        "args": argparse.Namespace(model="test_resnetdw", lr=0.1),
        "metric": 1.5,
    }
    if average is not None:
        held["state_dict_ema"] = {f"module.{key}": value for key, value in average.state_dict().items()}
    torch.save(held | more, path)
    return str(path)


@pytest.mark.parametrize("name", ["test_resnetdw", "test_resnetdw_dk"])
def test_checkpoints_of_timms_training(name, tmp_path, caplog):
    rigid, average = (moved(timm.create_model("test_resnetdw", num_classes=5)) for _ in range(2))
    average.fc.weight.data.mul_(2)
    close = {"rtol": 1e-4, "atol": 1e-4}
    path = timms(rigid, None, tmp_path / "model_best.pth.tar")
    assert_same(rigid, build_model(ModelConfig(name, checkpoint=path), 5), **close)
    path = timms(rigid, average, tmp_path / "averaged.pth.tar")
    assert_same(average, build_model(ModelConfig(name, checkpoint=path), 5), **close)
    other = build_model(ModelConfig(name, checkpoint=path), 3).eval()
    assert other.num_classes == 3 and "of 5 classes, so that the classifier of 3 starts anew" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(other.forward_features(IMAGES), average.forward_features(IMAGES), **close)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_bare_weights_of_a_deformed_model(suffix, tmp_path):
    model = moved(timm.create_model("test_resnetdw_dcn_dk", num_classes=5))
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pth" else safetensors.torch.save_file)(model.state_dict(), path)
    assert_same(model, build_model(ModelConfig("test_resnetdw_dcn_dk", checkpoint=str(path)), 5))
    spec = {"depthwise": "local", "dcn": True}
    assert_same(model, build_model(ModelConfig("test_resnetdw", spec, checkpoint=str(path)), 5))
    overlay = {"pretrained_cfg_overlay": {"file": str(path)}}
    assert_same(model, build_model(ModelConfig("test_resnetdw_dcn_dk", pretrained=True, kwargs=overlay), 5))
    with pytest.raises(UserError, match="weights, expected those of test_resnetdw_dk or of its rigid base test_resnet"):
        build_model(ModelConfig("test_resnetdw_dk", checkpoint=str(path)), 5)


def test_foreign_files_that_do_not_serve_are_named(tmp_path):
    other = timms(timm.create_model("test_resnet", num_classes=5), None, tmp_path / "other.pth", arch="test_resnet")
    with pytest.raises(UserError, match=r"other\.pth', weights of test_resnet, expected those of test_resnetdw: "):
        build_model(ModelConfig("test_resnetdw", checkpoint=other), 5)
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth', which holds no weights, expected those of test_resnetdw$"):
        build_model(ModelConfig("test_resnetdw", checkpoint=str(tmp_path / "none.pth")), 5)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.safetensors: not a checkpoint of plain data"):
        build_model(ModelConfig("test_resnetdw", checkpoint=str(tmp_path / "bad.safetensors")), 5)


@pytest.mark.parametrize("whole", [True, False])
def test_advice_on_files_with_more_than_plain_data_works_when_followed(whole, tmp_path):
    model = moved(timm.create_model("test_resnetdw_dk", num_classes=5))
    path, new = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(model if whole else {"state_dict": model.state_dict(), "config": KernelSpec()}, path)
    with pytest.raises(UserError, match="it holds .*If you trust it") as raised:
        build_model(ModelConfig("test_resnetdw_dk", checkpoint=str(path)), 5)
    advice = re.search(r"torch\.save\(.*\)(?=, and give NEW)", str(raised.value)).group()
    exec(advice.replace("NEW", repr(str(new))), {"torch": torch})
    assert_same(model, build_model(ModelConfig("test_resnetdw_dk", checkpoint=str(new)), 5))
