"""The Lightning data module of classification: either source, the paper's transforms, an order that can resume."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dk_bench.config import DataConfig
from dk_bench.data.checksum import checksum
from dk_bench.data.decoded import Decoded, Encoded, index_folder, keep
from dk_bench.data.laid_down import LaidDown
from dk_bench.data.order import Augmented, InOrder, StepSampler, Transformed, as_it_is, batches_done, processes
from dk_bench.data.shards import order_of
from dk_bench.data.shifts import TEST, held_out_sets
from dk_bench.data.sources import Images, data_name, open_images
from dk_bench.data.splits import check_apart, check_same_classes
from dk_bench.data.transforms import EvalTransform, TrainTransform
from dk_bench.errors import UserError
from dk_bench.training.run_data import RunData


class ClassificationData(RunData):
    """Loaders of training, validation and test images: (images (N, 3, size, size) float32, labels (N,) int64).

    ``config.batch_size`` is that of a step over all devices (under ``Trainer(accumulate_grad_batches=N)``, a step has N
    of these). The order and augmentation of training images depend on ``seed``, epoch and place in the epoch alone: a
    trainer that goes on from a checkpoint goes on from there. Processes are those of torch.distributed, among which the
    loaders share their images, whatever the trainer's ``use_distributed_sampler`` says. Nothing is opened before the
    first use; then UserError is raised for bad data, where the splits differ in their classes and, before training,
    where two of them share images. ``cache`` is what ``config.cache`` means by ``auto``: a folder for files of decoded
    images, ``memory`` or ``off``; ``decoded`` says of each split, once it was asked for, where its decoded images are.
    """

    batch_key = "data.batch_size"

    def __init__(self, config: DataConfig, seed: int, *, cache: str | Path = "memory") -> None:
        super().__init__()
        self.config, self.seed, self._cache, self.decoded = config, seed, cache, {}
        self.name, self.batch_size = data_name(config), config.batch_size

    @cached_property
    def train_images(self) -> Images:
        """Returns the training split; its classes are checked against the validation split's."""
        train = self._open("train")
        check_same_classes(self.config, train.classes, self.val_images.classes)
        if len(train) < self.batch_size:
            reason = f"but there are {len(train)} train images"
            raise UserError(reason, key=self.batch_key, value=self.batch_size)
        return train

    @cached_property
    def val_images(self) -> Images:
        """Returns the validation split; enough by itself for evaluating."""
        return self._open("val")

    @cached_property
    def test_images(self) -> dict[str, Images]:
        """Tells what a run is tested on by name, ``test`` first; empty where the configuration has nothing."""
        return {name: self._open(name) for name in held_out_sets(self.config)}

    @cached_property
    def train_pixels(self) -> Decoded | Encoded:
        """Returns the training images, decoded once where they fit; of two processes the second waits for the first."""
        return self._kept("train", self.train_images)

    @cached_property
    def val_pixels(self) -> Decoded | Encoded:
        """Returns the validation images likewise."""
        return self._kept("val", self.val_images)

    @property
    def augmented(self) -> LaidDown | Augmented:
        """Returns the training images as they are trained on, by epoch and index; from files if they were laid down."""
        transform = TrainTransform(self.config)
        if isinstance(self.train_pixels, Decoded) and self.train_pixels.path:
            return LaidDown(self.train_pixels, transform, self.seed)
        return Augmented(self.train_pixels, transform, self.seed)

    def _open(self, split: str) -> Images:
        return open_images(self.config, split, index_folder(self.config, self._cache))

    def _kept(self, split: str, images: Images, *, once: bool = False) -> Decoded | Encoded:
        pixels = keep(images, self.config, self._cache, once=once)
        self.decoded[split] = pixels.where
        return pixels

    @property
    def classes(self) -> list[str]:
        return self.val_images.classes

    def classes_of(self, split: str) -> list[str]:
        return (self.test_images[TEST] if split == TEST else self.val_images).classes

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_images) // self.batch_size

    checksum = staticmethod(checksum)

    def compare_splits(self) -> None:
        """Raises UserError where an image is in two of the splits, and where test images are of other classes."""
        check_apart(self.train_images, self.val_images)
        if test := self.test_images.get(TEST):
            check_same_classes(self.config, self.val_images.classes, test.classes, ("val", "test"))
            check_apart(self.train_images, test, ("train", "test"))
            check_apart(self.val_images, test, ("val", "test"))

    def train_dataloader(self) -> DataLoader:
        """Returns batches of this process from where the trainer is; the last, incomplete batch of an epoch is dropped.

        Under ``Trainer(overfit_batches=...)`` the images in order, with the same augmentation in every epoch.
        """
        self.check_splits()
        own, steps, augment = self._batch_size(), self.steps_per_epoch, self.config.augment
        if own % 2 and (augment.mixup or augment.cutmix):
            reason = f"of which a device has {own}; expected an even number there, as mixup and cutmix pair images"
            raise UserError(reason, key=self.batch_key, value=self.batch_size)
        done = partial(batches_done, self.trainer, steps) if self.trainer else lambda: 0
        if self.trainer and self.trainer.overfit_batches > 0:
            sampler = InOrder(steps * self.batch_size, done=lambda: done() * own)
        else:
            order = order_of(self.train_images, self.config)
            settings = {"seed": self.seed, "done": done, "repeats": augment.repeats, "order": order}
            sampler = StepSampler(len(self.train_images), self.batch_size, **settings)
        return self._loader(self.augmented, sampler, goes_on=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Returns all validation images in order, each once, spread over the devices."""
        return self._in_order("val", self.val_pixels)

    def test_dataloader(self, name: str = TEST) -> DataLoader:
        """Returns all images of a test set likewise, which are not kept in memory."""
        if not self.test_images:
            return super().test_dataloader(name)
        return self._in_order(name, self._kept(name, self.test_images[name], once=True))

    def _in_order(self, split: str, pixels: Decoded | Encoded) -> DataLoader:
        sampler = self.in_order(split, len(pixels))
        return self._loader(Transformed(pixels, EvalTransform(self.config)), sampler)

    def _loader(self, images: Dataset, sampler: Sampler, **more: Any) -> DataLoader:
        more |= {"batch_size": self._batch_size(), "collate_fn": as_it_is, "pin_memory": torch.cuda.is_available()}
        if workers := self.config.workers:
            more["prefetch_factor"] = self.config.prefetch
        return self.loader(images, sampler, workers, **more)

    def _batch_size(self) -> int:
        """Counts the images of a step on one device. Raises UserError where devices cannot share the batch evenly."""
        batch, (_, world) = self.batch_size, processes()
        if batch % world:
            raise UserError(f"not a multiple of {world} devices", key=self.batch_key, value=batch)
        return batch // world
