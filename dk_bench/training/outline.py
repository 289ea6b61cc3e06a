"""What of a configuration decides how long a run takes and how much it holds, told without its data or its weights."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Outline:
    """Holds what a plan asks a `Task`.

    ``images`` are those of ``train``, ``val`` and every test set by its name, as far as the configuration and
    `dk_bench.data.known_sizes` say; of a split that only its files can count there is None.
    """

    model: str  # as records call it; a detector's backbone
    timed_as: str | None  # the model's name in records of `dk-bench bench train`; None where they have no such model
    base: str | None  # of its rigid base there, likewise
    data: str  # what records call the data
    images: Mapping[str, int | None]
    classes: int | None
    input_size: tuple[int, int, int]  # (C, H, W)
    batch: int  # images at once, over all devices or, with ``per_device``, on each
    per_device: bool
    epochs: int
    evaluations: int  # of the validation images
    precision: str  # Lightning's name
    copies: int  # of the trained weights that the optimiser and an average of the weights keep
    decoded: float = 0.0  # bytes of the images' files that are kept decoded beside the runs
    pixels: tuple[int, int] | None = None  # width and height of most images; None where only files can tell
    every_time: bool = False  # files are decoded in every epoch, by the loader that `dk-bench bench data` measures
    iterations: int | None = None  # of a run, where these say how long it trains, and not epochs of all images

    def trained(self, count: int) -> int:
        """Counts the images that a run on ``count`` devices trains on, one that comes again again. Those that are left
        over after an epoch's last whole batch, which classifiers drop, are among them."""
        if self.iterations is None:
            return self.epochs * (self.images["train"] or 0)
        return self.iterations * self.batch * (count if self.per_device else 1)


#: What optimisers keep of every weight, by their names in lower case: copies of its size.
KEPT_BY = {"sgd": 1, "momentum": 1, "nesterov": 1, "lion": 1, "rmsprop": 1, "lars": 1, "larc": 1, "adafactor": 1}
KEPT_BY_OTHERS = 2  # Adam and its kin keep two
LOOKAHEAD = "lookahead_"  # timm's prefix of optimisers whose slow weights are kept as well


def copies_kept(optimiser: str, *, averaged: bool = False) -> int:
    """Returns how many copies of the trained weights an optimiser keeps, and an average of them, if there is one."""
    name = optimiser.lower()
    return KEPT_BY.get(name.removeprefix(LOOKAHEAD), KEPT_BY_OTHERS) + name.startswith(LOOKAHEAD) + averaged
