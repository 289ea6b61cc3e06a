"""Started by test_own_trainer.py in two processes: what a user may write, under Lightning's defaults."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from own_trainer_cases import Watch, trainer
from training_cases import tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.config import to_dict
from dk_bench.training import Diverged, LitClassifier

folder = Path(sys.argv[1])
config = tiny(folder, *sys.argv[2:])
data, two = ClassificationData(config.data, config.seed), dict(devices=2, strategy="ddp")


class OneSpoils(pl.Callback):
    """The second process's loss is not finite."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1:
            batch[0].fill_(float("nan"))


def module():
    pl.seed_everything(config.seed, verbose=False)
    return LitClassifier(to_dict(config), data.val_images.classes)


watch, own, fitted = Watch(), trainer(**two), module()
own.callbacks.append(watch)
own.fit(fitted, data)
own.save_checkpoint(folder / "two.ckpt")
overfit, again = Watch(), trainer(**two, overfit_batches=1)
again.callbacks.append(overfit)
again.fit(module(), data)
(tested,) = trainer(**two).test(fitted, data, verbose=False)
predicted = trainer(**two).predict(fitted, data)
spoilt = None
try:
    trainer(**two, callbacks=[OneSpoils()]).fit(module(), data)
except Diverged as error:
    spoilt = str(error)
seen = {
    "train": watch.batches,
    "val": watch.validated,
    "figures": watch.figures,
    "steps": own.global_step,
    "overfit": overfit.batches,
    "tested": tested,
    "predicted": len(torch.cat(predicted)),
    "spoilt": spoilt,
}
(folder / f"{own.global_rank}.json").write_text(json.dumps(seen))
