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
    copies: float  # of the trained weights that the optimiser and an average of the weights keep
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


KEPT_BY_OTHERS = 2  # of optimisers that timm does not make here: Adam and its kin keep two
LOOKAHEAD = "lookahead_"  # timm's prefix of optimisers whose slow weights are kept as well


def copies_kept(optimiser: str, *, averaged: bool = False) -> float:
    """Returns how many copies of the trained weights an optimiser keeps, and an average of them, if there is one."""
    from dk_bench.training.kept import copies_by_step

    name = optimiser.lower()
    try:
        own = copies_by_step(name.removeprefix(LOOKAHEAD))
    except (ValueError, AssertionError, ImportError):  # not timm's, or of a package that is not here or needs a GPU
        own = KEPT_BY_OTHERS
    return own + name.startswith(LOOKAHEAD) + averaged
