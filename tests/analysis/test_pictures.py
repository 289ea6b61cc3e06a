"""Images with their objects, and models, as receptive fields are looked at with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dk_bench.analysis.pictures import Picture, open_pictures
from dk_bench.analysis.subjects import open_model
from dk_bench.data.pixels import open_image
from dk_bench.errors import UserError


def test_transformed_pictures_keep_place_and_mask():
    (picture,) = open_pictures("procedural", 48, 1)
    for kind in ("rotated", "scaled"):
        moved = picture.transformed(kind)
        y, x = map(round, moved.centre)
        before = picture.mask[tuple(map(round, picture.centre))]
        assert moved.mask[y, x] == before and moved.image.size == (48, 48)
    assert np.rot90(picture.mask).sum() == picture.transformed("rotated").mask.sum()
    assert np.array_equal(np.rot90(np.asarray(picture.image)), np.asarray(picture.transformed("rotated").image))
    with pytest.raises(ValueError, match="kind: expected rotated or scaled"):
        picture.transformed("mirrored")


@pytest.fixture
def coco(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (90, 20, 200)).save(tmp_path / "images" / name)
    annotations = [
        {"image_id": 1, "bbox": [0, 0, 4, 4], "iscrowd": 0},
        {"image_id": 1, "bbox": [20, 10, 10, 5], "segmentation": [[20, 10, 30, 10, 30, 15, 20, 15]]},
        {"image_id": 1, "bbox": [0, 0, 40, 20], "iscrowd": 1},
    ]
    images = [{"id": 2, "file_name": "b.png"}, {"id": 1, "file_name": "a.png"}]
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.mark.parametrize("outlined", [True, False])
def test_coco_pictures(coco, outlined):
    """The largest object that is no crowd, in the resized picture's pixels; the image without objects is left out."""
    if not outlined:
        content = json.loads(coco.read_text())
        del content["annotations"][1]["segmentation"]
        coco.write_text(json.dumps(content))
    (picture,) = open_pictures(str(coco), 80, 5)
    assert picture.name == "a.png" and picture.image.size == (80, 80)
    assert picture.centre == pytest.approx((12.5 * 4 - 0.5, 25 * 2 - 0.5))
    rows, columns = np.nonzero(picture.mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 60, 40, 60)


def test_random_pictures():
    first, second = open_pictures("random", 32, 2)
    assert (first.name, first.centre, first.mask) == ("random-0", (15.5, 15.5), None)
    values = np.asarray(first.image)
    assert values.shape == (32, 32, 3) and values.mean() == pytest.approx(127.5, abs=5)
    assert (values != np.asarray(second.image)).any()
    assert (values == np.asarray(open_pictures("random", 32, 1)[0].image)).all()


def test_pictures_of_a_folder_keep_their_names_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "x.png")
    assert [picture.name for picture in open_pictures(str(tmp_path), 8, 5)] == ["a/x.png", "b/x.png"]


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGBA", "CMYK"])
def test_files_of_every_mode(tmp_path, mode):
    """Left black, right light, whatever a file keeps its colours in."""
    shades = np.repeat([[0] * 8 + [200] * 8], 4, axis=0).astype(np.uint8)
    image = Image.fromarray(shades)
    image = Image.fromarray(shades.astype(np.uint16) * 256) if mode == "I;16" else image.convert("RGB").convert(mode)
    path = tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(path)
    found = np.asarray(open_image(path)).astype(int)
    light = 255 if mode == "1" else 200
    assert found.shape == (4, 16, 3) and found[:, 2].max() < 20 and np.abs(found[:, -2] - light).max() < 20


def test_annotations_without_a_box_are_passed_over(coco):
    content = json.loads(coco.read_text())
    del content["annotations"][1]["bbox"]
    content["annotations"].append({"image_id": 1, "bbox": [20, 10, 0, 0]})
    coco.write_text(json.dumps(content))
    (picture,) = open_pictures(str(coco), 80, 5)
    assert picture.centre == pytest.approx((7.5, 3.5))  # of the box of 4 x 4


def test_files_that_are_no_pictures(tmp_path, coco):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in it"):
        open_pictures(str(tmp_path / "empty"), 32, 1)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken.png cannot be read"):
        open_pictures(str(tmp_path / "broken.png"), 32, 1)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="list.json: expected an object, found a list"):
        open_pictures(str(tmp_path / "list.json"), 32, 1)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(UserError, match="a.png cannot be read"):
        open_pictures(str(coco), 32, 1)


def test_checkpoints_know_their_images(tmp_path):
    from training_cases import tiny

    from dk_bench.training import run_folder, train

    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0")
    train(config)
    subject = open_model(str(run_folder(config) / "last.ckpt"))
    assert (subject.name, subject.side, subject.trained) == ("test_resnetdw_dk (seed 0)", 32, True)
    picture = Picture("grey", Image.new("RGB", (32, 32), (128, 128, 128)), (15.5, 15.5), None)
    expected = (128 / 255 - np.array(subject.mean)) / np.array(subject.std)
    assert subject.tensor(picture)[:, 3, 4].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
