"""A detector's run that signals stop again and again ends as one that nobody stops."""

import os
import signal

import pytest
import pytorch_lightning as pl

pytest.importorskip("mmdet", reason="mmdet is not installed")

import torch
from detection_cases import tiny_detection
from training_cases import timeless, weights

from dk_bench.runs.record import read_record
from dk_bench.training import read_checkpoint, run_folder, train

ITERATIONS = "train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 11, 'val_interval': 4, '_delete_': True}"
AVERAGE = "custom_hooks=[{'type': 'EMAHook', 'momentum': 0.3}]"
BY_LOOP = {"epochs": (["train_cfg.max_epochs=2"], (4,)), "iterations": ([ITERATIONS, AVERAGE], (3, 5))}


class Stop(pl.Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.started == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("loop", BY_LOOP)
def test_run_that_is_stopped_is_the_uninterrupted_one(tmp_path, loop):
    """In the last step before a validation, and inside an interval."""
    settings, batches = BY_LOOP[loop]
    whole = tiny_detection(tmp_path, *settings)
    expected, held = timeless(train(whole)), weights(whole)
    config = tiny_detection(tmp_path, *settings, f"output={tmp_path / 'stopped'}")
    for batch in batches:
        with pytest.raises(KeyboardInterrupt, match="interrupted by SIGTERM"):
            train(config, callbacks=[Stop(batch)])
        assert read_checkpoint(run_folder(config) / "last.ckpt")["global_step"] == batch + 1
        assert read_record(run_folder(config) / "record.json").error == "interrupted by SIGTERM"
    record = train(config)
    assert record.status == "finished" and timeless(record) == expected
    assert all(torch.equal(weights(config)[name], value) for name, value in held.items())
