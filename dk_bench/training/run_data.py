"""The base of all tasks' data modules: splits, their checksums, and where training goes on."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import BatchSizeFinder
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import worker

from dk_bench.data.order import InOrder, ResumingLoader, processes
from dk_bench.data.shifts import TEST
from dk_bench.errors import UserError
from dk_bench.processes.interrupts import leave_to_parent


class RunData(LightningDataModule):
    """Training and validation images of a configuration, opened when they are first asked for, and test sets, if any.

    A subclass has ``train_dataloader`` and ``val_dataloader``, and these; what is opened as properties.
    """

    name: str  # what records and tables call the data
    batch_key: str  # the configuration's key of the batch
    batch_size: int
    train_images: Any  # with a length, as all images
    val_images: Any
    test_images: Mapping[str, Any] = {}  # test sets by their names, `TEST` first
    classes: list[str]  # their names in order of their labels
    steps_per_epoch: int  # batches, on as many devices as there are processes now
    decoded: dict[str, str] | None = None  # split -> where its decoded images are kept; None: none ever are
    _apart = False  # whether the splits are known to share no image

    def checksum(self, images: Any) -> str:
        """Tells a split's images from others, see `dk_bench.data.checksum`."""
        raise NotImplementedError

    def compare_splits(self) -> None:
        """Raises UserError where two splits share an image."""
        raise NotImplementedError

    def classes_of(self, split: str) -> list[str]:
        """Returns the classes' names as the images of one split, ``val`` or ``test``, have them."""
        return self.classes

    def check_splits(self) -> None:
        """Raises UserError where two splits share an image. Looks once."""
        if not self._apart:
            self.compare_splits()
            self._apart = True

    def images(self, *splits: str) -> dict[str, Any]:
        """Returns the images of ``train``, ``val`` and, by ``test``, of every test set, by their names."""
        opened = {split: getattr(self, f"{split}_images") for split in ("train", "val") if split in splits}
        return opened | (dict(self.test_images) if TEST in splits else {})

    def checksums(self, *splits: str) -> dict[str, str]:
        """Tells the images of the splits from others, by their names, as `images` has them."""
        return {name: self.checksum(images) for name, images in self.images(*splits).items()}

    def setup(self, stage: str) -> None:
        """Raises UserError where the trainer would change the batch, which the configuration gives."""
        if any(isinstance(callback, BatchSizeFinder) for callback in self.trainer.callbacks):
            raise UserError(
                f"callback BatchSizeFinder, but key '{self.batch_key}' is {self.batch_size}, of which the "
                "order of images and the length of an epoch are made: expected no such callback, set the key instead"
            )

    def in_order(self, split: str, count: int) -> InOrder:
        """Returns the sampler of a split's images in order, each once, spread over the devices. Raises UserError where
        there are too few for every device to have one."""
        if count < (world := processes()[1]):
            raise UserError(f"there are {count} {split} images on {world} devices, expected at least one on each")
        return InOrder(count)

    def loader(
        self, images: Dataset, sampler: Sampler, workers: int, *, goes_on: bool = False, **more: Any
    ) -> DataLoader:
        """Returns a loader; ``goes_on``: under a trainer, from where that is. ``more`` goes to torch as it is."""
        kind = ResumingLoader if goes_on and self.trainer else DataLoader
        more |= {"num_workers": workers, "persistent_workers": workers > 0}
        more["worker_init_fn"] = partial(begin_worker, more.get("worker_init_fn"))
        # A generator of its own: the loader shall not draw from the model's random numbers.
        return kind(images, sampler=sampler, generator=torch.Generator(), **more)

    def test_dataloader(self, name: str = TEST) -> DataLoader:
        """Returns the images of a test set, or, where the configuration has none, those of validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Returns the validation images in order; on several devices each has every ``world``-th."""
        return self.val_dataloader()


class HandedOn(ExceptionWrapper):
    """An error of a loader's worker process. A UserError is raised as it is: torch would make one of the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        error = sys.exc_info()[1]
        self.error = error if isinstance(error, UserError) else None

    def reraise(self) -> None:
        """Raises the error, to the process that the worker loads for."""
        if self.error:
            raise self.error
        super().reraise()


def begin_worker(then: Callable[[int], object] | None, number: int) -> None:
    """Makes a worker process, in which it is called, use `HandedOn` and leave signals to the process that it loads for;
    calls ``then`` with its number, if given."""
    worker.ExceptionWrapper = HandedOn
    leave_to_parent()
    if then:
        then(number)


class OneTest(LightningDataModule):
    """One of the test sets of a `RunData`, for `Trainer.test`: opened, evaluated, let go before the next."""

    def __init__(self, data: RunData, name: str) -> None:
        super().__init__()
        self.data, self.name = data, name

    def test_dataloader(self) -> DataLoader:
        """Returns its images in order."""
        return self.data.test_dataloader(self.name)
