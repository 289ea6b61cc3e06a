"""Augmented epochs that were computed beforehand, for many runs of one seed side by side.

Augmentation is a function of seed, epoch and image, so that all models of one seed see the same pixels. Where a file of
decoded images has a file of an augmented epoch beside it, training reads that, to the same bits. Files are written by
`LaidDown.write` alone, before the runs begin (tools/gpu_ablation.py does it): a run never writes one.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dk_bench.data.decoded import Decoded
from dk_bench.data.draws import uniform
from dk_bench.data.order import Augmented, in_columns
from dk_bench.data.transforms import TrainTransform
from dk_bench.files import open_atomically

FORMAT = 1  # raised whenever what augmentation makes of an image changes
TOGETHER = 4096  # images of an epoch that are computed at once


class LaidDown(Augmented):
    """As `Augmented`, for images decoded in a file; read from the files of augmented epochs where there are some.

    A file holds the grey levels of all images in their order, (images, 3, size, size) uint8.
    """

    def __init__(self, images: Decoded, transform: TrainTransform, seed: int) -> None:
        super().__init__(images, transform, seed)
        # torch and its instruction set: they decide how a resize rounds.
        program = f"{FORMAT} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        settings = f"{program} {transform.size} {transform.shorter} {asdict(transform.augment)} {seed}"
        digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
        self._name = images.path.with_suffix(f".{digest}")
        self._opened: tuple[int, Tensor | None] = (-1, None)  # the epoch that was read last, and its levels

    def path(self, epoch: int) -> Path:
        """Tells where an epoch's file is, or would be."""
        return self._name.with_suffix(f"{self._name.suffix}-{epoch}")

    def write(self, epoch: int) -> None:
        """Lays an epoch down, unless it is. Raises OSError."""
        path = self.path(epoch)
        if path.exists():
            return
        with open_atomically(path) as stream:
            for begin in range(0, len(self), TOGETHER):
                indices = range(begin, min(begin + TOGETHER, len(self)))
                images, _ = self.images.load(indices)
                stream.write(self.transform.levels(images, uniform(self.key, [epoch] * len(indices), indices)).numpy())

    def _batch(self, keys: Sequence[tuple[int, ...] | int]) -> tuple[Tensor, Tensor]:
        epochs, indices, repeats = in_columns(keys)
        levels = self._levels(epochs[0]) if len(set(epochs)) == 1 and repeats is None else None
        if levels is None:
            return super()._batch(keys)
        numbers = uniform(self.key, epochs, indices)
        return self.transform.from_levels(levels[list(indices)], numbers), self.images.labels(indices)

    def _levels(self, epoch: int) -> Tensor | None:
        """Returns the levels of an epoch, mapped from its file; None where there is none of the right size."""
        if self._opened[0] != epoch:
            path, levels = self.path(epoch), None
            shape = (len(self), 3, self.transform.size, self.transform.size)
            if path.exists() and path.stat().st_size == math.prod(shape):
                levels = torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=torch.uint8).view(shape)
            self._opened = epoch, levels
        return self._opened[1]
