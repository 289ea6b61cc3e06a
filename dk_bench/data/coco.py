"""Annotation files in COCO's format: read in one place, and checked before mmdet reads them: its errors name no fault.

Faults that mmdet passes over, and then trains something else than was meant, are errors here: classes that the file
does not have, or in another order (mmdet numbers them as the file does), annotations of classes not listed.
"""

import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.data.pixels import check_size, open_image
from dk_bench.errors import UserError, some
from dk_bench.files import read_json
from dk_bench.reading.sequences import check_names

# The parts of a file and the keys that what stands in them has. ``iscrowd`` of an annotation is 0 where it is left out.
PARTS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
}
NEEDED = PARTS | {"annotations": (*PARTS["annotations"], "bbox", "area")}
OUTSIDE, FLAT = "partly outside their image", "of no area"
FEW = 10_000  # images; of so many the sizes are compared before training, of more when they are read
SHOWN = 10  # classes
SLACK = 0.5  # pixels by which a box may be outside before it is worth a word: files are written rounded


@dataclass(frozen=True)
class Annotations:
    """Holds what an annotation file holds, in its order, as it stands there.

    Attributes:
        path: of the file.
        classes: id of every category -> its name; none where categories are not needed.
        images: id of every image -> what is said of it.
        annotations: objects, each of an image and a category that are there.
    """

    path: Path
    classes: dict[int, str]
    images: dict[int, dict[str, Any]]
    annotations: list[dict[str, Any]]

    def objects(self) -> list[dict[str, Any]]:
        """Returns the annotations that have a box with something in it and are no crowd."""
        found = [(each, each.get("bbox")) for each in self.annotations if not each.get("iscrowd")]
        return [each for each, box in found if isinstance(box, list) and len(box) == 4 and box[2] > 0 and box[3] > 0]


def read_annotations(path: str | Path, needed: Mapping[str, Sequence[str]] = PARTS) -> Annotations:
    """Reads an annotation file. ``needed``: the parts that it must have, and the keys of what stands in them.

    Raises UserError that names the file and what is wrong: it is missing, not JSON, lacks a part or a key; an id that
    is no integer or is there twice; an annotation of an unknown image or category.
    """
    content = read_json(path, "annotation file")
    if not isinstance(content, dict):
        raise UserError(f"annotation file {path}: expected an object, found a {type(content).__name__}")
    for part, keys in needed.items():
        _check_part(path, content, part, keys)
    classes = {category["id"]: category["name"] for category in content["categories"]} if "categories" in needed else {}
    images = {image["id"]: image for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        named = f"{path}: annotation {annotation.get('id', f'number {number}')}"
        if annotation["image_id"] not in images:
            raise UserError(f"{named}: no image has the id {annotation['image_id']}")
        if classes and annotation["category_id"] not in classes:
            known = ", ".join(map(str, classes))
            raise UserError(f"{named}: no category has the id {annotation['category_id']!r}, expected one of {known}")
    return Annotations(Path(path), classes, images, content["annotations"])


def check_annotations(
    path: str | Path,
    image_folder: str | Path,
    classes: Sequence[str],
    *,
    other_classes: bool = False,
    decode: bool = False,
) -> None:
    """Checks an annotation file, and that its images are there.

    ``classes`` are the names in order of the labels. ``other_classes`` allows annotations of classes not listed, which
    mmdet then leaves out. ``decode`` reads every image to its end (COCO: half an hour).

    Raises UserError that names the file and what is wrong: what `read_annotations` finds; a class that is not there or
    stands in another order; a box that is not four numbers, wholly outside its image or of negative extent; an image
    that is missing or listed twice, of another size than stated (where there are up to `FEW` images, or with
    ``decode``) or, with ``decode``, damaged. One warning counts boxes partly outside or of no area, naming the first.
    """
    held = read_annotations(path, NEEDED)
    _check_classes(held, check_names(classes, "argument 'classes'"), other_classes)
    for image in held.images.values():
        if not all(_is_finite(image[side]) and image[side] > 0 for side in ("width", "height")):
            raise UserError(f"{held.path}: image {image['id']}: {image['width']!r} x {image['height']!r} is no size")
    odd: dict[str, list[str]] = {OUTSIDE: [], FLAT: []}
    for annotation in held.annotations:
        image = held.images[annotation["image_id"]]
        if oddity := _check_box(held.path, annotation, image):
            odd[oddity].append(_name(annotation, image))
    _check_images(held.path, Path(image_folder), held.images.values(), decode)
    if told := [f"{len(names)} boxes {what} (the first: {names[0]})" for what, names in odd.items() if names]:
        warnings.warn(f"{path}: {', '.join(told)}; they are used as they are", stacklevel=2)


def _check_part(path: str | Path, content: Mapping[str, Any], part: str, keys: Sequence[str]) -> None:
    """Raises UserError where a part is no list of objects that have these keys, and ids of their own."""
    if not isinstance(content.get(part), list):
        found = type(content[part]).__name__ if part in content else "none"
        raise UserError(f"annotation file {path}: key '{part}' is missing or no list, expected a list, found {found}")
    seen = set()
    for number, item in enumerate(content[part]):
        if not isinstance(item, dict):
            raise UserError(f"{path}: {part}[{number}] is {item!r}, expected an object")
        if missing := [key for key in keys if key not in item]:
            raise UserError(f"{path}: {part}[{number}] (id {item.get('id')}): missing key {', '.join(missing)}")
        if "id" not in keys:
            continue
        if isinstance(item["id"], bool) or not isinstance(item["id"], int):
            raise UserError(f"{path}: {part}[{number}]: id is {item['id']!r}, expected an integer")
        if item["id"] in seen:
            raise UserError(f"{path}: {part}[{number}]: id {item['id']} is there twice")
        seen.add(item["id"])


def _check_classes(held: Annotations, classes: list[str], other_classes: bool) -> None:
    path, names = held.path, held.classes
    listed = f"expected the classes {some(classes, SHOWN)}"
    if missing := [name for name in classes if name not in names.values()]:
        raise UserError(f"{path}: no category {missing[0]!r}, found {some(names.values(), SHOWN)}; {listed}")
    if (order := [name for name in names.values() if name in classes]) != classes:
        raise UserError(f"{path}: categories in the order {some(order, SHOWN)}, by which mmdet numbers them; {listed}")
    for annotation in held.annotations:
        name = names[annotation["category_id"]]
        if not other_classes and name not in classes:
            what = f"category {name!r} is not in the list; {listed}, or other_classes=True in the configuration"
            raise UserError(f"{path}: annotation {annotation['id']}: {what}")


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
        return FLAT
    over = max(-left, -top, right - image["width"], bottom - image["height"])
    return OUTSIDE if over > SLACK else None


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
