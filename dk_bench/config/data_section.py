"""Section ``data``: images, and what is made of them for training."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dk_bench.config.fields import at_least, place
from dk_bench.reading.schema import checked

CACHES = {"auto", "memory", "off"}
NO_CACHES = {"on", "none", "null", "no", "yes", "false", "true", "file", "disk"}  # other words for one of these
IMAGES = "a folder, a tar, a pattern of shards or the name of a split"


def _is_range(pair: list[float] | None, top: float = math.inf) -> bool:
    return pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top)


def _is_cache(value: str) -> bool:
    return value in CACHES or (bool(value) and "\0" not in value and value.lower() not in CACHES | NO_CACHES)


def _share(default: float) -> Any:
    return checked(default, "a probability", lambda share: 0 <= share <= 1)


def _with(
    key: str,
    default: Any,
    others: tuple[str, ...],
    expected: str,
    holds: Callable[[Any], bool] = lambda _: True,
    *,
    both: bool = False,
) -> Any:
    """Returns the field ``key`` of ``data.augment`` that says more of what one of ``others``, or ``both``, ask for. It
    stands at its default without them: else it would change nothing but the name of the cell."""
    words = (" and " if both else " or ").join(f"data.augment.{other}" for other in others)

    def is_fit(augment: "AugmentConfig") -> bool:
        asked = (all if both else any)(getattr(augment, other) > 0 for other in others)
        return getattr(augment, key) == default or (asked and holds(getattr(augment, key)))

    return checked(default, f"{default}, or {expected} with {words}", is_fit, of_section=True)


@dataclass
class AugmentConfig:
    """Training augmentation: torchvision's of the paper's recipe, then timm's, which are off."""

    # The crop's share of the area; null: no crop.
    scale: list[float] | None = checked([0.08, 1.0], "two rising numbers in (0, 1]", lambda pair: _is_range(pair, 1))
    ratio: list[float] = checked(  # the crop's width / height
        [3 / 4, 4 / 3],
        "two rising positive numbers, with data.augment.scale",
        lambda augment: _is_range(augment.ratio) and (augment.scale is not None or augment.ratio == [3 / 4, 4 / 3]),
        of_section=True,
    )
    flip: float = _share(0.5)  # of a horizontal flip
    color_jitter: float = at_least(0, "0 or more", default=0.4)  # of brightness, contrast and saturation; 0: none
    # RandAugment, AutoAugment or AugMix in timm's words, as rand-m7-mstd0.5-inc1; timm then leaves out color_jitter.
    auto_augment: str | None = place("timm's description")
    random_erasing: float = _share(0.0)  # of an image
    random_erasing_mode: Literal["pixel", "rand", "const"] = _with(  # noise a pixel, noise a channel, the mean
        "random_erasing_mode", "pixel", ("random_erasing",), "rand or const"
    )
    random_erasing_count: int = _with(  # rectangles at most
        "random_erasing_count", 1, ("random_erasing",), "more", lambda count: count >= 1
    )
    # Images of a batch mixed with each other, and their labels: alphas of the beta distributions; 0: none. Where both
    # are set, every batch, pair or element (mixup_mode) has one of them.
    mixup: float = at_least(0, "0 or more", default=0.0)
    cutmix: float = at_least(0, "0 or more", default=0.0)
    mixup_prob: float = _with(  # that a batch, pair or element is mixed at all
        "mixup_prob", 1.0, ("mixup", "cutmix"), "a probability", lambda share: 0 <= share <= 1
    )
    mixup_switch_prob: float = _with(  # of cutmix
        "mixup_switch_prob", 0.5, ("mixup", "cutmix"), "a probability", lambda share: 0 <= share <= 1, both=True
    )
    mixup_mode: Literal["batch", "pair", "elem"] = _with("mixup_mode", "batch", ("mixup", "cutmix"), "pair or elem")
    # Repeated augmentation: an epoch takes a part of the images so many times, each time augmented anew.
    repeats: int = at_least(1, default=1)


