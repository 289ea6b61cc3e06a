"""Batches of training by (number, index), in an order that can resume: those of an epoch, or of iterations.

The number, of the epoch or of the iteration, says with the index what is drawn at random for an image.
"""

from collections.abc import Callable, Iterator
from itertools import count

from torch.utils.data import BatchSampler, DistributedSampler

from dk_bench.data.order import check_processes, processes
from dk_bench.detection.loops import Loop

ENDLESS = "InfiniteSampler"


class KeyedBatches(DistributedSampler):
    """Batches of (epoch, index) from this process's batches of indices: the sampler of a loader that makes none itself,
    with ``batch_size=None``. ``done`` says, when the first is asked for, how many are to be left out.

    Lightning, which shares out what other samplers yield, leaves a DistributedSampler alone.
    """

    def __init__(self, batches: BatchSampler, done: Callable[[], int] = lambda: 0) -> None:
        rank, world = processes()
        super().__init__(batches, num_replicas=world, rank=rank)
        self.batches, self.done = batches, done

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.batches.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        check_processes(self.num_replicas)
        epoch = self.epoch
        # All at once: mmdet's sampler keeps images for the next epoch where somebody stops at the last batch, as
        # Lightning does, without asking whether there is another.
        for batch in list(self.batches)[self.done() :]:
            yield [(epoch, index) for index in batch]


class Endless:
    """The batches of a loop of iterations, for ever: mmengine begins a sampler that ends anew, as its next epoch.

    ``make`` gives a sampler at its beginning. Batches are counted from there, so that each is a function of its number.
    """

    def __init__(self, make: Callable[[], BatchSampler]) -> None:
        self.make = make
        self._begin()

    def between(self, first: int, last: int) -> Iterator[tuple[int, list[int]]]:
        """Yields the number and the indices of each batch from ``first`` to before ``last``."""
        if first < self._at:
            self._begin()
        while self._at < last:
            batch = next(self._batches)
            self._at += 1
            if self._at > first:
                yield self._at - 1, batch

    def _begin(self) -> None:
        self._at, self._batches = 0, _passes(self.make())


class KeyedIterations(DistributedSampler):
    """Batches of (iteration, index) of what Lightning takes for an epoch of a loop of iterations; otherwise as
    `KeyedBatches`. ``done`` counts from the epoch's beginning."""

    def __init__(self, batches: Endless, loop: Loop, done: Callable[[], int] = lambda: 0, epoch: int = 0) -> None:
        rank, world = processes()
        super().__init__(range(loop.length), num_replicas=world, rank=rank)
        self.batches, self.loop, self.done, self.epoch = batches, loop, done, epoch

    def __len__(self) -> int:
        return self.loop.ends[self.epoch] - self.loop.begins(self.epoch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        check_processes(self.num_replicas)
        first, last = self.loop.begins(self.epoch) + self.done(), self.loop.ends[self.epoch]
        for number, batch in self.batches.between(first, last):
            yield [(number, index) for index in batch]


def _passes(batches: BatchSampler) -> Iterator[list[int]]:
    for epoch in count():
        batches.sampler.set_epoch(epoch)
        yield from batches
