"""LitClassifier and ClassificationData in a user's own Trainer: they do what the configuration says, or say why not."""

import copy
import json
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from new_python import run_new_python
from own_trainer_cases import Watch, assert_same_weights, fit_parts, images_in, next_rate, trainer
from pytorch_lightning import callbacks
from pytorch_lightning.strategies import FSDPStrategy
from training_cases import tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.config import to_dict
from dk_bench.data import order
from dk_bench.errors import UserError
from dk_bench.training import LitClassifier, train
from dk_bench.training.batch_norm import SharedBatchNorm
from dk_bench.training.own_trainer import ConfiguredModule

BATCHES = 6  # of an epoch here: 26 images, four a batch
SMALL = ("model.name=test_resnetdw", "data.size=16", "data.batch_size=4", "optim.epochs=2")


def parts(tmp_path, *overrides):
    """A module as it begins, and its data."""
    config = tiny(tmp_path, *SMALL, *overrides)
    pl.seed_everything(config.seed, verbose=False)
    data = ClassificationData(config.data, config.seed)
    return LitClassifier(to_dict(config), data.val_images.classes), data


def fit(tmp_path, *overrides, **settings):
    return fit_parts(*parts(tmp_path, *overrides), **settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A fit under Lightning's defaults."""
    return fit(tmp_path_factory.mktemp("plain"))


def test_a_users_trainer_gives_what_the_command_gives(plain, tmp_path):
    record = train(tiny(tmp_path, *SMALL))
    for epoch, figures in zip(record.metrics["epochs"], plain[0].figures, strict=True):
        assert figures == {name: epoch[name] for name in figures} and len(figures) == 3


def test_the_example_of_the_docs_runs(plain, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert len(code.splitlines()) <= 10
    monkeypatch.setattr("dk_bench.config.load_config", lambda *_: tiny(tmp_path, *SMALL))  # sooner done
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "trainer.md", "exec"), names)
    assert_same_weights(names["module"], plain[2])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 12),
        ({"accumulate_grad_batches": 2}, 6),
        ({"accumulate_grad_batches": 4}, 4),  # the last two batches of an epoch are a step
        ({"limit_train_batches": 4}, 8),
        ({"limit_train_batches": 0.5, "accumulate_grad_batches": 2}, 4),
        ({"overfit_batches": 2}, 4),
        ({"max_time": "00:01:00:00", "min_epochs": 1, "gradient_clip_val": 1.0}, 12),
    ],
)
def test_the_cosine_ends_at_zero_whatever_the_steps_are(tmp_path, settings, steps):
    watch, own, _ = fit(tmp_path, "optim.warmup_epochs=0", **settings)
    assert own.global_step == steps
    assert watch.rates[0] == 0.05 and next_rate(own) == 0
    assert sorted(watch.rates, reverse=True) == watch.rates and len(set(watch.rates)) == steps


def test_a_module_outside_a_trainer_takes_the_steps_it_is_told(tmp_path):
    config = tiny(tmp_path, *SMALL)
    schedule = LitClassifier(to_dict(config), ["a", "b"], 5).configure_optimizers()["lr_scheduler"]["scheduler"]
    assert (schedule.warmup_steps, schedule.total_steps) == (5, 10)


def with_trainer(tmp_path, own, *overrides):
    """Sets a module up under a trainer that starts no processes."""
    module, data = parts(tmp_path, *overrides)
    own.strategy._lightning_module, module.trainer, own.datamodule = module, own, data
    module.setup("fit")


class Thaw(callbacks.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.model.conv1)

    def finetune_function(self, pl_module, epoch, optimizer):
        self.unfreeze_and_add_param_group(pl_module.model.conv1, optimizer)


