"""Checks of annotation files in COCO's format, before mmdet reads them: its own errors do not name what is wrong.

Faults that mmdet passes over, and then trains something else than was meant, are errors here: classes that the file
does not have, or in another order (mmdet numbers them as the file does), annotations of classes not listed.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.data.pixels import check_size, open_image
from dk_bench.errors import UserError
from dk_bench.reading.sequences import check_names

PARTS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),  # iscrowd: 0 where it is left out
    "categories": ("id", "name"),
}
FEW = 10_000  # images; of so many the sizes are compared before training, of more when they are read
SLACK = 0.5  # pixels by which a box may be outside before it is worth a word: files are written rounded


@dataclass(frozen=True)
class Counts:
    """What an annotation file holds. ``partly_outside``: boxes that reach over the image's edge; ``no_area``: boxes of
    no width or height, which mmdet leaves out in training. COCO itself has a few of both."""

    images: int
    empty_images: int
    annotations: int
    crowds: int
    partly_outside: int
    no_area: int


def check_annotations(
    path: str | Path,
    image_folder: str | Path,
    classes: Sequence[str],
    *,
    other_classes: bool = False,
    decode: bool = False,
) -> Counts:
    """Checks an annotation file, and that its images are there; what is there, for whoever wants to tell.

    ``classes`` are the names in order of the labels. ``other_classes`` allows annotations of classes not listed, which
    mmdet then leaves out. ``decode`` reads every image to its end (COCO: half an hour).

    Raises UserError that names the file and what is wrong: it is missing, not JSON, lacks a key; a class that is not
    there or stands in another order; an id twice; an annotation of an unknown image or class; a box that is not four
    numbers, wholly outside its image or of negative extent; an image that is missing or listed twice, of another size
    than stated (where there are up to `FEW` images, or with ``decode``) or, with ``decode``, damaged. One warning tells
    how many boxes are partly outside or of no area, and which is the first.
    """
    path = Path(path)
    content = _read(path)
    for part, keys in PARTS.items():
        _check_part(path, content, part, keys)
    _check_classes(path, content, check_names(classes, "argument 'classes'"), other_classes)
    _check_sizes(path, content["images"])
    images = {image["id"]: image for image in content["images"]}
    odd: dict[str, list[str]] = {"partly outside their image": [], "of no area": []}
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            raise UserError(f"{path}: annotation {annotation['id']}: no image has the id {annotation['image_id']}")
        if fault := _check_box(path, annotation, image):
            odd[fault].append(_name(annotation, image))
    _check_images(path, Path(image_folder), images.values(), decode)
    if told := [f"{len(names)} boxes {what} (the first: {names[0]})" for what, names in odd.items() if names]:
        warnings.warn(f"{path}: {', '.join(told)}; they are used as they are", stacklevel=2)
    used = {annotation["image_id"] for annotation in content["annotations"]}
    return Counts(
        images=len(images),
        empty_images=len(images.keys() - used),
        annotations=len(content["annotations"]),
        crowds=sum(bool(annotation.get("iscrowd")) for annotation in content["annotations"]),
        partly_outside=len(odd["partly outside their image"]),
        no_area=len(odd["of no area"]),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"annotation file {path} does not exist, expected a JSON file in COCO's format") from error
    except OSError as error:
        raise UserError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"annotation file {path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"annotation file {path}: expected an object, found a {type(content).__name__}")
    return content


def _check_part(path: Path, content: Mapping[str, Any], part: str, keys: Iterable[str]) -> None:
    """Returns a list of objects with these keys and ids of their own."""
    if not isinstance(content.get(part), list):
        found = type(content[part]).__name__ if part in content else "none"
        raise UserError(f"annotation file {path}: key '{part}' is missing or no list, expected a list, found {found}")
    seen = set()
    for number, item in enumerate(content[part]):
        if not isinstance(item, dict):
            raise UserError(f"{path}: {part}[{number}] is {item!r}, expected an object")
        if missing := [key for key in keys if key not in item]:
            raise UserError(f"{path}: {part}[{number}] (id {item.get('id')}): missing key {', '.join(missing)}")
        if isinstance(item["id"], bool) or not isinstance(item["id"], int):
            raise UserError(f"{path}: {part}[{number}]: id is {item['id']!r}, expected an integer")
        if item["id"] in seen:
            raise UserError(f"{path}: {part}[{number}]: id {item['id']} is there twice")
        seen.add(item["id"])


def _check_classes(path: Path, content: Mapping[str, Any], classes: list[str], other_classes: bool) -> None:
    names = {category["id"]: category["name"] for category in content["categories"]}
    listed = f"expected the classes {_some(classes)}"
    if missing := [name for name in classes if name not in names.values()]:
        raise UserError(f"{path}: no category {missing[0]!r}, found {_some(names.values())}; {listed}")
    if (order := [name for name in names.values() if name in classes]) != classes:
        raise UserError(f"{path}: categories in the order {_some(order)}, by which mmdet numbers them; {listed}")
    for annotation in content["annotations"]:
        if annotation["category_id"] not in names:
            known = ", ".join(map(str, names))
            raise UserError(
                f"{path}: annotation {annotation['id']}: no category has the id {annotation['category_id']!r}, "
                f"expected one of {known}"
            )
        if not other_classes and names[annotation["category_id"]] not in classes:
            name = names[annotation["category_id"]]
            raise UserError(
                f"{path}: annotation {annotation['id']}: category {name!r} is not in the list; {listed}, or "
                "other_classes=True in the configuration"
            )


def _check_sizes(path: Path, images: Iterable[Mapping[str, Any]]) -> None:
    for image in images:
        if not all(_is_finite(image[side]) and image[side] > 0 for side in ("width", "height")):
            raise UserError(f"{path}: image {image['id']}: {image['width']!r} x {image['height']!r} is no size")


def _check_box(path: Path, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> str | None:
    """Tells what is odd about a box but no error, or None."""
    box, where = annotation["bbox"], f"{path}: {_name(annotation, image)}"
    numbers = [*box, annotation["area"]] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(_is_finite(number) for number in numbers):
        raise UserError(f"{where}, area {annotation['area']!r}: expected four finite numbers and a fifth as area")
    left, top, width, height = box
    if width < 0 or height < 0 or annotation["area"] < 0:
        raise UserError(f"{where}, area {annotation['area']}: expected left, top, width, height, none of them negative")
    right, bottom = left + width, top + height
    if left >= image["width"] or top >= image["height"] or right <= 0 or bottom <= 0:
        raise UserError(f"{where}: outside the image, which is {image['width']} x {image['height']}")
    if width == 0 or height == 0:
        return "of no area"
    over = max(-left, -top, right - image["width"], bottom - image["height"])
    return "partly outside their image" if over > SLACK else None


def _check_images(path: Path, folder: Path, images: Collection[Mapping[str, Any]], decode: bool) -> None:
    numbers: dict[str, int] = {}
    for image in images:
        file = folder / str(image["file_name"])
        if not os.path.exists(file):
            raise UserError(f"image {file} does not exist; image {image['id']} of {path} names it")
        if (first := numbers.setdefault(os.path.normpath(file), image["id"])) != image["id"]:
            raise UserError(f"{path}: images {first} and {image['id']} are one file, {image['file_name']}")
        if decode or len(images) <= FEW:
            check_size(file, (image["width"], image["height"]), f"image {image['id']} of {path}")
        if decode:
            open_image(file)


def _name(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    return f"image {image['id']} ({image['file_name']}), annotation {annotation['id']}, bbox {annotation['bbox']}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _some(names: Iterable[str]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
