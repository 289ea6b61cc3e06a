"""What a plan asks of detectors: the images of an epoch, beside those of mmdet's own data sets."""

import functools
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from dk_bench import tasks
from dk_bench.data.known_sizes import KNOWN_SIZES
from dk_bench.detection import scene_files  # noqa: F401  registers the data set
from dk_bench.detection.image_counts import count_images

TINY = Path(__file__).parents[2] / "configs/det/tiny_procedural.py"
SCENES = {"train_images": 12, "val_images": 11, "size": 64, "seed": 0}  # the tenth of each has no object
ALL = {"filter_cfg": None}


def wrapped(kind: str, inner: dict, **settings: object) -> dict:
    return {"type": kind, "dataset": inner, **settings}


def several(*inner: dict) -> dict:
    return {"type": "ConcatDataset", "datasets": list(inner)}


def settings_of(wrap: Callable, more: dict) -> dict:
    """Returns the settings of what ``wrap`` makes of the training scenes, changed by ``more``."""
    own = tiny()["train_dataloader"]["dataset"] | {"scenes": SCENES} | more
    return wrap({key: value for key, value in own.items() if value is not None})


@functools.cache
def tiny() -> dict:
    return Config.fromfile(TINY).to_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("counted")


@pytest.mark.parametrize(
    ("wrap", "more", "count"),
    [
        (dict, {}, 11),
        (dict, ALL, 12),
        (dict, {"indices": 4}, 4),
        (dict, {"indices": -3}, 3),
        (dict, {"indices": 40}, 11),
        (dict, {"indices": [0, 2]}, 2),
        (dict, {"split": "val"}, 10),
        (lambda own: wrapped("RepeatDataset", own, times=3), {}, 33),
        (lambda own: wrapped("RepeatDataset", own, times=3), {"indices": 4}, 12),
        (lambda own: several(own, own | {"indices": 4}), {}, 15),
        (lambda own: wrapped("mmdet.MultiImageMixDataset", own, pipeline=[]), {}, 11),
    ],
)
def test_an_epoch_has_the_images_of_the_data_set(folder, wrap, more, count):
    settings = settings_of(wrap, {"data_root": str(folder / "scenes"), "pipeline": []} | more)
    assert count_images(settings, "train", None) == count
    with redirect_stdout(io.StringIO()), DefaultScope.overwrite_default_scope("mmdet"):
        assert len(DATASETS.build(settings)) == count


def test_a_plan_counts_them():
    """Of 400 scenes every tenth has no object; all are validated on."""
    own = ["train_dataloader.dataset.indices=10"]
    assert tasks.load(str(TINY), []).outline().images == {"train": 360, "val": 100}
    assert tasks.load(str(TINY), own).outline().images == {"train": 10, "val": 100}


@pytest.mark.parametrize(
    ("wrap", "more"),
    [
        (lambda own: wrapped("ClassBalancedDataset", own, oversample_thr=0.5), {}),
        (dict, {"metainfo": {"classes": ["disc"]}}),
    ],
)
def test_what_only_annotations_tell_is_not_known(wrap, more):
    assert count_images(settings_of(wrap, more), "train", None) is None


@pytest.mark.parametrize(
    ("wrap", "more", "count"),
    [
        (dict, {}, 117_266),
        (dict, ALL, 118_287),
        (dict, {"filter_cfg": {"filter_empty_gt": False}}, 118_287),
        (dict, {"filter_cfg": {"filter_empty_gt": True, "min_size": 200}}, None),
        (dict, {"metainfo": {"classes": ["cat"]}}, None),
        (dict, {"indices": 1000}, 1000),
        (lambda own: wrapped("RepeatDataset", own, times=2), {}, 234_532),
        (lambda own: several(own, own), {}, None),
    ],
)
def test_names_tell_the_images_of_the_whole_data(wrap, more, count):
    """Of COCO's 118,287 training images 117,266 have objects."""
    settings = settings_of(wrap, {"type": "CocoDataset", "scenes": None, "split": None} | more)
    assert count_images(settings, "train", KNOWN_SIZES["coco"]) == count