@dataclass
class ShiftsConfig:
    """Test sets of procedural images from beyond training's range of one factor; null: no such set."""

    scale_up: float | None = None  # half extents from the upper end of scale to this, fraction of the side
    scale_down: float | None = None  # half extents from this to the lower end of scale
    rotation: float | None = None  # from the largest rotation to this, radians, both ways
    bend: float | None = None  # from the largest bend to this, radians per half extent, both ways


@dataclass
class ProceduralConfig:
    """The embedded data set, see dk_bench.data.procedural. Its seed is not the run's: all runs see the same images."""

    train_images: int = at_least(1, default=4000)
    val_images: int = at_least(1, default=1000)
    test_images: int = at_least(0, "0 (none) or more", default=0)  # of the test set and of every shifted one
    classes: int = 10
    seed: int = 0
    scale: list[float] = field(default_factory=lambda: [0.15, 0.34])  # half extents, fraction of the side
    bend: float = 0.8  # largest bend, radians per half extent
    rotation: float = 3.141592653589793  # largest rotation, radians
    clutter: int = 6  # strokes and discs, each
    shifts: ShiftsConfig = field(default_factory=ShiftsConfig)


@dataclass
class SyntheticConfig:
    """Images without content and without files, see dk_bench.data.synthetic: by default as many as ImageNet has."""

    train_images: int = at_least(1, default=1_281_167)
    val_images: int = at_least(1, default=50_000)
    classes: int = at_least(2, default=1000)
    width: int = at_least(1, "at least 1 pixel", default=500)
    height: int = at_least(1, "at least 1 pixel", default=375)
    stored: Literal["jpeg", "pixels"] = "jpeg"  # jpeg: every image is decoded, pixels: none has to be


@dataclass
class DataConfig:
    """Images. ``timm``: whatever timm.data.create_dataset takes with random access, and shards."""

    source: Literal["procedural", "timm", "synthetic"] = "procedural"
    name: str = "procedural"  # what records and tables call the data; tells data sets apart, wherever they lie
    reader: str = ""  # timm's data set name, as in wds/NAME, hfds/NAME or torch/NAME; empty: a folder or a tar
    root: str | None = place("a folder")  # for named data sets and shards (wds/NAME): where they lie
    # Folder or tar with one folder a class; of named data sets the split's name; of shards that or a pattern of names.
    train: str | None = place(IMAGES)
    val: str | None = place(IMAGES)
    test: str | None = place(IMAGES)  # evaluated once, at the end of a run, and by dk-bench eval; null: none
    class_names: str | None = place("a file")  # of shards, whose labels are numbers: a class's name a line
    # Of shards: training images are in random order among the images of a few shards, on average so many or more, after
    # which come those of other shards; 0: among all.
    window: int = at_least(0, "0 or more", default=8192)
    size: int = at_least(1, "at least 1 pixel", default=224)  # side of the square the network sees
    # Evaluation: resize the shorter side to size / crop_pct, then crop the centre.
    crop_pct: float = checked(0.875, "above 0 and up to 1", lambda share: 0 < share <= 1)
    mean: list[float] = checked([0.485, 0.456, 0.406], "three numbers", lambda mean: len(mean) == 3)
    std: list[float] = checked(
        [0.229, 0.224, 0.225], "three positive numbers", lambda std: len(std) == 3 and min(std) > 0
    )
    batch_size: int = at_least(1, default=256)  # of one step, over all devices
    # Processes that decode and augment, of each device: four devices of a machine have four times as many.
    workers: int = at_least(0, "0 (load in the training process) or more", default=4)
    prefetch: int = at_least(1, default=2)  # batches that each of these has ready, or in the making
    # Decoded images: auto (files beside the runs, which all of them share; memory without a run), memory, off (decoded
    # in every epoch), or a folder for such files. Nothing of it changes what the network sees.
    cache: str = checked(
        "auto", "auto, memory, off, or a folder (./none for one that is named by such a word)", _is_cache
    )
    cache_gb: float = at_least(0, "gigabytes, 0 or more", default=2.0)  # a split that is larger, decoded, is not kept
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
