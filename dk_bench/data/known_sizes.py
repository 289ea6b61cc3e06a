"""How many images data sets have that are known by their names, for plans of runs on them where they do not lie."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSize:
    """Holds the number of images of a data set that a run sees, of its classes, and their usual width and height."""

    train: int
    val: int
    classes: int
    pixels: tuple[int, int]  # of most images, or their mean
    test: int = 0
    without_objects: int | None = None  # training images that detectors' ``filter_empty_gt`` leaves out of ``train``


#: By ``data.name`` of a classifier's configuration, or ``data_name`` of a detector's.
KNOWN_SIZES = {
    "imagenet": DataSize(1_281_167, 50_000, 1000, (470, 390)),  # ILSVRC 2012
    "coco": DataSize(117_266, 5_000, 80, (640, 480), without_objects=1_021),  # 2017
    "cifar10": DataSize(45_000, 5_000, 10, (32, 32), 10_000),  # a tenth of the training images held out
    "photos10": DataSize(5_000, 1_000, 10, (96, 96)),
    "photos10_dev": DataSize(4_000, 1_000, 10, (96, 96), 1_000),
    "photos_det": DataSize(394, 100, 4, (320, 240)),
}
