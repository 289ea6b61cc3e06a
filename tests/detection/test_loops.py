"""Loops of training: where they validate, and the order of images in a loop of iterations."""

import bisect
import random

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import tiny_detection
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler, sampler
from mmengine.runner.loops import _InfiniteDataloaderIterator, time
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import BatchSampler, DataLoader

from dk_bench.detection.batches import Endless, KeyedIterations
from dk_bench.detection.data import DetectionData
from dk_bench.detection.loops import Loop
from dk_bench.detection.task import Detection

ITERATIONS = "train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 11, 'val_interval': 4, '_delete_': True}"


@pytest.mark.parametrize("by_iterations", [False, True])
def test_validation_follows_where_mmengine_has_it(by_iterations):
    """Of any interval, beginning and change of intervals; `mmengine.runner.loops` decides by these lines."""
    draw = random.Random(0)
    for _ in range(500):
        length, interval, begin = draw.randint(1, 40), draw.randint(1, 15), draw.randint(1, 10)
        changes = [(at, draw.randint(1, 50)) for at in sorted(draw.sample(range(1, 60), draw.randint(0, 3)))]
        loop = Loop(by_iterations, length, interval, begin, tuple(changes))
        milestones, intervals = calc_dynamic_intervals(interval, changes or None)
        places = []
        for done in range(1, length + 1):
            now = intervals[bisect.bisect(milestones, done + 1) - 1]
            if done % now == 0 or done == length:
                places.append(done)
        assert [n for n in range(1, length + 1) if loop.validates(n)] == [n for n in places if n >= begin]
        if by_iterations:
            assert list(loop.ends) == places
            assert [loop.validates_after(n) for n in range(loop.epochs)] == [n >= begin for n in places]


class Images:
    """Twelve, some of them upright."""

    def __len__(self):
        return 12

    def get_data_info(self, index):
        return {"width": 8 + index % 3, "height": 9}


def as_mmengine_goes_on(batches, count):
    """The first batches of its loop of iterations."""
    endless = _InfiniteDataloaderIterator(DataLoader(range(12), batch_sampler=batches, collate_fn=list))
    return [next(endless) for _ in range(count)]


@pytest.mark.parametrize("kind", [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize("grouped", [False, True])
def test_iterations_have_mmengines_batches_from_any_on(kind, grouped, monkeypatch):
    """A sampler that ends begins anew, as in mmengine's next pass over the images."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # mmengine waits two seconds there

    def make():
        made = kind(Images(), shuffle=True, seed=3)
        return AspectRatioBatchSampler(made, 5) if grouped else BatchSampler(made, 5, drop_last=False)

    expected = as_mmengine_goes_on(make(), 11)
    loop = Loop(True, 11, 4, 1)
    endless, found = Endless(make), {}
    for epoch in (2, 0, 1):
        batches = KeyedIterations(endless, loop, epoch=epoch)
        assert len(batches) == len(list(batches)) == (4, 4, 3)[epoch]
        for batch in batches:
            (number,) = {number for number, _ in batch}
            found[number] = [index for _, index in batch]
    assert [found[number] for number in range(11)] == expected
    assert [batch[0][0] for batch in KeyedIterations(endless, loop, done=lambda: 2, epoch=1)] == [6, 7]


def test_the_same_images_make_a_step_on_any_number_of_processes(tmp_path, monkeypatch):
    """Where the batch over all of them is the same; an InfiniteSampler without groups."""

    def iterations(world, rank, size):
        monkeypatch.setattr(sampler, "get_dist_info", lambda: (rank, world))
        sampling = ["train_dataloader.sampler.type=InfiniteSampler", "train_dataloader.batch_sampler=None"]
        config = tiny_detection(tmp_path, ITERATIONS, *sampling, f"train_dataloader.batch_size={size}")
        return [sorted(batch) for batch in DetectionData(config)._iterations()]

    alone = iterations(1, 0, 4)
    shared = [sorted(a + b) for a, b in zip(iterations(2, 0, 2), iterations(2, 1, 2), strict=True)]
    assert alone == shared and len(alone) == 4 and len({index for batch in alone for _, index in batch}) == 10


def test_a_plan_counts_iterations_and_not_images(tmp_path):
    average = "custom_hooks=[{'type': 'EMAHook'}]"
    iterations = Detection(tiny_detection(tmp_path, ITERATIONS, average)).outline()
    assert (iterations.epochs, iterations.evaluations, iterations.copies) == (3, 3, 2)
    assert (iterations.trained(1), iterations.trained(4)) == (11 * 2, 11 * 2 * 4)
    epochs = Detection(tiny_detection(tmp_path, "train_cfg.val_begin=2", "train_cfg.val_interval=3")).outline()
    assert (epochs.epochs, epochs.evaluations, epochs.copies, epochs.iterations) == (4, 2, 1, None)
