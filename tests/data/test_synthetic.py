"""Synthetic images: as many as are asked for, the same every time, and never taken for a data set."""

import numpy as np
import pytest
from training_cases import ONE_STEP

from dk_bench.classification.data import ClassificationData
from dk_bench.classification.outlining import outline_of
from dk_bench.config import load_config
from dk_bench.data.checksum import checksum
from dk_bench.data.sources import data_name, open_images
from dk_bench.data.synthetic import DIFFERENT, SyntheticImages
from dk_bench.errors import UserError
from dk_bench.tasks import load
from dk_bench.training import train
from dk_bench.training.task import Task

SMALL = ("data.source=synthetic", "data.synthetic.width=40", "data.synthetic.height=30", "data.synthetic.classes=7")


def opened(*overrides, split="train"):
    return open_images(load_config(None, [*SMALL, *overrides]).data, split)


def test_imagenets_shape_without_files():
    config = load_config(None, ["data.source=synthetic", "data.workers=0", "data.batch_size=2", "data.size=32"]).data
    data = ClassificationData(config, seed=0)
    assert (len(data.train_images), len(data.val_images), len(data.classes)) == (1_281_167, 50_000, 1000)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 32, 32) and labels.max() < 1000
    assert data.decoded == {"train": "every time"}
    picture = data.train_images.pictures[0]
    assert data.train_images[0][0].size == (500, 375) and 100_000 < len(picture) < 130_000


def test_images_are_the_same_every_time():
    first, again = opened(), opened()
    assert [np.asarray(first[i][0]).tobytes() for i in range(3)] == [
        np.asarray(again[i][0]).tobytes() for i in range(3)
    ]
    assert [first[i][1] for i in range(9)] == [0, 1, 2, 3, 4, 5, 6, 0, 1] == first.labels[:9].tolist()
    assert len({np.asarray(first[i][0]).tobytes() for i in range(2 * DIFFERENT)}) == DIFFERENT
    assert checksum(first) == checksum(again) != checksum(opened("data.synthetic.train_images=9"))
    assert checksum(first) != checksum(opened(split="val")) != checksum(opened("data.synthetic.stored=pixels"))
    with pytest.raises(IndexError):
        first[1_281_167]


def test_pixels_are_those_that_a_file_would_be_made_of():
    pixels, files = opened("data.synthetic.stored=pixels"), opened()
    assert pixels[1][0] is pixels[1 + DIFFERENT][0] and files[1][0] is not files[1 + DIFFERENT][0]
    difference = np.abs(np.asarray(pixels[1][0], float) - np.asarray(files[1][0], float))
    assert isinstance(pixels, SyntheticImages) and 0 < difference.mean() < 20


def test_record_says_what_images_these_were(tmp_path):
    few = ("data.synthetic.train_images=4", "data.synthetic.val_images=2", "model.name=test_resnetdw")
    record = train(load_config(None, [*ONE_STEP, *SMALL, *few, f"output={tmp_path}"]))
    assert record.status == "finished" and record.data["name"] == "synthetic"
    assert (record.data["train_images"], record.data["val_images"], len(record.data["classes"])) == (4, 2, 7)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.train=here"], "'data.source' is 'synthetic', which reads no files"),
        (["data.name=imagenet"], "key 'data.name' is 'imagenet', but 'data.source' is 'synthetic'"),
        (["data.synthetic.classes=1"], "expected at least 2"),
        (["data.synthetic.stored=png"], "'png'"),
    ],
)
def test_bad_settings_are_named(overrides, text):
    with pytest.raises(UserError, match=text):
        opened(*overrides)


def test_a_plan_knows_how_many_there_are():
    outline = outline_of(load_config(None, ["data.source=synthetic"]))
    assert outline.images == {"train": 1_281_167, "val": 50_000} and outline.pixels == (500, 375)
    assert (outline.classes, outline.decoded, outline.every_time) == (1000, 0, True)


def test_there_is_no_test_split(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {source: synthetic}")
    task: Task = load(str(tmp_path / "a.yaml"), [])
    assert task.tests == [] and data_name(task.config.data) == "synthetic"
    with pytest.raises(UserError, match="there are no test images: expected no test with 'data.source' 'synthetic'"):
        task.check_split("test")
