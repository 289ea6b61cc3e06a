"""What a plan asks of detectors: the images of an epoch, beside those of mmdet's own data sets, and their heads."""

import functools
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from dk_bench import tasks
from dk_bench.data.known_sizes import KNOWN_SIZES
from dk_bench.detection import outlining, scene_files  # noqa: F401  the latter registers the data set
from dk_bench.detection.image_counts import count_images
from dk_bench.models.workload import Workload

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


class Plain(nn.Module):
    """A detector of nothing but the parts it is given, whose features are the images."""

    def __init__(self, **parts: object) -> None:
        super().__init__()
        self.train_cfg = {"rcnn": [{"sampler": {"num": 8, "pos_fraction": 0.25}}]}
        for name, part in parts.items():
            setattr(self, name, part)

    def extract_feat(self, images: torch.Tensor) -> torch.Tensor:
        return images


def extractor() -> nn.Module:
    made = nn.Module()
    made.out_channels = 3
    return made


def regions(**parts: nn.Module) -> Plain:
    return Plain(bbox_roi_extractor=extractor(), mask_roi_extractor=extractor(), **parts)


def counted(detector: nn.Module) -> Workload:
    cfg, outline = Config({"model": {}}), SimpleNamespace(input_size=(3, 8, 8))
    with mock.patch.object(outlining, "build_detector", lambda *_, **__: detector):
        return outlining.workload_of(cfg, outline)


def conv() -> nn.Module:
    return nn.Conv2d(3, 5, 1, device="meta")


def test_heads_that_are_not_counted_are_told():
    """A head by an unknown name, of a detector or of its regions, has weights whose work is not known."""
    for detector in (Plain(panoptic_head=conv()), Plain(roi_head=regions(bbox_head=conv(), point_head=conv()))):
        assert counted(detector).note == outlining.WITHOUT_HEADS
    assert counted(Plain(rpn_head=conv())).note == outlining.BESIDE


def test_mask_heads_of_all_stages_are_counted():
    """Of 8 regions of an image two have an object, in each of three stages."""
    boxes = {"bbox_head": nn.ModuleList([conv()])}
    one, three = (Plain(roi_head=regions(mask_head=nn.ModuleList(conv() for _ in range(n)), **boxes)) for n in (1, 3))
    of_one = 2 * 14 * 14 * 3 * 5
    assert counted(three).macs - counted(one).macs == 2 * of_one
