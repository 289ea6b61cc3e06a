"""Objects on images, with what is known of each: of the procedural set, or of a file in COCO's format."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from dk_bench.config import DataConfig
from dk_bench.data.coco import read_annotations
from dk_bench.data.pixels import open_image
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError

BATCH = 32  # images that a model sees at once
POSE = ("rotation", "bend")


@dataclass(frozen=True)
class Objects:
    """M objects on images. A scale is a share of the image's shorter side: half of the object's unbent extent, or of
    annotations in COCO's format the root of its box's area."""

    images: list[Callable[[], Image.Image]]  # each opens an RGB image
    image: np.ndarray  # (M,), index of each object's image, rising
    label: np.ndarray  # (M,), index of its class
    classes: list[str]  # their names
    centre: np.ndarray  # (M, 2), middle of its box, (y, x) as shares of the image's height and width
    scale: np.ndarray  # (M,)
    pose: dict[str, np.ndarray]  # (M,) each, radians: rotation and bend, where they are known
    source: str  # what the objects are, in words

    def __len__(self) -> int:
        return len(self.image)


def procedural_objects(data: DataConfig, count: int) -> Objects:
    """Returns the shapes of the first ``count`` validation images, drawn by a model's settings, on none of which it was
    trained. Raises UserError for settings out of range."""
    shapes = dataclasses.replace(data.procedural, val_images=count)
    data = dataclasses.replace(data, source="procedural", procedural=shapes, reader="", train=None, val=None)
    images = open_images(data, "val")
    known = [images.metadata(index) for index in range(count)]
    small = 3 * count * images.size**2 <= 1e9 * data.cache_gb  # then drawn once, for every model
    draw = lru_cache(None if small else 0)(lambda index: images[index][0])
    return Objects(
        images=[partial(draw, index) for index in range(count)],
        image=np.arange(count),
        label=np.array([each["label"] for each in known]),
        classes=images.classes,
        centre=_middles([each["box"] for each in known]) / images.size,
        scale=np.array([each["scale"] for each in known]) / images.size,
        pose={name: np.array([each[name] for each in known]) for name in POSE},
        source=f"{count} procedural validation images of {images.size} pixels, one shape each",
    )


def coco_objects(path: str | Path, folder: str | Path | None, count: int) -> Objects:
    """Returns up to ``count`` objects of a file in COCO's format, no crowds, drawn evenly from all by a fixed seed.

    ``folder`` holds the images; None: ``images`` beside the file's folder. The pose is known where every annotation
    has one, as in the procedural detection data.

    Raises UserError that names the file and what is missing in it, and for an image that is not there.
    """
    path = Path(path)
    held = read_annotations(path)
    folder = Path(folder) if folder else path.parent.parent / "images"
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder, expected the images that {path} names")
    boxed = held.objects()
    if not boxed:
        raise UserError(f"annotation file {path}: no boxes (of {len(held.annotations)} annotations)")
    chosen = np.random.default_rng(0).permutation(len(boxed))[:count]
    found = sorted((boxed[index] for index in chosen), key=lambda each: (each["image_id"], each["id"]))
    labels = {number: index for index, number in enumerate(held.classes)}
    used = list(dict.fromkeys(each["image_id"] for each in found))
    boxes = np.array([each["bbox"] for each in found], dtype=float)
    sizes = np.array([[held.images[each["image_id"]][side] for side in ("height", "width")] for each in found])
    return Objects(
        images=[
            partial(open_image, folder / each["file_name"], (each["width"], each["height"]))
            for each in map(held.images.get, used)
        ],
        image=np.array([used.index(each["image_id"]) for each in found]),
        label=np.array([labels[each["category_id"]] for each in found]),
        classes=list(map(str, held.classes.values())),
        centre=_middles(boxes) / sizes,
        scale=np.sqrt(boxes[:, 2] * boxes[:, 3]) / sizes.min(1),
        pose=_poses([each.get("pose") for each in found]),
        source=f"{len(found)} of the {len(boxed)} objects of {path.name} on {len(used)} images",
    )


def whole_image(data: DataConfig, size: int | None = None) -> T.Compose:
    """Returns an image to what the network sees, as in evaluation but without the crop, so that no object is lost: the
    shorter side becomes ``size`` pixels, or what it is in evaluation."""
    side = size or math.floor(data.size / data.crop_pct)
    return T.Compose([T.Resize(side), T.ToTensor(), T.Normalize(data.mean, data.std)])


def batches(objects: Objects, transform: Callable[[Image.Image], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Gives all images in order, as (N, 3, H, W) of one size, each time with the index of the first."""
    batch: list[Tensor] = []
    for index, opened in enumerate(objects.images):
        image = transform(opened())
        if batch and (len(batch) == BATCH or image.shape != batch[0].shape):
            yield index - len(batch), torch.stack(batch)
            batch = []
        batch.append(image)
    yield len(objects.images) - len(batch), torch.stack(batch)


def _middles(boxes: ArrayLike) -> np.ndarray:
    """Returns the middles (y, x) of boxes (left, top, width, height): (M, 2)."""
    left, top, width, height = np.asarray(boxes, dtype=float).T
    return np.stack([top + height / 2, left + width / 2], axis=1)


def _poses(stated: list[Any]) -> dict[str, np.ndarray]:
    """Returns the poses that annotations state, or none where one states none."""
    if not all(isinstance(pose, dict) and pose.keys() >= set(POSE) for pose in stated):
        return {}
    return {name: np.array([pose[name] for pose in stated]) for name in POSE}
