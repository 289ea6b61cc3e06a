"""Images of detection: the pixels that all else sees, boxes that fit them, and sizes as they are annotated."""

import itertools
import os
import shutil

import numpy as np
import pytest
from detection_cases import edit, tiny_detection, tiny_file
from image_files import picture
from PIL import Image

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmcv.transforms import LoadImageFromFile as FromFile
from mmdet.registry import TRANSFORMS
from mmengine.registry import TRANSFORMS as ROOT

from dk_bench.analysis.objects import coco_objects
from dk_bench.analysis.pictures import open_pictures
from dk_bench.cli import main
from dk_bench.data import coco
from dk_bench.data.coco import check_annotations
from dk_bench.data.pixels import open_image
from dk_bench.detection.data import DetectionData
from dk_bench.detection.image_loading import LoadImage
from dk_bench.detection.mmengine_config import load_detection_config, use_scope
from dk_bench.detection.sheet import sheet
from dk_bench.errors import UserError
from dk_bench.training import run_folder, train

BOX = (4, 8, 20, 12)  # left, top, width, height of the bright part


def one_box(folder, orientation, stored=False, suffix="jpg", deep=False):
    """The tiny data with a first image of 48 x 32 whose only object is bright; the picture is stored as the orientation
    says. ``stored``: the annotation is of the picture as it is stored."""
    config = tiny_file(folder)
    pixels = np.zeros((32, 48), np.uint8)
    pixels[8:20, 4:24] = 250
    image = Image.fromarray(pixels.astype(np.uint16) << 8) if deep else Image.fromarray(pixels).convert("RGB")
    if not stored and orientation != 1:
        image = image.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = f"special.{suffix}"
    for split in ("train", "val"):
        image.save(folder / "tiny_data" / split / name, exif=exif)

        def change(content):
            first = content["images"][0]
            first |= {"file_name": name, "width": 48, "height": 32}
            others = [a for a in content["annotations"] if a["image_id"] != first["id"]]
            mine = {"id": 999, "image_id": first["id"], "category_id": 2, "bbox": list(BOX), "area": 240, "iscrowd": 0}
            content["annotations"] = [*others, mine]

        edit(folder / "tiny_data" / f"{split}.json", change)
    return load_detection_config(config, [f"output={folder / 'runs'}"])


def bright(pixels):
    """(left, top, width, height) of what is bright."""
    rows, columns = np.nonzero(pixels.mean(2) > 125)
    left, top = columns.min(), rows.min()
    return (left, top, columns.max() + 1 - left, rows.max() + 1 - top)


def item_of(images, name):
    return next(i for i in range(len(images)) if images.get_data_info(i)["img_path"].endswith(name))


# The transform


def test_mmdets_name_is_ours_and_mmcvs_stays():
    import dk_bench.registry  # noqa: F401

    assert TRANSFORMS.get("LoadImageFromFile") is LoadImage
    assert ROOT.get("LoadImageFromFile") is FromFile
    assert type(TRANSFORMS.build({"type": "InferencerLoader"}).from_file) is LoadImage  # what DetInferencer opens by


def test_ordinary_images_are_mmcvs_bits(tmp_path):
    ways = ({}, {"to_float32": True}, {"backend_args": {"backend": "local"}})
    for suffix, options in itertools.product(("jpg", "png", "bmp"), ways):
        path = str(picture(tmp_path / f"x.{suffix}", size=(61, 43)))
        ours, theirs = (kind(**options).transform({"img_path": path, "img_id": 3}) for kind in (LoadImage, FromFile))
        assert ours.keys() == theirs.keys() and ours["img"].dtype == theirs["img"].dtype, (suffix, options)
        assert np.array_equal(ours["img"], theirs["img"]) and ours["img"].flags["C_CONTIGUOUS"], (suffix, options)
        assert ours["ori_shape"] == theirs["ori_shape"] == ours["img_shape"] == (43, 61)


def test_bytes_from_elsewhere_are_opened_the_same(tmp_path):
    path = picture(tmp_path / "x.png")
    path.write_bytes(path.read_bytes()[:200])
    for options in ({}, {"backend_args": {"backend": "local"}}):
        with pytest.raises(UserError, match=r"image .*x\.png cannot be read"):
            LoadImage(**options).transform({"img_path": str(path)})


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("dict(type='LoadImageFromFile', color_type='unchanged')", "color_type is 'unchanged', expected 'color'"),
        ("dict(type='LoadImageFromFile', imdecode_backend='tifffile')", "imdecode_backend is 'tifffile'"),
        ("dict(type='LoadImageFromFile', ignore_empty=True)", "ignore_empty is True, expected False"),
        ("dict(type='mmengine.LoadImageFromFile')", "other pixels than in all else"),
        ("dict(type='LoadMultiChannelImageFromFiles')", "other pixels than in all else"),
    ],
)
def test_other_ways_to_read_are_refused(tmp_path, step, text):
    path = tiny_file(tmp_path)
    path.write_text(path.read_text().replace('dict(type="LoadImageFromFile")', step))
    with pytest.raises(UserError, match=rf"key 'val_dataloader\.dataset\.pipeline': .*{text}"):
        DetectionData(load_detection_config(path)).val_images  # noqa: B018


