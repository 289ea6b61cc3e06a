"""An epoch of 10,000 images in shards that is cut off: each image is seen once, whoever goes on.

The labels number the images, so that what a step saw is what its labels are.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from new_python import run_new_python
from shard_files import PER_SHARD, write_split
from shards_seen import seen

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config
from dk_bench.data import order

pytest.importorskip("webdataset", reason="webdataset is not installed")

IMAGES, BATCH = 10_000, 500
STEPS = IMAGES // BATCH


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Overrides of a configuration of 10,000 images in ten shards."""
    root = tmp_path_factory.mktemp("shards")
    train = write_split(root, "train", IMAGES, classes=IMAGES)
    write_split(root, "val", 20, seed=1)
    (root / "names.txt").write_text("\n".join(f"image {number}" for number in range(IMAGES)))
    return [
        "data.source=timm",
        "data.reader=wds/tiny",
        f"data.root={root}",
        f"data.train={train}",
        "data.val=val-0000.tar",
        f"data.class_names={root}/names.txt",
        f"data.window={2 * PER_SHARD}",
        "data.size=8",
        f"data.batch_size={BATCH}",
        "data.augment.scale=null",
        "data.augment.color_jitter=0",
        "data.cache=off",
    ]


@pytest.fixture(scope="module")
def whole(settings):
    """The steps of an epoch that nothing cuts off: the labels of each."""
    steps = steps_of(settings, 0, 0, (0, 1))
    assert len(steps) == STEPS and sorted(sum(steps, [])) == list(range(IMAGES))
    return steps


def steps_of(settings, workers, done, process):
    """Labels by step, from the step on after so many, of one of so many processes."""
    config = load_config(None, [*settings, f"data.workers={workers}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "processes", lambda: process)
        patch.setattr("dk_bench.classification.data.processes", lambda: process)
        loader = ClassificationData(config.data, config.seed).train_dataloader()
        loader.sampler.done = lambda: done
        return [labels.tolist() for _, labels in loader]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (4, 1)])
def test_epoch_goes_on_where_it_was_cut_off(settings, whole, workers, world):
    done = 16
    parts = [steps_of(settings, workers, done, (rank, world)) for rank in range(world)]
    together = [sorted(sum(step, [])) for step in zip(*parts, strict=True)]
    assert together == [sorted(step) for step in whole[done:]]


def test_images_come_from_a_few_shards_at_a_time_and_in_another_order_every_epoch(settings, whole):
    for part in (whole[: STEPS // 5], whole[-STEPS // 5 :]):  # of five windows, of two shards each
        assert len({number // PER_SHARD for number in sum(part, [])}) == 2
    config = load_config(None, [*settings, "data.workers=0", "data.window=0"])
    loader = ClassificationData(config.data, config.seed).train_dataloader()
    assert len({number // PER_SHARD for _, number in zip(range(500), indices(loader, 0), strict=False)}) == 10
    assert list(indices(loader, 0)) != list(indices(loader, 1))


def indices(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return (index for _, index in loader.sampler)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_one_process_then_two_then_one(settings, whole, tmp_path):
    """Under a Trainer: one process trains seven steps, two go on to the thirteenth, and one ends the epoch."""
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    begun, _ = seen([*settings, "data.workers=2"], None, first, 7)
    tests, root = Path(__file__).parents[1] / "cases", Path(__file__).parents[2]
    command = [tests / "shards_seen.py", tmp_path, first, second, 13, *settings, "data.workers=1"]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"}
    done = run_new_python(command, cwd=tmp_path, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    ended, _ = seen([*settings, "data.workers=0"], second, tmp_path / "third.ckpt", STEPS)
    steps = [*begun, *(one + other for one, other in zip(*ranks, strict=True)), *ended]
    assert [sorted(step) for step in steps] == [sorted(step) for step in whole]
