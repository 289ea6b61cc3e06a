"""Checksums tell data from other data, and a run that goes on does so on its own."""

from __future__ import annotations

import json

import pytest
import torch
from image_files import data_config, pack, picture, splits
from training_cases import STEPS, PowerCut, tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.data import checksum as checksum_module
from dk_bench.data.checksum import checksum
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError
from dk_bench.runs.record import read_record
from dk_bench.training import run_folder, train


def of(config, split="val"):
    return checksum(open_images(config, split))


@pytest.mark.parametrize("many", [100_000, 2])
def test_folder_and_tar_are_the_same_data(tmp_path, monkeypatch, many):
    """Also of a split that is too large to be read as a whole."""
    monkeypatch.setattr(checksum_module, "MANY", many)
    monkeypatch.setattr(checksum_module, "SAMPLE", 3)
    config = data_config(splits(tmp_path / "a"))
    moved = data_config(splits(tmp_path / "b"), f"data.val={pack(tmp_path / 'b' / 'val')}")
    before = of(config)
    assert before == of(config) == of(moved) and before != of(config, "train")
    image = tmp_path / "a" / "val" / "bee" / "1.png"  # which is one of the sample
    picture(image, seed=77)
    assert of(config) != before
    picture(image, seed=1101)
    assert of(config) == before
    image.rename(image.parents[1] / "ant" / "9.png")
    assert of(config) != before


def test_classes_count(tmp_path):
    config = data_config(splits(tmp_path))
    before = of(config)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "bug")
    assert of(config) != before


def test_number_of_large_data_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(checksum_module, "MANY_BYTES", 10)
    config = data_config(splits(tmp_path, images=90))
    before = of(config)
    (tmp_path / "val" / "ant" / "7.png").unlink()
    assert of(config) != before


@pytest.mark.parametrize("change", ["seed=1", "bend=0.7", "rotation=1", "clutter=5", "scale=[0.2,0.3]", "classes=9"])
def test_settings_of_procedural_images_count(change):
    ours = [
        data_config("x", *overrides, "data.source=procedural", "data.train=null", "data.val=null")
        for overrides in ([], ["data.procedural.train_images=12"], [f"data.procedural.{change}"])
    ]
    base, fewer, other = map(of, ours)
    assert base == fewer != other
    assert of(ours[0], "train") != of(ours[1], "train")


def test_run_does_not_go_on_with_other_images(tmp_path):
    root = splits(tmp_path / "data", images=9)
    config = tiny(
        tmp_path / "runs",
        "data.source=timm",
        f"data.train={root}/train",
        f"data.val={root}/val",
        "data.name=mine",
        "data.cache=off",
    )
    steps = ClassificationData(config.data, 0).steps_per_epoch
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(steps)])
    path = run_folder(config) / "record.json"
    record = read_record(path)
    assert record.data["checksum"] == {split: of(config.data, split) for split in ("train", "val")}
    picture(root / "train" / "ant" / "0.png", seed=5)
    words = "the train images are others than when this run began .*: expected the same images, or another output"
    with pytest.raises(UserError, match=words):
        train(config)
    path.rename(path.with_name("lost.json"))  # the checkpoint knows by itself
    with pytest.raises(UserError, match=words):
        train(config)
    picture(root / "train" / "ant" / "0.png", seed=0)
    assert train(config).status == "finished"


def test_run_of_an_older_checkpoint_goes_on(tmp_path):
    config = tiny(tmp_path, "optim.epochs=2")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(STEPS)])
    folder = run_folder(config)
    content = json.loads((folder / "record.json").read_text())
    del content["data"]["checksum"], content["correct"]
    (folder / "record.json").write_text(json.dumps(content))
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    for part in ("checksum", "correct"):
        del checkpoint["callbacks"]["RunKeeper"][part]
    torch.save(checkpoint, folder / "last.ckpt")
    assert set(train(config).data["checksum"]) == {"train", "val"}


def test_checksums_of_detection_are_of_images_and_of_what_is_said_of_them(tmp_path):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from detection_cases import tiny_detection

    from dk_bench.detection.data import DetectionData

    config = tiny_detection(tmp_path)
    before = DetectionData(config).checksums("train", "val")
    assert before == DetectionData(config).checksums("train", "val") and len(set(before.values())) == 2
    annotations = tmp_path / "tiny_data" / "val.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][0] += 1
    annotations.write_text(json.dumps(content))
    boxes = DetectionData(config).checksums("train", "val")
    assert boxes["train"] == before["train"] and boxes["val"] != before["val"]
    path = tmp_path / "tiny_data" / "train" / "000.png"
    path.write_bytes(path.read_bytes() + b"0")
    assert DetectionData(config).checksums("train")["train"] != before["train"]
