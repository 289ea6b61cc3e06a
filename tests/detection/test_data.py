"""The procedural detection data against what it says of itself, and the checks of annotation files."""

import json
import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dk_bench.cli import main
from dk_bench.data.procedural import SHAPES, Pose, draw
from dk_bench.detection import scenes as scenes_module
from dk_bench.detection.scene_files import MARKER, ProceduralCoco, write_dataset
from dk_bench.detection.scenes import Scenes, run_lengths
from dk_bench.errors import UserError

SMALL = {"train_images": 12, "val_images": 6, "size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", **SMALL)


def annotations(folder, split="train"):
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


# Scenes


def test_an_image_depends_on_seed_split_and_index_alone():
    one, other = Scenes(8, 4, size=64), Scenes(40, 4, size=64)
    for index in (7, 2, 0):
        assert one.annotations("train", index) == other.annotations("train", index)
        assert np.array_equal(one.image("train", index), other.image("train", index))
    for split, seed in (("val", 0), ("train", 1)):
        again = Scenes(8, 4, size=64, seed=seed)
        assert not np.array_equal(one.image("train", 0), again.image(split, 0))
        assert one.annotations("train", 0) != again.annotations(split, 0)
    with pytest.raises(IndexError, match="image 4 of 4"):
        one.image("val", 4)


def test_pinned_scene():
    """Guards the data set itself: committed results are worth nothing once its images change."""
    found = Scenes(400, 100).annotations("train", 3)
    assert [a["category_id"] for a in found] == [10, 1, 2, 8]
    boxes = [[21, 103, 131, 140], [141, 14, 100, 177], [55, 10, 132, 135], [7, 193, 17, 20]]
    assert [a["bbox"] for a in found] == boxes
    assert [a["area"] for a in found] == pytest.approx([10917, 10969, 6217, 201], abs=4)  # room for edges
    assert found[1]["pose"] == {"center": [187.4176, 102.1895], "scale": 89.5662, "rotation": -2.9923, "bend": 0.7454}


def test_sizes_have_the_shares_they_should():
    # Half as large as they are meant to be, which is faster; areas are a quarter then.
    scenes, counts = Scenes(120, 1, size=128), dict.fromkeys(("small", "medium", "large"), 0)
    for index in range(120):
        for annotation in scenes.annotations("train", index):
            if not annotation["iscrowd"]:
                area = 4 * annotation["area"]
                counts["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1
                assert annotation["visible"] > 0.45
    total = sum(counts.values())
    assert total > 300
    for size in scenes_module.SIZES:
        deviation = math.sqrt(size.share * (1 - size.share) / total)
        assert abs(counts[size.name] / total - size.share) < 4 * deviation, counts


def test_shares_of_sizes_are_a_setting(tmp_path):
    """Folders that were written before it was one stay theirs: only other shares are marked."""
    scenes = Scenes(40, 1, size=64, shares=(0, 1, 0))
    found = [a for index in range(40) for a in scenes.annotations("train", index) if not a["iscrowd"]]
    assert len(found) > 60 and all(32**2 <= 16 * a["area"] < 96**2 for a in found)
    written = {}
    for name, more in (("as ever", {}), ("other", {"shares": [0, 0.5, 0.5]})):
        folder = write_dataset(tmp_path / name, train_images=1, val_images=1, size=64, **more)
        written[name] = json.loads((folder / MARKER).read_text())
        assert write_dataset(folder, train_images=1, val_images=1, size=64, **more) == folder
    assert "shares" not in written["as ever"] and written["other"]["shares"] == [0, 0.5, 0.5]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.6, 0.1), (-0.5, 1, 0.5), ("a", "b", "c"), 1, (True, 0, 0)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(UserError, match=r"procedural data: shares is .*, expected 3 numbers from 0 that sum to 1"):
        Scenes(8, 4, size=64, shares=shares)


def test_empty_images_and_crowds_are_where_they_should_be():
    scenes = Scenes(30, 1, size=64)
    found = [scenes.annotations("train", index) for index in range(30)]
    assert [i for i in range(30) if not found[i]] == [9, 19, 29]
    assert [i for i in range(30) if any(a["iscrowd"] for a in found[i])] == [2, 7, 12, 17, 22, 27]
    assert all(1 <= len(f) <= scenes_module.MAX_OBJECTS + 1 for i, f in enumerate(found) if i % 10 != 9)
    assert {a["category_id"] for f in found for a in f} == set(range(1, len(SHAPES) + 1))


