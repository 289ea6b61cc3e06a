"""Every kind of deformed model trains, by name; any model deformed by a spec, from weights that exist."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from training_cases import ONE_STEP

from dk_bench import KernelSpec
from dk_bench.classification.timm_models import build_model, kernel_spec
from dk_bench.config import ModelConfig, load_config
from dk_bench.errors import UserError
from dk_bench.models import MODELS, TEST_MODELS
from dk_bench.nn import DeformKernel2d, offset_parameter_names
from dk_bench.training import evaluate, load_model, run_folder, train


@pytest.mark.parametrize("name", TEST_MODELS)
def test_model_trains(name, tmp_path):
    """One step by the defaults, channels_last among them."""
    config = load_config(None, ["name=step", *ONE_STEP, f"output={tmp_path}", f"model.name={name}"])
    record = train(config)
    assert record.status == "finished" and len(record.metrics["epochs"]) == 1
    checkpoint = torch.load(run_folder(config) / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1


CONVNEXT = ("model.name=test_convnext", "model.spec={depthwise: local, kernel_size: 7, scope: 8}")


def one_step(output, *overrides):
    return load_config(None, ["name=step", *ONE_STEP, f"output={output}", *overrides])


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    """A run of a rigid model of timm's, and its configuration."""
    config = one_step(tmp_path_factory.mktemp("rigid"), "model.name=test_convnext", "data.procedural.classes=4")
    train(config)
    return config


def weights_file(folder, name):
    """Weights of a timm model with its 1000 classes, as timm publishes them."""
    torch.manual_seed(3)
    model = timm.create_model(name)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return model.eval(), {"pretrained_cfg_overlay": {"file": str(folder / f"{name}.pt")}}


def test_any_model_trains_deformed_by_a_spec_and_loads_again(tmp_path):
    config = one_step(tmp_path, *CONVNEXT)
    record = train(config)
    assert record.status == "finished" and record.model["spec"] == kernel_spec(config.model).to_dict()
    model = load_model(run_folder(config) / "last.ckpt")
    found = [module for module in model.modules() if isinstance(module, DeformKernel2d)]
    assert found and all(module.scope == (8, 8) for module in found)


def test_kernel_spec_of_a_configuration():
    assert kernel_spec(ModelConfig(name="test_resnetdw_dk")) == MODELS["test_resnetdw_dk"].spec
    assert kernel_spec(ModelConfig(name="test_resnetdw")) == KernelSpec()
    assert kernel_spec(ModelConfig(name="test_convnext")) is None
    spec = {"depthwise": "global", "kernel_size": 7, "scope": 7}
    assert kernel_spec(ModelConfig(name="test_convnext", spec=spec)) == KernelSpec(**spec)
    assert kernel_spec(ModelConfig(name="test_resnetdw", spec={"dcn": True})) == KernelSpec(dcn=True)


