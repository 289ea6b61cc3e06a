"""A trial of a run: its own process, which trains as ``dk-bench train`` does, a few steps of a few epochs, evaluates a
few batches, and writes down when each thing happened. ``python -m dk_bench.plan.trial FILE STEPS CONFIG key=value...``

Times are of `time.monotonic`, which all processes of a machine share.
"""

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dk_bench import tasks
from dk_bench.files import write_atomically
from dk_bench.plan.fitting import EPOCH, EVALUATED, EVALUATION, EVALUATION_END, STEP, TEST, TEST_END, TESTED, TRAINED
from dk_bench.processes.interrupts import interrupts
from dk_bench.processes.launchers import ordinary_environment
from dk_bench.training.run import train

EPOCHS = 3  # of a trial: the first one has work of its own, as making threads and choosing algorithms
LEAST_EVALUATED = 64  # batches of an evaluation, where there are so many


class Trial(Callback):
    """Cuts training short, and notes ``events``, (what, seconds), in ``batches`` how many there would have been of
    training, evaluation and each test, and in ``images`` how many of training and evaluation."""

    def __init__(self, steps: int) -> None:
        self.steps, self.events, self.batches = steps, [], {STEP: 0, EVALUATED: 0, TESTED: []}
        self.images: dict[str, int] = {}

    def _note(self, what: str) -> None:
        self.events.append((what, time.monotonic()))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.limit_train_batches = self.steps
        trainer.limit_val_batches = trainer.limit_test_batches = max(self.steps, LEAST_EVALUATED)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(EPOCH)
        self.batches[STEP] = len(trainer.train_dataloader)
        data = trainer.datamodule
        self.images = {"train": len(data.train_images), "val": len(data.val_images)}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(STEP)
        trainer.check_val_every_n_epoch = 1  # whatever the configuration has: each of these epochs is evaluated

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= EPOCHS

    def on_train_end(self, *_: Any) -> None:
        self._note(TRAINED)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(EVALUATION)
        self.batches[EVALUATED] = len(trainer.val_dataloaders)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._note(EVALUATED)

    def on_validation_end(self, *_: Any) -> None:
        self._note(EVALUATION_END)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(TEST)
        self.batches[TESTED].append(len(trainer.test_dataloaders))

    def on_test_batch_end(self, *_: Any) -> None:
        self._note(TESTED)

    def on_test_end(self, *_: Any) -> None:
        self._note(TEST_END)


def main(argv: list[str]) -> int:
    """Runs the trial and writes what it saw as JSON; 1 where training failed."""
    path, steps, config, *overrides = argv
    with ordinary_environment(), interrupts():
        task, trial = tasks.load(config, overrides), Trial(int(steps))
        record = train(task, callbacks=[trial], command=["dk-bench", "train", config, *overrides])
    if record.status == "failed":
        print(f"failed: {record.error}")
        return 1
    ahead = time.time() - time.monotonic()
    recorded = [datetime.fromisoformat(text).timestamp() - ahead for text in (record.started, record.ended)]
    seen = {"events": trial.events, "batches": trial.batches, "images": trial.images}
    seen |= {"recorded": recorded, "memory": _memory()}
    write_atomically(Path(path), json.dumps(seen))
    return 0


def _memory() -> int | None:
    """Returns the most bytes that were held on a GPU; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
