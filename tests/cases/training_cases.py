"""Tiny runs, shared by the tests of training."""

import pytorch_lightning as pl

from dk_bench.config import load_config
from dk_bench.training import read_checkpoint, run_folder

EPOCHS, STEPS = 4, 3  # of the runs here
TINY = (
    "name=tiny",
    "model.name=test_resnetdw_dk",
    "model.drop_path_rate=0.2",
    "wandb.mode=disabled",
    "data.size=32",
    "data.crop_pct=1",
    "data.workers=0",
    "data.batch_size=8",
    "data.procedural.train_images=26",
    "data.procedural.val_images=12",
    "data.procedural.classes=6",
    f"optim.epochs={EPOCHS}",
    "optim.warmup_epochs=1",
    "optim.lr=0.05",
)
# Of the shortest run that trains.
ONE_STEP = (
    "wandb.mode=disabled",
    "data.size=32",
    "data.crop_pct=1",
    "data.workers=0",
    "data.batch_size=4",
    "data.procedural.train_images=4",
    "data.procedural.val_images=2",
    "data.procedural.classes=3",
    "optim.epochs=1",
    "optim.warmup_epochs=0",
)


def tiny(output, *overrides):
    return load_config(None, [*TINY, f"output={output}", *overrides])


def timeless(record):
    """Epochs' metrics without what the clock says."""
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record.metrics["epochs"]]


def weights(config):
    """The weights that a run has left, by name."""
    return read_checkpoint(run_folder(config) / "last.ckpt")["state_dict"]


class PowerCut(pl.Callback):
    """Ends a run before a step, with nothing saved on the way out."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error or RuntimeError("power cut")

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise self.error
