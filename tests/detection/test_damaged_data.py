"""Images and annotations that are damaged or missing are named."""

import json

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import tiny_detection, tiny_file

from dk_bench.cli import main
from dk_bench.detection.data import DetectionData
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.errors import UserError
from dk_bench.runs.record import read_record
from dk_bench.training import run_folder, train


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_image_is_named(tmp_path, suffix):
    config = tiny_detection(tmp_path, suffix=suffix)
    path = tmp_path / "tiny_data" / "train" / f"004.{suffix}"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=rf"image .*train/004\.{suffix} cannot be read: .*truncated"):
        train(config)
    record = read_record(run_folder(config) / "record.json")
    assert record.status == "failed" and f"004.{suffix} cannot be read" in record.error
    path.write_text("no image at all, and long enough to have an end" * 3)
    with pytest.raises(UserError, match=rf"004\.{suffix} cannot be read: not an image"):
        train(config)


def test_bytes_after_an_images_end_do_no_harm(tmp_path):
    config = tiny_detection(tmp_path, suffix="jpg")
    path = tmp_path / "tiny_data" / "val" / "000.jpg"
    before = DetectionData(config).val_images[0]["inputs"]
    path.write_bytes(path.read_bytes() + bytes(500))
    assert torch.equal(DetectionData(config).val_images[0]["inputs"], before)


def test_bad_data_is_named(tmp_path, capsys):
    path = tiny_file(tmp_path)
    data = tmp_path / "tiny_data"
    (data / "val" / "002.png").unlink()
    assert main(["train", str(path), f"output={tmp_path}"]) == 2
    assert "002.png does not exist" in capsys.readouterr().err
    (data / "train.json").rename(data / "moved.json")
    assert (
        main(
            [
                "train",
                str(path),
                f"output={tmp_path}",
                "val_dataloader.dataset.ann_file=moved.json",
                "val_dataloader.dataset.data_prefix.img=train/",
            ]
        )
        == 2
    )
    assert "tiny_data/train.json cannot be read: No such file" in capsys.readouterr().err
    content = json.loads((data / "moved.json").read_text())
    content["categories"][0]["name"] = "cat"
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.json: .*'disc'"):
        DetectionData(load_detection_config(path)).train_images  # noqa: B018
