"""Trains on shards whose labels number the images, from a checkpoint or not, and says which images each step saw.

Started by test_shards_resumed.py in two processes: FOLDER CHECKPOINT NEXT_CHECKPOINT LAST_STEP overrides.
"""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from own_trainer_cases import trainer

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config


class Numbers(pl.LightningModule):
    """A module of a user's own, which keeps the labels of every step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[1].tolist())
        return self.weight.sum() * batch[0].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PowerCut(pl.Callback):
    """Writes a checkpoint after so many steps, and ends the fit."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def seen(overrides, checkpoint, next_checkpoint, step, **settings):
    """Labels by step, of this process."""
    config = load_config(None, overrides)
    module, cut = Numbers(), PowerCut(step, next_checkpoint)
    fit = trainer(1, limit_val_batches=0, callbacks=[cut], **settings)
    fit.fit(module, ClassificationData(config.data, config.seed), ckpt_path=checkpoint)
    return module.seen, fit.global_rank


if __name__ == "__main__":
    folder, checkpoint, next_checkpoint, step, *overrides = sys.argv[1:]
    labels, rank = seen(overrides, checkpoint, next_checkpoint, int(step), devices=2, strategy="ddp")
    Path(folder, f"{rank}.json").write_text(json.dumps(labels))
