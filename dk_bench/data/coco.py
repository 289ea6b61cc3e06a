"""Annotation files in COCO's format: the one function that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError
from dk_bench.files import read_json

# The parts of a file and the keys that what stands in them has. ``iscrowd`` of an annotation is 0 where it is left out.
PARTS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
}


@dataclass(frozen=True)
class Annotations:
    """What an annotation file holds, in its order, as it stands there.

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
        return [each for each in self.annotations if not each.get("iscrowd") and _has_area(each.get("bbox"))]


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


def _has_area(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and box[2] > 0 and box[3] > 0
