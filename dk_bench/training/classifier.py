"""The Lightning module: a timm model, cross-entropy, top-1 and top-5."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from dk_bench.config import config_from_dict
from dk_bench.data.order import mix_seed
from dk_bench.training.checkpoint import build_model, without_initial_weights
from dk_bench.training.fitting import Diverged
from dk_bench.training.recipe import build_optimizer
from dk_bench.training.weights import to_lightning_names, to_own_names


class LitClassifier(pl.LightningModule):
    """Trains a timm model by the paper's recipe.

    Takes images (N, 3, H, W) and labels (N,) int64. Logs ``train/loss``, ``val/loss``, and ``val/top1`` and
    ``val/top5`` in percent (of fewer than five classes, top-5 is top-as-many). The arguments are plain data and stand
    in checkpoints: ``config`` as `dk_bench.config.to_dict` gives it, the classes' names in order of their labels, the
    length of an epoch in optimiser steps, and the run's name for loggers. Without ``initial_weights``, which is not in
    checkpoints, neither ``config.model.checkpoint`` nor timm's weights are read: a checkpoint's will follow.

    Raises UserError from building the model, Diverged from a step whose loss is not finite.
    """

    def __init__(
        self,
        config: dict[str, Any],
        classes: list[str],
        steps_per_epoch: int = 1,
        run_id: str = "",
        *,
        initial_weights: bool = True,
    ) -> None:
        super().__init__()
        # logger=False: loggers are told the configuration by its own keys, see training.tracking.
        self.save_hyperparameters(ignore=["initial_weights"], logger=False)
        self.config = config_from_dict(config)
        model = self.config.model if initial_weights else without_initial_weights(self.config.model)
        self.model = build_model(model, len(classes))
        self.memory_format = torch.channels_last if self.config.trainer.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        # Persistent: a run resumed in mid-epoch goes on with the mean of the steps before.
        self.train_loss = MeanMetric()
        self.train_loss.persistent(True)
        self.val_loss = MeanMetric()
        self.val_top1 = MulticlassAccuracy(len(classes), average="micro")
        self.val_top5 = MulticlassAccuracy(len(classes), top_k=min(5, len(classes)), average="micro")

    def setup(self, stage: str) -> None:
        """Compiles the model where that is asked for; here, so that callbacks have copied the plain one before."""
        if self.config.trainer.compile:
            self.model.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    def _logits(self, images: Tensor) -> Tensor:
        """Logits in a step. Raises Diverged where an operator refuses NaN offsets, before there is a loss."""
        try:
            return self(images)
        except RuntimeError as error:
            if "NaN" not in str(error):
                raise
            raise Diverged(f"{str(error).splitlines()[0]} {self._when()}") from error

    def _when(self) -> str:
        return f"at step {self.global_step} (epoch {self.current_epoch})"

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes drop path and the like a function of (seed, step, rank): resuming needs no state of generators."""
        torch.manual_seed(mix_seed(self.config.seed, self.global_step, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self._logits(images), labels)
        if not torch.isfinite(loss):
            raise Diverged(f"training loss is {loss.item()} {self._when()}")
        self.train_loss.update(loss.detach(), len(labels))
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self._logits(images).float()
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))
        self.val_top1.update(logits, labels)
        self.val_top5.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss.compute()
        if not torch.isfinite(loss):
            raise Diverged(f"validation loss is {loss.item()} {self._when()}")
        self.log("val/loss", loss)
        self.log("val/top1", 100 * self.val_top1.compute(), prog_bar=True)
        self.log("val/top5", 100 * self.val_top5.compute())
        for metric in (self.val_loss, self.val_top1, self.val_top5):
            metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, scheduler = build_optimizer(
            self.model, self.config.optim, self.config.model.name, self.hparams.steps_per_epoch
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        to_own_names(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        to_lightning_names(checkpoint)
