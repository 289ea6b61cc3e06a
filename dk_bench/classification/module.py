"""The Lightning module: a timm model, cross-entropy, top-1 and top-5."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models import model_parameters
from timm.utils import adaptive_clip_grad
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from dk_bench.classification.averaging import check_averaging
from dk_bench.classification.data import ClassificationData
from dk_bench.classification.hits import Hits
from dk_bench.classification.losses import TrainingLoss
from dk_bench.classification.mixing import mixing_of
from dk_bench.classification.optimizers import check_optimizer, check_split
from dk_bench.classification.recipe import build_optimizer
from dk_bench.classification.task import Classification
from dk_bench.classification.timm_models import build_model, without_initial_weights
from dk_bench.config import config_from_dict
from dk_bench.data.shifts import TEST
from dk_bench.errors import UserError
from dk_bench.training.own_trainer import ConfiguredModule, Diverged, add_loss, mean_of_losses
from dk_bench.training.sharded import put_in


class LitClassifier(ConfiguredModule):
    """Trains a timm model by the recipe of its configuration, which is the paper's where it says nothing else.

    Takes images (N, 3, H, W) and labels (N,) int64; in training labels may be (N, classes) float, of mixed images. Logs
    ``train/loss`` (what training minimises), ``val/loss`` (cross-entropy), and ``val/top1`` and ``val/top5`` in percent
    (of fewer than five classes, top-5 is top-as-many); ``trainer.test`` logs the same as ``test/...``, and
    ``trainer.predict`` gives logits (N, classes). ``hits`` says of each image of the last evaluation of ``val`` and of
    ``test``, in order, whether it was told rightly: (images,) bool.

    The arguments are plain data and stand in checkpoints: ``config`` as `dk_bench.config.to_dict` gives it, the
    classes' names in order of their labels, the length of an epoch in optimiser steps, which is heeded where no trainer
    is attached that knows it, and the run's name for loggers. Without ``initial_weights``, which is not in checkpoints,
    neither ``config.model.checkpoint`` nor timm's weights are read: a checkpoint's will follow.

    Raises UserError from building the model, for an optimiser that cannot be made, and for a trainer that would train
    otherwise than ``config`` says, see `dk_bench.training.own_trainer`; Diverged from a step whose loss is not finite,
    on every process.
    """

    task = Classification.name
    _step_seed = 0  # of the step that comes next, see `seed_step`

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
        self.config = self.run = config_from_dict(config)
        check_optimizer(self.config.optim)
        model = self.config.model if initial_weights else without_initial_weights(self.config.model)
        self.model = build_model(model, len(classes))
        self.memory_format = torch.channels_last if self.config.trainer.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.mixing = mixing_of(self.config.data.augment, len(classes))
        self.training_loss = TrainingLoss(self.config.loss)
        self.train_loss = mean_of_losses()
        self.val_loss = MeanMetric()
        self.val_top1 = MulticlassAccuracy(len(classes), average="micro")
        self.val_top5 = MulticlassAccuracy(len(classes), top_k=min(5, len(classes)), average="micro")
        self.val_hits = Hits()
        self.hits: dict[str, np.ndarray] = {}

    def setup(self, stage: str) -> None:
        """Compiles the model where that is asked for; here, so that callbacks have copied the plain one before.

        Raises UserError for a trainer or data that do not go with the configuration.
        """
        if stage == "fit":
            self.check_trainer(self.config.optim.epochs, "optim.epochs")
            self._check_averaging()
            if self.bare:
                check_split(self.config)
        data = self.trainer.datamodule
        if isinstance(data, ClassificationData):
            self.check_classes(data.classes_of(TEST if stage == "test" and data.test_images else "val"))
        if self.config.trainer.compile:
            self.model.compile()

    def _check_averaging(self) -> None:
        """Raises UserError where the configuration has what the trainer would have to do, and does not."""
        check_averaging(self.config.ema, self.trainer)
        synchronised = getattr(self.trainer.strategy, "_layer_sync", None) is not None
        if self.config.trainer.sync_batchnorm and self.trainer.world_size > 1 and not synchronised:
            plugin = "dk_bench.training.batch_norm.SharedBatchNorm()"
            raise UserError(f"key 'trainer.sync_batchnorm' is True: expected Trainer(plugins=[{plugin}])")

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, classes)."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    def seed_step(self, seed: int) -> None:
        super().seed_step(seed)
        self._step_seed = seed

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.mixing:
            images, labels = self.mixing(images, labels, self._step_seed)
        loss = self.training_loss(self.or_diverged(lambda: self(images)), labels)
        self.check_loss(loss)
        add_loss(self.train_loss, loss, len(labels))
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        for metric in (self.val_loss, self.val_top1, self.val_top5, self.val_hits):
            metric.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.or_diverged(lambda: self(images)).float()
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))
        self.val_top1.update(logits, labels)
        self.val_top5.update(logits, labels)
        self.val_hits.update(logits, labels)

    def on_validation_epoch_end(self, split: str = "val") -> None:
        loss = self.val_loss.compute()
        if not torch.isfinite(loss):
            raise Diverged(f"{'validation' if split == 'val' else split} loss is {loss.item()} {self.when()}")
        self.log(f"{split}/loss", loss)
        self.log(f"{split}/top1", 100 * self.val_top1.compute(), prog_bar=True)
        self.log(f"{split}/top5", 100 * self.val_top5.compute())
        self.hits[split] = self.val_hits.compute()

    def predict_step(self, batch: Tensor | tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """Returns logits (N, classes) of images, or of a batch that begins with them."""
        return self(batch if isinstance(batch, Tensor) else batch[0])

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *arguments: Any, **named: Any) -> None:
        """Clips as the trainer says, or as timm's ``agc`` does, which Lightning does not know."""
        clip = self.config.trainer
        if clip.gradient_clip_algorithm == "agc":
            adaptive_clip_grad(model_parameters(self.model, exclude_head=True), clip.gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, *arguments, **named)

    def configure_optimizers(self) -> dict[str, Any]:
        if self._trainer is not None:
            self.hparams.steps_per_epoch = self.optimizer_steps()  # checkpoints hold it, too
        steps = self.hparams.steps_per_epoch
        model = self.bare[0] if self.bare else self.model
        optimizer, scheduler = build_optimizer(model, self.config.optim, self.config.model.name, steps)
        if self.bare:
            put_in(dict(self.model.named_parameters()), optimizer, model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
