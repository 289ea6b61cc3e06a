"""A callback that writes down, every few seconds, how far a run is: see `dk_bench.runs.heartbeat`."""

import math
import os
import platform
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dk_bench.runs.heartbeat import Beat, clear_beats, write_beat
from dk_bench.training.task import Task

EVERY_SECONDS = 10.0


class Beats(Callback):
    """Writes a beat with every step of training or evaluation, at most one in `EVERY_SECONDS`. The first process alone
    writes; a beat that cannot be written stops nothing. None is left behind by a run that has ended."""

    def __init__(self, task: Task) -> None:
        self.folder, self.epochs = task.folder, task.epochs
        self._next = -math.inf
        self._step, self._steps = 0, None  # batches behind, and of all training where that is known
        self._began: tuple[float, int] | None = None  # when this attempt's first step was done, and which it was

    def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            clear_beats(self.folder)

    on_exception = on_fit_start  # of what ended the run otherwise, a signal too

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.on_fit_start(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if math.isfinite(trainer.num_training_batches):
            self._step = pl_module.batches_before(batch_idx) + 1
            self._steps = pl_module.batches_before(0, self.epochs)
        self._beat(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._beat(trainer)

    on_test_batch_end = on_validation_batch_end

    def _beat(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or time.monotonic() < self._next:
            return
        self._next, now = time.monotonic() + EVERY_SECONDS, time.time()
        self._began = self._began or (now, self._step)
        done = (trainer.current_epoch, self.epochs, self._step, self._steps)
        write_beat(self.folder, Beat(now, *done, *self._began, platform.node(), os.getpid()))
