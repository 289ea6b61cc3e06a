"""Which image comes when, and with which random numbers: functions of seed, epoch and index, and of nothing else.

So a resumed run sees what an uninterrupted one would have seen, whatever the number of worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


def mix_seed(*parts: int) -> int:
    """One well-mixed 64-bit seed from several non-negative integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class StepSampler(Sampler):
    """Yields (epoch, index) in an order drawn anew every epoch; can start at any step.

    An epoch is ``count // batch_size`` steps of ``batch_size`` images over all ``world`` processes; what is left over
    is dropped (other images every epoch). Each process takes every ``world``-th image, beginning at its ``rank``.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, start_step: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if count < batch_size or batch_size % world:
            raise ValueError(f"a batch of {batch_size} from {count} images on {world} processes")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world = rank, world
        self.steps = count // batch_size
        self.start_epoch, self.start_in_epoch = divmod(start_step, self.steps)
        self.epoch = self.start_epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch_size // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)[: self.steps * self.batch_size]
        done = self.start_in_epoch * self.batch_size if epoch == self.start_epoch else 0
        for index in order[done + self.rank :: self.world].tolist():
            yield epoch, index


class Augmented(Dataset):
    """Applies a random transform whose random numbers depend on (seed, epoch, index) alone; items by (epoch, index)."""

    def __init__(self, images: Sequence[tuple[Any, int]], transform: Callable, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        image, label = self.images[index]
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone: torch.manual_seed would seed a GPU's too, under the model's feet.
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
            return self.transform(image), label


class Transformed(Dataset):
    """Applies a transform without randomness; items by index."""

    def __init__(self, images: Sequence[tuple[Any, int]], transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label
