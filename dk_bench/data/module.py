"""The Lightning data module of classification: either source, the paper's transforms, an order that can resume."""

from __future__ import annotations

from functools import cached_property

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from dk_bench.config import DataConfig
from dk_bench.data.order import Augmented, StepSampler, Transformed
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.sources import Images, open_images
from dk_bench.data.splits import check_apart, check_same_classes
from dk_bench.data.transforms import eval_transform, train_transform
from dk_bench.errors import UserError

IN_MEMORY_BYTES = 1 << 29  # procedural splits up to this size are drawn once and kept


class ClassificationData(LightningDataModule):
    """Train and validation loaders of (images (N, 3, size, size) float32, labels (N,) int64).

    ``config.batch_size`` is that of a step over all devices. The order and augmentation of training images depend on
    ``seed`` and the step alone: a loader asked for at ``trainer.global_step`` goes on from there. Nothing is opened
    before the first use; then UserError is raised for bad data, where train and val differ in their classes and, before
    training, where they share images.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config, self.seed, self._apart = config, seed, False

    @cached_property
    def train_images(self) -> Images:
        """The training split; its classes are checked against the validation split's."""
        train = open_images(self.config, "train")
        check_same_classes(self.config, train.classes, self.val_images.classes)
        batch = self.config.batch_size
        if len(train) < batch:
            raise UserError(f"key 'data.batch_size' is {batch}, but there are {len(train)} train images")
        return train

    @cached_property
    def val_images(self) -> Images:
        """The validation split; enough by itself for evaluating."""
        return open_images(self.config, "val")

    def check_splits(self) -> None:
        """Raises UserError where training images are validation images as well. Looks once."""
        if not self._apart:
            check_apart(self.train_images, self.val_images)
            self._apart = True

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.train_images) // self.config.batch_size

    def train_dataloader(self) -> DataLoader:
        """Batches from the trainer's current step on; the last, incomplete batch of an epoch is dropped."""
        self.check_splits()
        sampler = StepSampler(
            len(self.train_images),
            self._batch_size() * self._world(),
            seed=self.seed,
            start_step=self.trainer.global_step if self.trainer else 0,
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self._world(),
        )
        images = Augmented(self._kept(self.train_images), train_transform(self.config), self.seed)
        return self._loader(images, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """All validation images in order, each once, spread over the devices."""
        rank = self.trainer.global_rank if self.trainer else 0
        shard = range(rank, len(self.val_images), self._world())
        return self._loader(Transformed(self._kept(self.val_images), eval_transform(self.config)), shard)

    def _loader(self, dataset, sampler, drop_last: bool = False) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            dataset,
            batch_size=self._batch_size(),
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: the loader shall not draw from the model's random numbers
        )

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _batch_size(self) -> int:
        """Images of a step on one device. Raises UserError where the devices cannot share the batch evenly."""
        batch, world = self.config.batch_size, self._world()
        if batch % world:
            raise UserError(f"key 'data.batch_size' is {batch}, not a multiple of {world} devices")
        return batch // world

    def _kept(self, images: Images):
        if not isinstance(images, ShapeImages) or 3 * len(images) * images.size**2 > IN_MEMORY_BYTES:
            return images
        return [images[index] for index in range(len(images))]