def test_area_and_box_are_of_the_visible_pixels():
    """Against the image itself: each shape drawn alone on the same ground, and those in front of it taken away."""
    scenes, hidden = Scenes(16, 1, size=128), 0
    for index in range(16):
        items, found = scenes.items("train", index), scenes.annotations("train", index)
        covers = [np.any([_cover(pose, 128) for pose in item.poses], axis=0) for item in items]
        for number, annotation in enumerate(found):
            seen = covers[number] & ~np.any([*covers[number + 1 :], np.zeros((128, 128), bool)], axis=0)
            assert abs(annotation["area"] - seen.sum()) <= max(4, (0.2 if items[number].crowd else 0.06) * seen.sum())
            left, top, width, height = annotation["bbox"]
            rows, columns = np.nonzero(seen)
            assert abs(columns.min() - left) <= 1 and abs(columns.max() + 1 - left - width) <= 1
            assert abs(rows.min() - top) <= 1 and abs(rows.max() + 1 - top - height) <= 1
            hidden += annotation.get("visible", 1) < 0.9
    assert hidden >= 3  # or nothing was tested


def _cover(pose, size):
    """The pixels that a shape covers by more than half, told from their colours: bool (size, size)."""
    alone, ground = (
        np.asarray(draw(poses, size, np.random.default_rng(0), clutter=0)).mean(axis=2) for poses in ([pose], [])
    )
    difference = alone - ground  # the ink is lighter than the ground, everywhere by the same but for noise
    return difference > np.median(difference[difference > 50]) / 2


def test_area_of_one_object_is_its_polygons():
    scenes = Scenes(40, 1)
    for index in range(0, 40, 4):
        for item, annotation in zip(scenes.items("train", index), scenes.annotations("train", index), strict=True):
            if not item.crowd and annotation["visible"] == 1:
                points = item.poses[0].contour()
                x, y = points.T
                area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
                length = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
                assert abs(annotation["area"] - area) < 0.4 * length
                # What the annotation says of the pose draws the same shape.
                pose = Pose(
                    item.poses[0].label, tuple(annotation["pose"]["center"]), *list(annotation["pose"].values())[1:]
                )
                np.testing.assert_allclose(pose.contour(), points, atol=0.05)


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) < 0.5, np.ones((3, 4), bool), np.zeros((3, 4), bool), np.eye(4, dtype=bool)):
        encoded = coco_mask.frPyObjects(run_lengths(mask), *mask.shape)
        assert np.array_equal(coco_mask.decode(encoded), mask)
        assert encoded == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train_images": 0}, "train_images is 0"),
        ({"size": 63}, "size is 63, expected an integer from 64"),
        ({"classes": 11}, "classes is 11, expected an integer from 1 and up to 10"),
        ({"bend": 2}, "bend is 2"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"val_images": True}, "val_images is True"),
    ],
)
def test_settings_out_of_range_are_named(change, named, tmp_path):
    with pytest.raises(UserError, match=named):
        write_dataset(tmp_path / "data", **{**SMALL, **change})
    assert not any(tmp_path.iterdir())


# Files


def test_files_hold_the_scenes(folder):
    scenes = Scenes(**SMALL)
    for split, count in (("train", 12), ("val", 6)):
        content = annotations(folder, split)
        assert len(content["images"]) == count
        by_image = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        for index, image in enumerate(content["images"]):
            pixels = np.asarray(Image.open(folder / "images" / image["file_name"]))
            assert np.array_equal(pixels, np.asarray(scenes.image(split, index)))
            found = [{k: v for k, v in a.items() if k not in ("id", "image_id")} for a in by_image[image["id"]]]
            assert found == scenes.annotations(split, index)
    ids = [a["id"] for split in ("train", "val") for a in annotations(folder, split)["annotations"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))


def test_crowds_are_masks_pycocotools_reads(folder):
    coco = COCO(str(folder / "annotations" / "train.json"))
    crowds = coco.loadAnns(coco.getAnnIds(iscrowd=True))
    assert [coco.loadImgs(crowd["image_id"])[0]["file_name"][6:-4] for crowd in crowds] == ["000002", "000007"]
    for crowd in crowds:
        mask = coco.annToMask(crowd)
        assert mask.sum() == crowd["area"]
        assert coco_mask.toBbox(coco.annToRLE(crowd)).tolist() == crowd["bbox"]


