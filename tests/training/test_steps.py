"""How a step is taken: averaged weights, accumulated and clipped gradients, precision, stochastic depth."""

import copy
import typing

import pytest
import pytorch_lightning as pl
import timm
import torch
from lightning_fabric.plugins.precision import precision as fabric
from timm.layers import DropPath
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch.optim.swa_utils import AveragedModel
from training_cases import ONE_STEP, tiny, weights

from dk_bench.classification.averaging import weight_averaging
from dk_bench.classification.timm_models import build_model
from dk_bench.config import EmaConfig, ModelConfig, load_config
from dk_bench.config.trainer_section import PRECISIONS, SHORT
from dk_bench.errors import UserError
from dk_bench.training import read_checkpoint, run_folder, train

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(
    "settings", [{}, {"warmup": True}, {"warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.75}]
)
def test_averaged_weights_are_timms(settings):
    """Step by step, of parameters and of buffers."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    names = {"warmup": "use_warmup"}
    timms = ModelEmaV3(model, decay=0.7, **{names.get(name, name): value for name, value in settings.items()})
    callback = weight_averaging(EmaConfig(decay=0.7, **settings))
    ours, decays = AveragedModel(model, use_buffers=True, **callback._kwargs), set()
    for step in range(1, 12):
        with torch.no_grad():
            for value in (*model.parameters(), model[1].running_mean):
                value.add_(torch.randn_like(value))
        ours.update_parameters(model)
        timms.update(model, step=step)
        decays.add(timms.get_decay(step))
        for found, expected in zip(ours.module.state_dict().values(), timms.module.state_dict().values(), strict=True):
            if found.is_floating_point():
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert max(decays) == 0.7 and (len(decays) > 2) == bool(settings)


def test_a_run_is_told_by_the_average_and_trains_without_it(tmp_path):
    few = ["optim.epochs=2", "data.procedural.train_images=16", "ema.decay=0.99"]
    plain, warm = (train(tiny(tmp_path, *few, f"ema.warmup={warmup}")) for warmup in ("false", "true"))
    assert warm.config["ema"]["warmup"] and warm.metrics["final"]["val/loss"] != plain.metrics["final"]["val/loss"]
    assert warm.metrics["final"]["train/loss"] == plain.metrics["final"]["train/loss"]


class Gradients(pl.Callback):
    """Keeps the model with the gradients of the last step before they are clipped, and after."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.model = copy.deepcopy(module.model)
        for held, parameter in zip(self.model.parameters(), module.model.parameters(), strict=True):
            held.grad = parameter.grad.clone()

    def on_train_batch_end(self, trainer, module, *_):
        self.clipped = {name: parameter.grad.clone() for name, parameter in module.model.named_parameters()}


@pytest.mark.parametrize(("algorithm", "value"), [("norm", 0.1), ("value", 0.001), ("agc", 0.02)])
def test_gradients_are_clipped_as_timm_does_it(algorithm, value, tmp_path):
    watch = Gradients()
    clip = [f"trainer.gradient_clip_val={value}", f"trainer.gradient_clip_algorithm={algorithm}"]
    command = [*ONE_STEP, "model.name=test_resnetdw_dk", f"output={tmp_path}"]
    record = train(load_config(None, [*command, *clip]), callbacks=[watch])
    assert record.config["trainer"]["gradient_clip_algorithm"] == algorithm
    before = {name: parameter.grad.clone() for name, parameter in watch.model.named_parameters()}
    parameters = timm.models.model_parameters(watch.model, exclude_head=algorithm == "agc")  # as timm's train.py
    dispatch_clip_grad(parameters, value, mode=algorithm)
    for name, parameter in watch.model.named_parameters():
        torch.testing.assert_close(watch.clipped[name], parameter.grad, atol=1e-7, rtol=1e-5)
    changed = {
        name for name, parameter in watch.model.named_parameters() if not torch.equal(parameter.grad, before[name])
    }
    assert any(name.startswith("conv1") for name in changed)
    assert ("fc.weight" in changed) == (algorithm != "agc")


def test_accumulated_batches_make_one_step(tmp_path):
    """Of a network without statistics over the batch: of the same images it is the same step."""
    same = ["model.name=test_vit", "model.drop_path_rate=0", "optim.epochs=2", "optim.warmup_epochs=0"]
    whole = tiny(tmp_path, *same, "data.batch_size=8")
    parts = tiny(tmp_path, *same, "data.batch_size=4", "trainer.accumulate_grad_batches=2")
    assert [len(train(config).metrics["epochs"]) for config in (whole, parts)] == [2, 2]
    assert train(parts).config["trainer"]["accumulate_grad_batches"] == 2
    steps = [read_checkpoint(run_folder(config) / "last.ckpt")["global_step"] for config in (whole, parts)]
    assert steps == [6, 6]
    expected = weights(whole)
    for name, value in weights(parts).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name)


def test_stochastic_depth_drops_paths_of_deformed_models_in_training_alone():
    config = ModelConfig("test_resnetdw_dk", drop_path_rate=0.5, kwargs={"zero_init_last": False})
    model, images = build_model(config, 3), torch.randn(2, 3, 32, 32)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    plain = build_model(ModelConfig("test_resnetdw_dk", kwargs={"zero_init_last": False}), 3)
    assert rates == sorted(rates) and rates[-1] == 0.5 and not any(isinstance(m, DropPath) for m in plain.modules())
    plain.load_state_dict(model.state_dict())
    model.eval(), plain.eval()
    assert torch.equal(model(images), plain(images))
    for each in (model, plain):
        each.train()
        for norm in (m for m in each.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.eval()  # so that nothing else draws or depends on the batch
    passes = [model(images) for _ in range(8)]
    assert any(not torch.equal(passes[0], other) for other in passes)
    assert torch.equal(plain(images), plain(images))


def test_precisions_are_lightnings():
    told = set(typing.get_args(fabric._PRECISION_INPUT_STR)) | set(typing.get_args(fabric._PRECISION_INPUT_STR_ALIAS))
    assert set(PRECISIONS) | set(SHORT) == told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=fp16", "key 'trainer.precision' is 'fp16', expected one of 32-true, 16-mixed, bf16-mixed"),
        ("trainer.gradient_clip_val=0", "expected null or a positive number"),
        ("trainer.gradient_clip_algorithm=agc", "expected norm, or another with trainer.gradient_clip_val"),
        ("trainer.accumulate_grad_batches=0", "expected at least 1"),
        ("ema.warmup=true", "key 'ema.warmup' is True, expected false, or ema.decay"),
        ("ema.warmup_power=1", "expected 2/3, or above 0 with ema.warmup"),
    ],
)
def test_bad_settings_are_one_sentence(override, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)