@pytest.mark.parametrize(
    "name, spec",
    [("test_convnext", {"depthwise": "local", "kernel_size": 7, "scope": 8}), ("mobilenetv2_100_dk", None)],
    ids=["spec", "name"],
)
@torch.no_grad()
def test_pretrained_weights_are_the_rigid_models(name, spec, tmp_path):
    rigid, kwargs = weights_file(tmp_path, MODELS[name].base if name in MODELS else name)
    images = torch.randn(2, 3, 64, 64)
    model = build_model(ModelConfig(name=name, spec=spec, pretrained=True, kwargs=kwargs), 1000).eval()
    assert offset_parameter_names(model)
    torch.testing.assert_close(model(images), rigid(images), atol=1e-4, rtol=1e-4)
    model = build_model(ModelConfig(name=name, spec=spec, pretrained=True, kwargs=kwargs), 5).eval()
    assert model(images).shape == (2, 5)
    torch.testing.assert_close(model.forward_features(images), rigid.forward_features(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, reason",
    [("resnet50dw_dk", "no pretrained weights are published"), ("test_convnext", "No such file|nowhere")],
)
def test_pretrained_weights_that_cannot_be_had(name, reason):
    kwargs = {} if name in MODELS else {"pretrained_cfg_overlay": {"file": "nowhere.pt"}}
    with pytest.raises(UserError, match=rf"key 'model\.pretrained' is True, expected false .*({reason})") as error:
        build_model(ModelConfig(name=name, pretrained=True, kwargs=kwargs), 5)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_checkpoint_of_other_classes_gives_all_but_the_classifier(convnext, tmp_path, caplog):
    path = run_folder(convnext) / "last.ckpt"
    held, images = load_model(path), torch.randn(2, 3, 64, 64)
    same = build_model(one_step(tmp_path, *CONVNEXT, f"model.checkpoint={path}").model, 4).eval()
    torch.testing.assert_close(same(images), held(images), atol=1e-4, rtol=1e-4)
    with caplog.at_level(logging.WARNING):
        other = build_model(one_step(tmp_path, *CONVNEXT, f"model.checkpoint={path}").model, 3).eval()
    assert f"{path}: of 4 classes, so that the classifier of 3 starts anew" in caplog.text
    assert other(images).shape == (2, 3)
    torch.testing.assert_close(other.forward_features(images), held.forward_features(images), atol=1e-4, rtol=1e-4)


def test_checkpoint_of_the_same_spec_under_another_name(tmp_path):
    named = one_step(tmp_path, "model.name=test_resnetdw_dk")
    train(named)
    path = run_folder(named) / "last.ckpt"
    config = one_step(tmp_path, "model.name=test_resnetdw", "model.spec.depthwise=local", f"model.checkpoint={path}")
    model, held = build_model(config.model, 3), load_model(path)
    assert all(torch.equal(value, held.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["model.name=test_resnetdw_gdk", "model.spec.depthwise=local"],
            r"key 'model\.spec' is \{'depthwise': 'local'\}, expected null for test_resnetdw_gdk.*"
            "its rigid base, 'test_resnetdw'",
        ),
        (
            ["model.name=test_convnext", "model.spec.depthwise=local"],
            r"key 'model\.spec' is \{'depthwise': 'local'\}, which does not fit test_convnext: depthwise: .*\(7, 7\)",
        ),
        (
            [
                "model.name=test_convnext",
                "model.spec.dcn=true",
                "model.spec.kernel_size=7",
                "model.checkpoint=CHECKPOINT",
                "model.spec.dcn_min_stride=64",
            ],
            r"key 'model\.spec' is .* output stride 64",
        ),
        (
            ["model.name=test_resnet", "model.spec.experts=2", "model.checkpoint=CHECKPOINT"],
            r"a checkpoint of test_convnext, expected one of test_resnet with spec \{'experts': 2\} or of its rigid",
        ),
    ],
    ids=["name of ours", "no such kernel", "no such stride", "checkpoint"],
)
def test_what_does_not_go_together(convnext, tmp_path, overrides, message):
    path = run_folder(convnext) / "last.ckpt"
    config = one_step(tmp_path, *(override.replace("CHECKPOINT", str(path)) for override in overrides))
    with pytest.raises(UserError, match=message):
        build_model(config.model, 4)


@pytest.mark.parametrize("override", ["trainer.precision=bf16-mixed", "ema.decay=0.9"])
def test_ways_to_train(tmp_path, override):
    """Mixed precision, averaged weights: the run finishes and its checkpoint evaluates the same."""
    ways = ["name=step", f"output={tmp_path}", "model.name=test_resnetdw_dcn_dk", override]
    config = load_config(None, [*ONE_STEP, *ways])
    record = train(config)
    assert record.status == "finished"
    evaluated = evaluate(run_folder(config) / "last.ckpt")
    assert evaluated.metrics["final"]["val/top1"] == pytest.approx(record.metrics["final"]["val/top1"], abs=0.01)