def test_written_once_and_never_over_other_data(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_dataset(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UserError, match="holds procedural data of .*'seed': 0.*, expected .*'seed': 1"):
        write_dataset(folder, **SMALL, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="holds no procedural data and is not empty"):
        write_dataset(tmp_path / "mine", **SMALL)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/.*cannot be (read|written)"):
        write_dataset(tmp_path / "file", **SMALL)


def _write_slowly(path, started):
    image = Scenes.image
    Scenes.image = lambda *args: (started.set(), time.sleep(0.05), image(*args))[-1]
    write_dataset(path, **SMALL)


def test_killed_writer_leaves_no_data_and_is_made_good(tmp_path, folder):
    path = tmp_path / "data"
    context = multiprocessing.get_context("fork")
    started = context.Event()
    writer = context.Process(target=_write_slowly, args=(path, started))
    writer.start()
    assert started.wait(60)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert not path.exists() and any(p.suffix == ".tmp" for p in tmp_path.iterdir())  # half of it lies aside
    write_dataset(path, **SMALL)
    assert not any(p.suffix == ".tmp" for p in tmp_path.iterdir())
    assert annotations(path) == annotations(folder) and (path / MARKER).exists()


def test_two_writers_at_once_do_not_clash(tmp_path, folder):
    path = tmp_path / "data"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_slowly, args=(path, context.Event())) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert annotations(path, "val") == annotations(folder, "val")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".data.lock", "data"]


def test_mmdet_builds_it_by_its_name_and_writes_what_is_absent(tmp_path):
    from mmdet.registry import DATASETS

    settings = {"type": "dk_bench.ProceduralCoco", "data_root": str(tmp_path / "data")}
    settings["scenes"] = {**SMALL, "classes": 4}
    train, val = DATASETS.build(settings), DATASETS.build(settings | {"split": "val", "test_mode": True})
    assert (len(train), len(val)) == (12, 6)
    assert train.metainfo["classes"] == SHAPES[:4] and len(train.metainfo["palette"]) == 4
    filtered = DATASETS.build(settings | {"filter_cfg": {"filter_empty_gt": True}})
    assert len(filtered) == 11  # image 9 has no object
    item = train[2]
    assert any(instance["ignore_flag"] for instance in item["instances"]) and os.path.exists(item["img_path"])
    content = annotations(tmp_path / "data")
    boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == item["img_id"]]
    assert [i["bbox"] for i in item["instances"]] == [[x, y, x + w, y + h] for x, y, w, h in boxes]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data_root": ""}, "data_root is ''"),
        ({"split": "test"}, "split is 'test', expected one of train, val"),
        ({"scenes": {"sise": 64}}, "unknown setting 'sise'"),
    ],
)
def test_data_set_names_bad_settings(settings, named, tmp_path):
    with pytest.raises(UserError, match=named):
        ProceduralCoco(**{"data_root": str(tmp_path / "d"), **settings})


# The picture


def test_picture_of_a_detection_configuration(tmp_path, capsys):
    config = tmp_path / "shapes.py"
    scenes = {"train_images": 4, "val_images": 1, "size": 64}
    dataset = {"type": "dk_bench.ProceduralCoco", "data_root": str(tmp_path / "data"), "scenes": scenes}
    config.write_text(
        f"train_dataloader = dict(dataset={dataset | {'pipeline': [{'type': 'Nothing'}]}!r})\n"
        "model, val_dataloader, train_cfg, optim_wrapper = dict(), dict(), dict(max_epochs=1), dict()"
    )
    out = tmp_path / "sheet.png"
    assert main(["picture", str(config), "--output", str(out), "--rows", "1"]) == 0
    page = np.asarray(Image.open(out)).reshape(-1, 3)
    assert (page == (255, 255, 0)).all(axis=1).sum() > 100 and (page == (255, 0, 0)).all(axis=1).sum() > 40
    assert main(["picture", str(config), "train_dataloader.dataset.split=test"]) == 2
    assert "split is 'test'" in capsys.readouterr().err
    assert main(["picture", str(tmp_path / "none.py")]) == 2
    assert "none.py" in capsys.readouterr().err
