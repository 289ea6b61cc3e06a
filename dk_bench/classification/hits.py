"""Collects, image by image in order, whether an evaluation told the class rightly, over any number of devices."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from dk_bench.data.order import processes


class Hits:
    """Takes logits (N, classes) and labels (N,) of the images that this process has: every ``world``-th, in order, as
    `dk_bench.data.order.InOrder` shares them out. A loader read in part, as by ``limit_val_batches``, has its first."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def reset(self) -> None:
        self._batches.clear()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self._batches.append((logits.argmax(dim=1) == labels).to(torch.uint8))

    def compute(self) -> np.ndarray:
        """Returns those of all processes, which must all call this: (images,) bool."""
        own = torch.cat(self._batches) if self._batches else torch.zeros(0, dtype=torch.uint8)
        parts = gather_all_tensors(own) if processes()[1] > 1 else [own]
        hits = np.zeros(sum(map(len, parts)), bool)
        for rank, part in enumerate(parts):
            hits[rank :: len(parts)] = part.cpu().numpy()
        return hits
