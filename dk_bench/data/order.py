"""The order of images, and the random numbers of each: functions of seed, epoch and index, and of nothing else.

So a resumed run sees what an uninterrupted one would have seen, whatever the number of worker processes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from dk_bench.data.decoded import Decoded, Encoded
from dk_bench.data.draws import uniform
from dk_bench.data.transforms import EvalTransform, TrainTransform
from dk_bench.errors import UserError


def mix_seed(*parts: int) -> int:
    """Returns one well-mixed 64-bit seed from several non-negative integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def processes() -> tuple[int, int]:
    """Returns this process's rank among those that train together, and how many they are."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def check_processes(world: int) -> None:
    """Raises UserError where other than the ``world`` processes read their loader: all would see the same images."""
    if (now := processes()[1]) not in (1, world):
        expected = "the data module itself, trainer.fit(module, datamodule=data), which makes its loaders"
        when = "when all processes have started"
        raise UserError(f"a loader that was made for {world} process is read by {now}: expected {expected} {when}")


def batches_done(trainer: pl.Trainer, steps: int) -> int:
    """Tells how many batches of an epoch of ``steps`` a trainer has behind it when it asks for the first: those that
    were trained on before the checkpoint it goes on from. Raises UserError where that checkpoint was written between
    batches of one step: it does not hold their gradients."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready % steps
    if done % trainer.accumulate_grad_batches:
        raise UserError(
            f"the checkpoint to go on from was written after {done} batches of an epoch, which under "
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) is inside a step, whose gradients it "
            "does not hold: expected one written at the end of a step or of an epoch"
        )
    return done


class ResumingLoader(DataLoader):
    """A loader of training batches that begins where the trainer is when the first batch is asked for.

    Lightning makes the iterator sooner, before it has read the checkpoint to go on from, where an optimiser's schedule
    asks how long an epoch is; workers would have fetched the wrong images by then.
    """

    waited = 0.0  # seconds, for all batches so far

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()
        for batch in super().__iter__():
            self.waited += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the trainer's checkpoint has its progress. Lightning takes loaders with these two methods
        for ones that can resume, and warns of others."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""


class InOrder(DistributedSampler, SequentialSampler):
    """``count`` images in order, spread over the processes: each image once, none repeated to fill up.

    ``done`` says, when the first image is asked for, how many of this process's are to be left out. Lightning leaves it
    alone, being a DistributedSampler, on several devices, and, being a SequentialSampler, under ``overfit_batches``.
    """

    def __init__(self, count: int, *, done: Callable[[], int] = lambda: 0) -> None:
        rank, world = processes()
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=False)
        self.done = done

    def __len__(self) -> int:
        return len(self.dataset[self.rank :: self.num_replicas])

    def __iter__(self) -> Iterator[int]:
        check_processes(self.num_replicas)
        yield from self.dataset[self.rank :: self.num_replicas][self.done() :]


class StepSampler(DistributedSampler):
    """Yields (epoch, index) in an order drawn anew every epoch.

    An epoch is ``count // batch_size`` steps of ``batch_size`` images, dealt out to all processes in turn; what is left
    over is dropped (other images every epoch). With ``repeats`` above 1 every image comes so many times, one after the
    other, as in timm's RepeatAugSampler; an epoch is not longer for that, and takes fewer images: it yields (epoch,
    index, repeat). ``done`` says, when the first image is asked for, how many steps of the epoch are to be left out.
    ``order`` draws the order of all images (of all alike, if it is None). Lightning, which shares out what other
    samplers yield, leaves a DistributedSampler alone.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        done: Callable[[], int] = lambda: 0,
        repeats: int = 1,
        order: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        rank, world = processes()
        if count < batch_size or batch_size % world:
            raise ValueError(f"a batch of {batch_size} from {count} images on {world} processes")
        super().__init__(range(count), num_replicas=world, rank=rank, seed=seed)
        self.batch_size, self.done, self.repeats = batch_size, done, repeats
        self.steps = count // batch_size
        self.order = order or (lambda generator: torch.randperm(count, generator=generator))

    def __len__(self) -> int:
        return self.steps * self.batch_size // self.num_replicas

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        check_processes(self.num_replicas)
        epoch = self.epoch
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = self.order(generator)
        begin, end = self.done() * self.batch_size + self.rank, self.steps * self.batch_size
        places = torch.arange(begin, max(begin, end), self.num_replicas)
        for index, repeat in zip(order[places // self.repeats].tolist(), (places % self.repeats).tolist(), strict=True):
            yield (epoch, index) if self.repeats == 1 else (epoch, index, repeat)


class Transformed(Dataset):
    """Batches through a transform without randomness; items by index.

    ``dataset[index]`` is (pixels (3, size, size) float32, label), and a loader whose ``collate_fn`` is `as_it_is` gets
    whole batches, (N, 3, size, size) and labels (N,) int64, at once.
    """

    def __init__(self, images: Decoded | Encoded, transform: EvalTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        pixels, labels = self.__getitems__([key])
        return pixels[0], int(labels[0])

    def __getitems__(self, keys: Sequence[Any]) -> tuple[Tensor, Tensor]:
        step = self.images.together or len(keys)
        parts = [self._batch(keys[begin : begin + step]) for begin in range(0, len(keys), step)]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def _batch(self, keys: Sequence[Any]) -> tuple[Tensor, Tensor]:
        images, labels = self.images.load(keys)
        return self.transform(images), labels


class Augmented(Transformed):
    """Batches through a random transform, whose random numbers depend on (seed, epoch, index, repeat) alone.

    Items by (epoch, index), (epoch, index, repeat), or by index, which is of epoch 0; otherwise as `Transformed`.
    """

    def __init__(self, images: Decoded | Encoded, transform: TrainTransform, seed: int) -> None:
        super().__init__(images, transform)
        self.key = mix_seed(seed)

    def _batch(self, keys: Sequence[tuple[int, ...] | int]) -> tuple[Tensor, Tensor]:
        epochs, indices, repeats = in_columns(keys)
        images, labels = self.images.load(indices)
        return self.transform(images, uniform(self.key, epochs, indices, repeats=repeats)), labels


def in_columns(
    keys: Sequence[tuple[int, ...] | int],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
    """Returns the epochs and indices of what `StepSampler` yields, and which time of each it is; None without times."""
    epochs, indices, *repeats = zip(*(key if isinstance(key, tuple) else (0, key) for key in keys), strict=True)
    return epochs, indices, repeats[0] if repeats else None


def as_it_is(batch: Any) -> Any:
    """Collates nothing: for loaders of data sets that give whole batches."""
    return batch
