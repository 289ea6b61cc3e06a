"""Inputs of the study of receptive fields: images with the place and outline of an object."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dk_bench.config import DataConfig
from dk_bench.data.coco import read_annotations
from dk_bench.data.pixels import open_image
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.scan import images_below
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError

OWN = "own"  # in place of a source: the images that the models were validated on
SCALE = 1.5


@dataclass(frozen=True)
class Picture:
    """A square RGB image and, where it is known, its object."""

    name: str  # of the file or, for procedural images, class and number
    image: Image.Image  # RGB, side x side pixels
    centre: tuple[float, float]  # (y, x) of the object's box, pixels; the image's middle where no object is known
    mask: np.ndarray | None  # (side, side) of bool, the object; None where none is known

    def transformed(self, kind: str) -> "Picture":
        """Returns the picture "rotated" by 90 degrees to the left, or "scaled" by 1.5 about the object's centre."""
        y, x = self.centre
        image = moved(np.asarray(self.image), kind, self.centre)
        mask = None if self.mask is None else moved(self.mask, kind, self.centre)
        centre = (len(image) - 1 - x, y) if kind == "rotated" else self.centre
        return Picture(self.name, Image.fromarray(image), centre, mask)


def moved(values: np.ndarray, kind: str, centre: tuple[float, float]) -> np.ndarray:
    """Returns an image, mask or map (H, W, ...) "rotated" by 90 degrees to the left, or "scaled" by 1.5 about a place
    (y, x), which stays where it is, and cut to its size of before: a map then in float32."""
    if kind == "rotated":
        return np.rot90(values)
    if kind != "scaled":
        raise ValueError(f"kind: expected rotated or scaled, got {kind!r}")
    y, x = centre[0] + 0.5, centre[1] + 0.5  # Pillow counts from pixels' corners
    matrix = (1 / SCALE, 0, x - x / SCALE, 0, 1 / SCALE, y - y / SCALE)
    image = Image.fromarray(values)
    how = Image.Resampling.NEAREST if values.dtype == bool else Image.Resampling.BILINEAR
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix, resample=how))


def open_pictures(
    source: str, side: int, count: int, root: str | None = None, data: DataConfig | None = None
) -> list[Picture]:
    """Returns the first ``count`` pictures of a source, resized to side x side.

    Args:
        source: "procedural" (one shape an image, its outline known); "own" (the same, drawn as ``data`` has it);
            "random" (noise, every value as likely); an annotation file in COCO's format (an image's largest object that
            is no crowd; images without are passed over); an image; or a folder of images, at any depth.
        root: the folder of the annotation file's images; None: ``images`` beside its own folder, or its own folder.
        data: of "own": the settings of the procedural images that models were validated on.

    Raises:
        UserError: nothing is there, or a file cannot be read; the message names it.
    """
    if count < 1:
        raise UserError(f"--count is {count}, expected at least 1")
    if source == OWN:
        if data is None or data.source != "procedural":
            raise UserError(f"--images {OWN}: expected checkpoints of models trained on procedural images")
        shapes = replace(data.procedural, val_images=count)
        return [*_of_shapes(open_images(replace(data, procedural=shapes, size=side), "val"), count)]
    if source == "procedural":
        return [*_of_shapes(ShapeImages("val", count, size=side), count)]
    if source == "random":
        return [*_random(side, count)]
    path = Path(source)
    if not path.exists():
        expected = "procedural, own, random, an image, a folder, or COCO's JSON"
        raise UserError(f"--images {source}: does not exist; expected {expected}")
    if path.suffix.lower() == ".json":
        return [*_coco(path, side, count, root)]
    folder, names = path.parent, [path.name]
    if path.is_dir():
        folder, names = path, images_below(path, "--images")[:count]
    middle = _middle((0, 0, side, side))
    return [Picture(name, open_image(folder / name).resize((side, side)), middle, None) for name in names]


def check_inside(position: tuple[float, float], height: int, width: int) -> None:
    """Raises UserError for a place (y, x), pixels, outside of an image."""
    y, x = position
    if not (0 <= y < height and 0 <= x < width):
        raise UserError(f"--position {y:g},{x:g}: outside the image, which is {height} pixels high and {width} wide")


def _random(side: int, count: int) -> Iterator[Picture]:
    rng = np.random.default_rng(0)
    for index in range(count):
        noise = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
        yield Picture(f"random-{index}", Image.fromarray(noise), _middle((0, 0, side, side)), None)


def _of_shapes(images: ShapeImages, count: int) -> Iterator[Picture]:
    for index in range(count):
        known = images.metadata(index)
        mask = _outlined(images.size, [images.pose(index).contour()])
        yield Picture(f"{known['class']}-{index}", images[index][0], _middle(known["box"]), mask)


def _coco(path: Path, side: int, count: int, root: str | None) -> Iterator[Picture]:
    held = read_annotations(path, {"images": ("id", "file_name"), "annotations": ("image_id",)})
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in held.objects():
        objects.setdefault(annotation["image_id"], []).append(annotation)
    images = [image for image in held.images.values() if image["id"] in objects][:count]
    if not images:
        raise UserError(f"--images {path}: no image with a box that is no crowd")
    beside = path.parent.parent / "images"
    folder = Path(root or (beside if beside.is_dir() else path.parent))
    for image in images:
        stated = (image.get("width"), image.get("height"))
        picture = open_image(folder / image["file_name"], None if None in stated else stated)
        shrink = np.array([side / picture.width, side / picture.height])
        largest = max(objects[image["id"]], key=lambda annotation: annotation["bbox"][2] * annotation["bbox"][3])
        left, top, width, height = largest["bbox"]
        right, bottom = left + width, top + height
        parts = largest.get("segmentation")
        if not isinstance(parts, list) or not parts:
            parts = [[left, top, right, top, right, bottom, left, bottom]]
        mask = _outlined(side, [np.array(part, float).reshape(-1, 2) * shrink for part in parts])
        middle = _middle(np.array(largest["bbox"], float) * np.tile(shrink, 2))
        yield Picture(str(image["file_name"]), picture.resize((side, side)), middle, mask)


def _middle(box: Any) -> tuple[float, float]:
    left, top, width, height = box
    return float(top + height / 2 - 0.5), float(left + width / 2 - 0.5)


def _outlined(side: int, outlines: list[np.ndarray]) -> np.ndarray:
    """Returns the inside of polygons of (x, y), pixels, as (side, side) of bool."""
    canvas = Image.new("1", (side, side))
    for outline in outlines:
        ImageDraw.Draw(canvas).polygon(outline.ravel().tolist(), fill=1)
    return np.array(canvas)