REFUSED = [
    (
        {"epochs": 4},
        r"^Trainer\(max_epochs=4\), but key 'optim.epochs' is 2, which its schedule of learning rates is "
        r"made for: expected the same number$",
    ),
    ({"epochs": 1}, r"^Trainer\(max_epochs=1\), but key 'optim.epochs' is 2"),
    ({"epochs": None}, r"^Trainer\(max_epochs=1000\), but key 'optim.epochs' is 2"),
    ({"epochs": None, "max_steps": 3}, r"^Trainer\(max_epochs=-1\), but key 'optim.epochs' is 2"),
    ({"max_steps": 3}, r"^Trainer\(max_steps=3\), expected none: training lasts the epochs of key 'optim.epochs', 2$"),
    ({"callbacks": [callbacks.LearningRateFinder()]}, "^callback LearningRateFinder: it gives all parameters one "),
    ({"callbacks": [callbacks.StochasticWeightAveraging(0.01)]}, "^callback StochasticWeightAveraging: .*EMAWeightAv"),
    (
        {"callbacks": [callbacks.GradientAccumulationScheduler({0: 1, 1: 2})]},
        r"^callback GradientAccumulationScheduler: .*Trainer\(accumulate_grad_batches=N\)$",
    ),
    ({"callbacks": [Thaw()]}, "^callback Thaw: the schedule does not move parameters that are added later; freeze "),
    (
        {"devices": 2, "strategy": "ddp", "sync_batchnorm": True},
        r"^Trainer\(sync_batchnorm=True\) drops the activations inside timm's layers: expected Trainer\(plugins=",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED)
def test_settings_that_would_change_figures_are_refused(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        with_trainer(tmp_path, trainer(**settings)) if "strategy" in settings else fit(tmp_path, **settings)


def test_what_the_configuration_wants_of_the_trainer_is_missed(tmp_path):
    called = {
        "false": "dk_bench.classification.averaging.PlainAveraging(0.5)",
        "true": "dk_bench.classification.averaging.WarmAveraging(0.5, 1.0, 0.6",
    }
    for warmup, callback in called.items():
        expected = re.escape(f"key 'ema.decay' is 0.5: expected Trainer(callbacks=[{callback}")
        with pytest.raises(UserError, match=f"^{expected}"):
            fit(tmp_path, "ema.decay=0.5", f"ema.warmup={warmup}")
    two = dict(devices=2, strategy="ddp")
    with pytest.raises(UserError, match=r"^key 'trainer.sync_batchnorm' is True: expected Trainer\(plugins="):
        with_trainer(tmp_path, trainer(**two), "trainer.sync_batchnorm=true")
    with_trainer(tmp_path, trainer(**two, plugins=[SharedBatchNorm()]), "trainer.sync_batchnorm=true")


def test_strategies_that_split_parameters_are_refused():
    module = ConfiguredModule()
    module._trainer = SimpleNamespace(callbacks=[], strategy=object.__new__(FSDPStrategy))
    with pytest.raises(UserError, match=r"^Trainer\(strategy=FSDPStrategy\), expected 'ddp', one of its variants"):
        module.check_trainer(1, "optim.epochs")


@pytest.mark.parametrize(
    ("find", "sentence"), [("lr_find", "^callback LearningRateFinder"), ("scale_batch_size", "^callback BatchSizeFin")]
)
def test_tuners_are_refused(tmp_path, monkeypatch, find, sentence):
    monkeypatch.chdir(tmp_path)
    module, data = parts(tmp_path)
    with pytest.raises(UserError, match=sentence):
        getattr(pl.tuner.Tuner(trainer()), find)(module, datamodule=data)


def test_other_classes_than_the_modules_are_refused(tmp_path):
    module, _ = parts(tmp_path)
    _, data = parts(tmp_path, "data.procedural.classes=5")
    for call in (trainer().fit, trainer().validate, trainer().test):
        with pytest.raises(
            UserError, match=r"^the module was made for 6 classes \(.*\), but the images are of 5 classes"
        ):
            call(module, datamodule=data)


def test_a_trainer_that_has_trained_is_refused(plain, tmp_path):
    module, data = parts(tmp_path)
    with pytest.raises(UserError, match=r"^the Trainer is at step 12 of an earlier fit, and a schedule begins at 0"):
        plain[1].fit(module, datamodule=data)


def test_going_on_inside_an_epoch_from_a_users_checkpoint(tmp_path):
    """With workers, which would fetch too soon; steps and schedule are those of the optimiser, images go by batches."""
    for kind in ({"accumulate_grad_batches": 2}, {}):
        check_going_on(tmp_path / str(len(kind)), kind)


def check_going_on(tmp_path, kind):
    saving = callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    straight, own, module = fit(tmp_path, enable_checkpointing=True, callbacks=[saving], **kind)
    assert straight.validated and len(straight.batches) == 2 * BATCHES
    steps = 4 if kind else 8
    path = tmp_path / f"step={steps}.ckpt"
    done = steps * kind.get("accumulate_grad_batches", 1)
    assert done == BATCHES + 2
    resumed, again, other = fit(tmp_path, "data.workers=1", ckpt_path=path, **kind)
    assert resumed.batches == straight.batches[done:] and resumed.rates == straight.rates[done:]
    assert again.callback_metrics == own.callback_metrics and next_rate(again) == 0
    assert_same_weights(other, module)


def test_going_on_from_the_last_batch_of_an_epoch(tmp_path):
    """Where Lightning begins the next epoch without a word to the module: the mean loss is still of one epoch."""
    path = tmp_path / "x.ckpt"
    straight, own, module = fit(tmp_path, watch=Watch(save_after=BATCHES, path=path))
    resumed, again, other = fit(tmp_path, ckpt_path=path)
    assert resumed.batches == straight.batches[BATCHES:] and again.callback_metrics == own.callback_metrics
    assert_same_weights(other, module)


def test_going_on_from_the_middle_of_a_step_is_refused(tmp_path):
    path, kind = tmp_path / "x.ckpt", {"accumulate_grad_batches": 2}
    fit(tmp_path, watch=Watch(save_after=3, path=path), **kind)
    with pytest.raises(UserError, match=r"written after 3 batches of an epoch.*accumulate_grad_batches=2\) is inside"):
        fit(tmp_path, ckpt_path=path, **kind)


def test_going_on_with_other_steps_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    fit(tmp_path, watch=Watch(save_after=BATCHES, path=path))
    with pytest.raises(UserError, match="^the checkpoint to go on from has 12 optimiser steps, this run "):
        fit(tmp_path, ckpt_path=path, accumulate_grad_batches=2)


class UsersOwn(pl.LightningModule):
    """As in Lightning's documentation: one cycle over as many steps as the trainer expects."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 6)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.head(batch[0].mean((2, 3))), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_users_module_goes_on_with_the_right_images(tmp_path):
    _, data = parts(tmp_path, "data.workers=1")
    watch = Watch(save_after=BATCHES + 2, path=tmp_path / "x.ckpt")
    trainer(callbacks=[watch]).fit(UsersOwn(), datamodule=data)
    resumed = Watch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer(callbacks=[resumed]).fit(UsersOwn(), datamodule=data, ckpt_path=tmp_path / "x.ckpt")
    assert resumed.batches == watch.batches[BATCHES + 2 :] and len(resumed.batches) == 4
    assert len({image for batch in watch.batches for image in batch}) == 2 * 24  # every epoch augments anew


def test_overfitting_repeats_the_first_batches(tmp_path):
    path = tmp_path / "x.ckpt"
    watch, _, module = fit(tmp_path, overfit_batches=2, watch=Watch(save_after=1, path=path))
    resumed, _, other = fit(tmp_path, overfit_batches=2, ckpt_path=path)
    assert resumed.batches == watch.batches[1:]
    assert_same_weights(other, module)
    first, second = watch.batches[:2], watch.batches[2:]
    assert first == second and len({image for batch in first for image in batch}) == 8
    _, data = parts(tmp_path)
    assert watch.validated[:8] == [image for batch in data.val_dataloader() for image in images_in(batch)][:8]


def test_testing_and_predicting(plain, tmp_path):
    _, data = parts(tmp_path)
    module = plain[2]
    (tested,) = trainer().test(module, data, verbose=False)
    assert {name.replace("test/", "val/"): value for name, value in tested.items()} == plain[0].figures[-1]
    images = torch.cat([images for images, _ in data.val_dataloader()])
    evaluated = copy.deepcopy(module).eval()
    with torch.no_grad():
        expected = torch.cat([evaluated(chunk) for chunk in images.split(4)])
    # By its name: once an error has left a hook that makes loaders, as other tests' do, Lightning rebuilds loaders of
    # the process from the arguments they were given, and then gives it the size a second time.
    own_loader = torch.utils.data.DataLoader(images, batch_size=4)
    for of in ({"datamodule": data}, {"dataloaders": data.val_dataloader()}, {"dataloaders": own_loader}):
        assert torch.equal(torch.cat(trainer().predict(module, **of)), expected)


def test_reading_a_checkpoint_needs_no_weights_to_start_from(plain, tmp_path):
    """Those that training began with may be gone; and a mean over an epoch's half does not go into another fit."""
    start, path = tmp_path / "start.ckpt", tmp_path / "x.ckpt"
    plain[1].save_checkpoint(start)
    fit(tmp_path, f"model.checkpoint={start}", watch=Watch(save_after=2, path=path))
    start.unlink()
    module = LitClassifier.load_from_checkpoint(path)
    held = torch.load(path, weights_only=True)
    assert module.hparams.config["model"]["checkpoint"] == str(start) and held["global_step"] == 2
    own = trainer(limit_train_batches=1, limit_val_batches=0)
    own.fit(module, datamodule=parts(tmp_path)[1])
    assert own.callback_metrics["train/loss"] == own.callback_metrics["loss"]


class Monitored(callbacks.EarlyStopping):
    """Stops after the first epoch."""

    def __init__(self):
        super().__init__("val/top1", mode="max", stopping_threshold=-1.0)


def test_other_settings_leave_images_and_figures_as_they_are(plain, tmp_path):
    expected, _, _ = plain
    for settings, figures in (
        ({"num_sanity_val_steps": 2, "reload_dataloaders_every_n_epochs": 1, "use_distributed_sampler": False}, 2),
        ({"val_check_interval": 0.5}, 4),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, 3),
        ({"check_val_every_n_epoch": 2}, 1),
        ({"callbacks": [Monitored()]}, 1),
    ):
        watch, _, _ = fit(tmp_path, **settings)
        assert watch.batches == expected.batches[: len(watch.batches)] and len(watch.batches) >= BATCHES, settings
        assert len(watch.figures) == figures, settings
        if figures == 2:
            assert watch.figures == expected.figures
        right = [12 * found["val/top1"] / 100 for found in watch.figures]
        assert right == pytest.approx([round(count) for count in right]), settings


def test_precisions(tmp_path):
    for precision in ("bf16-mixed", "64-true", "bf16-true"):
        watch, _, _ = fit(tmp_path, "model.name=test_resnetdw_dk", precision=precision, limit_train_batches=2)
        assert all(found["val/loss"] < 10 for found in watch.figures) and len(watch.figures) == 2, precision


def test_averaging_and_a_dry_run(tmp_path):
    fit(tmp_path, "ema.decay=0.5", callbacks=[callbacks.EMAWeightAveraging(decay=0.5)], limit_train_batches=2)
    watch, own, _ = fit(tmp_path, fast_dev_run=2)
    assert len(watch.batches) == own.global_step == 2 and watch.rates == pytest.approx([0, 0.025])


def test_a_loader_of_unknown_length_is_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(3, 16, 16), 0

    module, _ = parts(tmp_path)
    with pytest.raises(UserError, match="^the training loader does not say how many batches it has"):
        trainer().fit(module, torch.utils.data.DataLoader(Stream(), 1))


def test_loaders_made_before_the_processes_are_refused(tmp_path, monkeypatch):
    _, data = parts(tmp_path)
    loaders = data.train_dataloader(), data.val_dataloader()
    monkeypatch.setattr(order, "processes", lambda: (1, 2))
    for loader in loaders:
        with pytest.raises(UserError, match=r"^a loader that was made for 1 process is read by 2: expected the data"):
            next(iter(loader))


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    _, data = parts(tmp_path, "data.procedural.val_images=4")
    for world, loader, sentence in (
        (3, data.train_dataloader, "^key 'data.batch_size' is 4, not a multiple of 3 devices$"),
        (8, data.val_dataloader, "^there are 4 val images on 8 devices, expected at least one on each$"),
    ):
        for module in ("classification.data", "training.run_data"):
            monkeypatch.setattr(f"dk_bench.{module}.processes", lambda world=world: (0, world))
        with pytest.raises(UserError, match=sentence):
            loader()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_devices_see_every_image_once(tmp_path):
    """Thirteen images to validate, so that the shards are uneven. The first process's running statistics are those that
    a checkpoint holds, and that all evaluate with."""
    overrides = (*SMALL, "data.procedural.val_images=13")
    tests, root = Path(__file__).parents[1] / "cases", Path(__file__).parents[2]
    command = [tests / "own_trainer_two.py", tmp_path, *overrides]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"}
    done = run_new_python(command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))

    config = tiny(tmp_path, *overrides)
    data = ClassificationData(config.data, config.seed)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        ours, theirs = (seen["train"][BATCHES * epoch : BATCHES * (epoch + 1)] for seen in (first, second))
        for batch, one, other in zip(loader, ours, theirs, strict=True):
            assert sorted(one + other) == sorted(images_in(batch)) and len(one) == len(other) == 2
    assert first["steps"] == 12 and len(first["train"]) == len(second["train"]) == 12
    everything = sorted(image for batch in data.val_dataloader() for image in images_in(batch))
    assert sorted(first["val"][:7] + second["val"][:6]) == everything and len(first["val"]) == 14
    assert first["overfit"][0] == first["overfit"][1] and len(set(first["overfit"][0] + second["overfit"][0])) == 4
    assert (first["predicted"], second["predicted"]) == (7, 6)
    for seen, what in ((first, "not finite on another device"), (second, "nan")):
        assert seen["spoilt"] == f"training loss is {what} at step 0 (epoch 0)"

    module = LitClassifier.load_from_checkpoint(tmp_path / "two.ckpt")
    (alone,) = trainer().validate(module, data, verbose=False)
    for seen in (first, second):
        assert seen["figures"][-1] == pytest.approx(alone, rel=1e-6)
        assert {f"val/{name[5:]}": value for name, value in seen["tested"].items()} == pytest.approx(alone, rel=1e-6)
