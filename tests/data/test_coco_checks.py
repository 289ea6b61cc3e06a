"""Annotation files in COCO's format: each fault is named before anything is trained on it."""

import json
import math
import warnings

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed, whose data set writes the files")

from dk_bench.data.coco import check_annotations
from dk_bench.data.procedural import SHAPES
from dk_bench.detection.scene_files import write_dataset
from dk_bench.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", train_images=12, val_images=6, size=64)


def annotations(folder, split="train"):
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def test_what_is_written_passes_without_a_word(folder):
    for split in ("train", "val"):
        with warnings.catch_warnings(action="error"):
            check_annotations(folder / f"annotations/{split}.json", folder / "images", SHAPES, decode=True)


def first(content, **change):
    content["annotations"][0].update(change)


def without_stars(content):
    star = content["categories"].pop(1)["id"]
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] != star]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "key 'images' is missing or no list"),
        (lambda c: c.update(annotations={}), "key 'annotations' is missing or no list, expected a list, found dict"),
        (lambda c: c["images"].append("x.png"), r"images\[12\] is 'x.png', expected an object"),
        (lambda c: c["images"][1].pop("width"), r"images\[1\] \(id 2\): missing key width"),
        (lambda c: c["annotations"][3].pop("area"), r"annotations\[3\] \(id 4\): missing key area"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "id 1 is there twice"),
        (lambda c: first(c, image_id=77), "annotation 1: no image has the id 77"),
        (lambda c: first(c, category_id=77), "annotation 1: no category has the id 77, expected one of 1, 2"),
        (without_stars, "no category 'star', found triangle, ring.*expected the classes triangle"),
        (lambda c: c["categories"].reverse(), "categories in the order fork.*expected the classes triangle"),
        (
            lambda c: (c["categories"].append({"id": 11, "name": "spiral"}), first(c, category_id=11)),
            "annotation 1: category 'spiral' is not in the list; expected the classes triangle, star",
        ),
        (lambda c: first(c, bbox=[0, 0, 5]), r"image 1 \(train_000000.png\), annotation 1, bbox \[0, 0, 5\]"),
        (lambda c: first(c, bbox=[0, 0, 5, math.nan]), r"bbox \[0, 0, 5, nan\].*expected four finite numbers"),
        (lambda c: first(c, area="big"), "area 'big'"),
        (lambda c: first(c, bbox=[9, 9, -5, 5]), r"bbox \[9, 9, -5, 5\].*none of them negative"),
        (
            lambda c: first(c, bbox=[64, 0, 5, 5]),
            r"image 1 \(train_000000.png\), annotation 1, bbox \[64, 0, 5, 5\]: outside the image, which is 64 x 64",
        ),
        (lambda c: first(c, bbox=[0, -9, 5, 5]), r"bbox \[0, -9, 5, 5\]: outside the image"),
        (lambda c: c["images"][4].update(file_name="lost.png"), "images/lost.png does not exist; image 5 of "),
        (lambda c: c["images"][4].update(height=0), "image 5: 64 x 0 is no size"),
        (lambda c: c["images"][4].update(height=65), "is 64 x 64; image 5 of .* says 64 x 65"),
    ],
)
def test_faults_of_annotations_are_named(folder, tmp_path, change, message):
    content = annotations(folder)
    change(content)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        check_annotations(path, folder / "images", SHAPES, decode=True)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not a JSON file"), ("[]", "expected an object, found a list")])
def test_what_is_no_annotation_file_is_named(tmp_path, text, message):
    path = tmp_path / "train.json"
    with pytest.raises(UserError, match=r"annotation file .*train\.json cannot be read: No such file"):
        check_annotations(path, tmp_path, SHAPES)
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        check_annotations(path, tmp_path, SHAPES)


def test_damaged_images_are_named(folder, tmp_path):
    content = annotations(folder)
    for image in content["images"]:
        data = (folder / "images" / image["file_name"]).read_bytes()
        (tmp_path / image["file_name"]).write_bytes(data[: len(data) // 2] if image["id"] == 3 else data)
    (tmp_path / "train.json").write_text(json.dumps(content))
    check_annotations(tmp_path / "train.json", tmp_path, SHAPES)  # only looks whether the files are there
    with pytest.raises(UserError, match="train_000002.png cannot be read: .*truncated"):
        check_annotations(tmp_path / "train.json", tmp_path, SHAPES, decode=True)
    (tmp_path / "train_000002.png").write_text("no image")
    with pytest.raises(UserError, match="train_000002.png cannot be read: not an image"):
        check_annotations(tmp_path / "train.json", tmp_path, SHAPES, decode=True)


def test_boxes_over_the_edge_and_of_no_area_are_counted_and_told_once(folder, tmp_path):
    content = annotations(folder)
    for number, box in enumerate([[-3, 2, 9, 9], [60, 2, 9, 9], [5, 5, 0, 9], [60, 60, 4.3, 4.3]]):
        content["annotations"][number]["bbox"] = box
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="2 boxes partly outside .*bbox .-3, 2, 9, 9.*1 boxes of no area") as told:
        check_annotations(path, folder / "images", SHAPES)
    assert len(told) == 1


def test_part_of_the_classes_can_be_asked_for(folder):
    path = folder / "annotations" / "train.json"
    with pytest.raises(UserError, match="is not in the list; expected the classes star, cross"):
        check_annotations(path, folder / "images", ["star", "cross"])
    check_annotations(path, folder / "images", ["star", "cross"], other_classes=True)
