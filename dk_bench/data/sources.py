"""Opens the images a configuration names, and names them."""

from __future__ import annotations

from pathlib import Path

from dk_bench.config import DataConfig
from dk_bench.data.images import FileImages, NamedImages
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.shifts import check_beyond, ranges
from dk_bench.errors import UserError

Images = FileImages | NamedImages | ShapeImages


def open_images(config: DataConfig, split: str) -> Images:
    """Returns the images of a split, ``train``, ``val`` or one of `dk_bench.data.shifts.held_out_sets`, as map-style
    data set of (RGB image, label) with ``classes``.

    Raises UserError for paths, files and settings that do not fit.
    """
    _check_places(config)
    if config.source == "timm":
        return NamedImages(config, split) if config.reader else FileImages(config, split)
    shapes = config.procedural
    stream, _, shift = split.partition("/")
    if shift:
        check_beyond(shapes, shift)
    count = {"train": shapes.train_images, "val": shapes.val_images, "test": shapes.test_images}[stream]
    same = {"size": config.size, "classes": shapes.classes, "seed": shapes.seed, "clutter": shapes.clutter}
    try:
        return ShapeImages(stream, count, **same, **ranges(shapes, shift))
    except ValueError as error:
        raise UserError(f"section 'data.procedural': {error}") from error


def data_name(config: DataConfig) -> str:
    """Tells what records call the data: ``name``, or, where a configuration leaves it at that of the procedural images
    and names others, the reader's name or the last parts of the path that both splits share."""
    if config.source == "procedural" or config.name != DataConfig.name:
        return config.name
    if config.reader:
        return config.reader
    val = Path(config.val or "").absolute()
    train = Path(config.train or config.val or "").absolute()
    return val.parent.name if train.parent == val.parent and val.parent.name else val.stem


def _check_places(config: DataConfig) -> None:
    """Raises UserError for settings of where images lie that the source would not heed."""
    if config.source == "procedural":
        reason = "but 'data.source' is 'procedural', which reads no files; expected data.source=timm with it"
        for key in ("train", "val", "test", "reader"):
            if value := getattr(config, key):
                raise UserError(reason, key=f"data.{key}", value=value)
    elif config.root is not None and not config.reader:
        reason = "but 'data.reader' is empty: only named data sets lie below it; expected data.train and data.val as "
        raise UserError(f"{reason}whole paths", key="data.root", value=config.root)
