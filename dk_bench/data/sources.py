"""Opens the images a configuration names."""

from __future__ import annotations

from dk_bench.config import DataConfig
from dk_bench.data.images import FileImages, NamedImages
from dk_bench.data.procedural import ShapeImages
from dk_bench.errors import UserError

Images = FileImages | NamedImages | ShapeImages


def open_images(config: DataConfig, split: str) -> Images:
    """The images of a split, ``train`` or ``val``, as map-style data set of (RGB image, label) with ``classes``.

    Raises UserError for paths, files and settings that do not fit.
    """
    if config.source == "timm":
        return NamedImages(config, split) if config.reader else FileImages(config, split)
    shapes = config.procedural
    try:
        return ShapeImages(
            split,
            shapes.train_images if split == "train" else shapes.val_images,
            size=config.size,
            classes=shapes.classes,
            seed=shapes.seed,
            scale=tuple(shapes.scale),
            bend=shapes.bend,
            rotation=shapes.rotation,
            clutter=shapes.clutter,
        )
    except ValueError as error:
        raise UserError(f"section 'data.procedural': {error}") from error