# Images and boxes


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("orientation", "stored"), [(3, False), (6, False), (6, True)])
def test_boxes_fit_whichever_way_the_image_lies(tmp_path, orientation, stored, suffix):
    config = one_box(tmp_path, orientation, stored, suffix)
    images = DetectionData(config).train_images
    info = images.get_data_info(item_of(images, f"special.{suffix}"))
    item = images.pipeline.transforms[0](info)
    found = np.array(bright(item["img"]))
    assert item["ori_shape"] == (32, 48) and np.abs(found - BOX).max() <= 1
    left, top, right, bottom = info["instances"][0]["bbox"]
    assert (left, top, right - left, bottom - top) == BOX
    expected = open_image(info["img_path"], (48, 32))
    assert np.array_equal(item["img"][..., ::-1], np.asarray(expected))
    path = tmp_path / "tiny_data" / "train.json"
    if orientation != 3 or suffix == "png":
        drawn = coco_objects(path, tmp_path / "tiny_data" / "train", 99).images
        assert any(np.array_equal(np.asarray(image()), np.asarray(expected)) for image in drawn)
        (seen, *_) = open_pictures(str(path), 48, 1, str(tmp_path / "tiny_data" / "train"))
        assert np.array_equal(np.asarray(seen.image), np.asarray(expected.resize((48, 48))))


def test_sixteen_bits_as_in_classification(tmp_path):
    config = one_box(tmp_path, 1, suffix="png", deep=True)
    images = DetectionData(config).val_images
    item = images.pipeline.transforms[0](images.get_data_info(item_of(images, "special.png")))
    assert item["img"].dtype == np.uint8 and set(np.unique(item["img"])) == {0, 250}
    assert bright(item["img"]) == BOX


def test_mmdets_loaders_give_the_same(tmp_path):
    """Under mmdet's runner, from the same configuration."""
    from mmdet.registry import DATASETS

    config = one_box(tmp_path, 6)
    ours = DetectionData(config).val_images
    use_scope(config.cfg)
    theirs = DATASETS.build(config.cfg.val_dataloader.dataset)
    index = item_of(ours, "special.jpg")
    assert np.array_equal(ours[index]["inputs"], theirs[index]["inputs"])
    assert theirs[index]["data_samples"].ori_shape == (32, 48)


def test_sheet_shows_the_image_upright(tmp_path):
    def page(orientation):
        folder = tmp_path / str(orientation)
        folder.mkdir()
        config = one_box(folder, orientation, suffix="png")
        return np.asarray(sheet(config, 1))

    assert np.array_equal(page(6), page(1))


# Sizes


def test_another_size_than_annotated_is_named_everywhere(tmp_path, monkeypatch, capsys):
    config = one_box(tmp_path, 6, suffix="png")
    data = tmp_path / "tiny_data"
    for split in ("train", "val"):
        edit(data / f"{split}.json", lambda content: content["images"][0].update(width=49))
    text = r"special\.png is 48 x 32; image 1 of .*train\.json says 49 x 32"
    with pytest.raises(UserError, match=text):
        check_annotations(data / "train.json", data / "train", ["disc", "box", "bar"])
    with pytest.raises(UserError, match=text.replace("train", "(train|val)")):
        train(config)
    assert not (run_folder(config) / "record.json").exists()
    monkeypatch.setattr(coco, "FEW", 3)  # as of data with many images: when they are read
    text = r"special\.png is 48 x 32; its annotation says 49 x 32"
    with pytest.raises(UserError, match=text):
        list(DetectionData(config).val_dataloader())
    with pytest.raises(UserError, match=text):
        sheet(config, 9)
    with pytest.raises(UserError, match=text):
        [opens() for opens in coco_objects(data / "train.json", data / "train", 99).images]
    with pytest.raises(UserError, match=text):
        open_pictures(str(data / "train.json"), 32, 9, str(data / "train"))
    assert main(["picture", str(tmp_path / "tiny.py"), "--out", str(tmp_path / "x.png"), "--rows", "9"]) == 2
    assert "its annotation says 49 x 32" in capsys.readouterr().err


def test_a_swapped_size_without_orientation_is_named(tmp_path):
    config = one_box(tmp_path, 1, suffix="png")
    edit(tmp_path / "tiny_data" / "val.json", lambda content: content["images"][0].update(width=32, height=48))
    with pytest.raises(UserError, match=r"special\.png is 48 x 32; image 1 of .*val\.json says 32 x 48"):
        DetectionData(config).val_images  # noqa: B018


def test_one_file_listed_twice_is_named(tmp_path):
    path = tiny_file(tmp_path)
    edit(
        tmp_path / "tiny_data" / "train.json",
        lambda content: content["images"][2].update(file_name="./000.png", width=64, height=64),
    )
    with pytest.raises(UserError, match=r"train\.json: images 1 and \d+ are one file, \./000\.png"):
        DetectionData(load_detection_config(path)).train_images  # noqa: B018


# Splits


@pytest.mark.parametrize("how", [os.symlink, shutil.copy])
def test_an_image_in_both_splits_is_named(tmp_path, how):
    config = tiny_detection(tmp_path)
    data = tmp_path / "tiny_data"
    (data / "val" / "000.png").unlink()
    how(data / "train" / "000.png", data / "val" / "000.png")
    text = "keys train_dataloader.dataset and val_dataloader.dataset: 1 of the 6 validation images are training images"
    with pytest.raises(UserError, match=rf"{text} too: .*val/000\.png \(val\) is .*train/000\.png \(train\)"):
        train(config)
    assert not (run_folder(config) / "record.json").exists()
    module = DetectionData(config)
    with pytest.raises(UserError, match=text):
        module.train_dataloader()
    assert len(module.val_dataloader()) == 3


def test_the_same_data_for_both_is_named(tmp_path):
    config = tiny_detection(
        tmp_path, "val_dataloader.dataset.ann_file=train.json", "val_dataloader.dataset.data_prefix.img=train/"
    )
    with pytest.raises(UserError, match="10 of the 12 validation images are training images too"):
        train(config)
