"""Losses that are looked at a step later, as on a GPU: what a run leaves is the same."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from training_cases import STEPS, tiny

from dk_bench.runs.record import read_record
from dk_bench.training import own_trainer, read_checkpoint, run_folder, train

SHORT = ("model.name=test_resnetdw", "optim.epochs=2", "trainer.checkpoint_every_n_steps=1")


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(own_trainer, "_is_late", lambda loss: True)
    monkeypatch.setattr(own_trainer, "_on_its_way", lambda loss: loss.clone().item)


class Broken(pl.Callback):
    """Weights that are no numbers from a step on."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step:
            torch.nn.init.constant_(next(module.parameters()), float("nan"))


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS])  # amid an epoch, in its last step, in the next one's first
def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint_holds_it(tmp_path, late, step):
    config = tiny(tmp_path, *SHORT)
    record = train(config, callbacks=[Broken(step)])
    assert record.status == "failed" and f"training loss is nan at step {step} (epoch {step // STEPS})" in record.error
    checkpoint = read_checkpoint(run_folder(config) / "last.ckpt")
    assert checkpoint["global_step"] == step
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values() if v.is_floating_point())


def test_training_is_the_same(tmp_path, monkeypatch, request):
    now = train(tiny(tmp_path / "now", *SHORT)).metrics["epochs"]
    request.getfixturevalue("late")
    later = train(tiny(tmp_path / "late", *SHORT)).metrics["epochs"]
    assert [{**epoch, "seconds": 0} for epoch in now] == [{**epoch, "seconds": 0} for epoch in later]
    assert read_record(next((tmp_path / "late").glob("*/record.json"))).status == "finished"
