"""The base of all tasks' data modules: splits, their checksums, and where training goes on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import BatchSizeFinder
from torch.utils.data import DataLoader

from dk_bench.data.shifts import TEST
from dk_bench.errors import UserError


class RunData(LightningDataModule):
    """Training and validation images of a configuration, opened when they are first asked for, and test sets, if any.

    A subclass has ``train_images`` and ``val_images``, with a length, and the loaders Lightning asks for;
    ``batch_key`` names the configuration's key of the batch, ``batch_size`` is its value.
    """

    batch_key: str
    batch_size: int
    test_images: Mapping[str, Any] = {}  # by name, `TEST` first
    decoded: dict[str, str] | None = None  # of each split that was asked for, where its decoded images are kept
    _apart = False  # whether the splits are known to share no image

    @property
    @abstractmethod
    def name(self) -> str:
        """Tells what records and tables call the data."""

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Returns the classes' names in order of their labels."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Tells how many batches an epoch has."""

    @abstractmethod
    def checksum(self, images: Any) -> str:
        """Tells a split's images from others, see `dk_bench.data.checksum`."""

    @abstractmethod
    def compare_splits(self) -> None:
        """Raises UserError where two splits share an image."""

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

    def test_dataloader(self, name: str = TEST) -> DataLoader:
        """Returns the images of a test set, or, where the configuration has none, those of validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Returns the validation images in order; on several devices each has every ``world``-th."""
        return self.val_dataloader()


class OneTest(LightningDataModule):
    """One of the test sets of a `RunData`, for `Trainer.test`: opened, evaluated, let go before the next."""

    def __init__(self, data: RunData, name: str) -> None:
        super().__init__()
        self.data, self.name = data, name

    def test_dataloader(self) -> DataLoader:
        """Returns its images in order."""
        return self.data.test_dataloader(self.name)
