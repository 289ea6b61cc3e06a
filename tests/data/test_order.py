"""The order of images and their augmentation: the same for any number of workers, processes and interruptions."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config
from dk_bench.data import order
from dk_bench.data.decoded import Encoded
from dk_bench.data.order import Augmented, StepSampler, mix_seed
from dk_bench.data.transforms import TrainTransform


def test_mixed_seeds_differ_and_stay():
    seeds = {mix_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64
    assert mix_seed(1, 2) == mix_seed(1, 2) != mix_seed(2, 1)


def epochs(sampler, numbers):
    out = []
    for number in numbers:
        sampler.set_epoch(number)
        out.append(list(sampler))
    return out


def test_every_epoch_is_another_permutation_cut_to_whole_batches():
    sampler = StepSampler(23, 5, seed=1)
    first, second = epochs(sampler, [0, 1])
    assert len(sampler) == len(first) == 20
    assert {epoch for epoch, _ in second} == {1}
    assert len({index for _, index in first}) == 20
    assert [i for _, i in first] != [i for _, i in second]
    assert epochs(StepSampler(23, 5, seed=1), [1])[0] == second
    assert epochs(StepSampler(23, 5, seed=2), [1])[0] != second


@pytest.mark.parametrize("step", [0, 1, 3, 4, 6, 8])
def test_starting_at_a_step_continues_the_order(step):
    batch, steps = 5, 4
    whole = sum(epochs(StepSampler(23, batch, seed=1), [0, 1, 2]), [])
    start, done = divmod(step, steps)
    sampler = StepSampler(23, batch, seed=1, done=lambda: done if sampler.epoch == start else 0)
    assert sum(epochs(sampler, range(start, 3)), []) == whole[step * batch :]
    assert len(sampler) == steps * batch  # the loops count whole epochs


def test_processes_share_each_batch(monkeypatch):
    whole = epochs(StepSampler(23, 6, seed=1), [0])[0]
    shards = []
    for rank in range(3):
        monkeypatch.setattr(order, "processes", lambda rank=rank: (rank, 3))
        shards += epochs(StepSampler(23, 6, seed=1), [0])
    assert all(len(shard) == 6 for shard in shards)
    for step in range(3):
        shared = {item for shard in shards for item in shard[2 * step : 2 * step + 2]}
        assert shared == set(whole[6 * step : 6 * step + 6])


def test_batches_that_do_not_divide_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="batch of 6 from 5 images"):
        StepSampler(5, 6, seed=0)
    monkeypatch.setattr(order, "processes", lambda: (0, 4))
    with pytest.raises(ValueError, match="4 processes"):
        StepSampler(50, 6, seed=0)


def batches(workers, *overrides):
    config = load_config(
        None,
        [
            f"data.workers={workers}",
            "data.size=24",
            "data.batch_size=4",
            "data.procedural.train_images=14",
            "data.procedural.val_images=6",
            *overrides,
        ],
    ).data
    loader = ClassificationData(config, seed=3).train_dataloader()
    out = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        out += list(loader)
    return out


def test_batches_do_not_depend_on_workers_or_on_the_global_generator():
    torch.manual_seed(0)
    alone = batches(0)
    torch.manual_seed(1)
    shared = batches(2, "data.prefetch=3")
    assert len(alone) == 6
    for (images, labels), (other_images, other_labels) in zip(alone, shared, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def test_settings_of_workers_reach_the_loader():
    small = ["data.size=24", "data.procedural.train_images=4", "data.procedural.val_images=2", "data.batch_size=2"]
    for workers, prefetch in ((0, None), (1, 5)):
        config = load_config(None, [*small, f"data.workers={workers}", "data.prefetch=5"]).data
        loader = ClassificationData(config, seed=0).train_dataloader()
        assert (loader.num_workers, loader.prefetch_factor) == (workers, prefetch)


@pytest.mark.parametrize("overrides", [["data.batch_size=7"], ["data.cache=off", "data.batch_size=2"]])
def test_an_image_is_augmented_alike_in_any_batch_and_wherever_it_was_decoded(overrides):
    def images(*overrides):
        out = batches(0, *overrides)
        half = len(out) // 2  # an epoch
        return [torch.cat([images for images, _ in out[part]]) for part in (slice(half), slice(half, None))]

    expected, found = images("data.procedural.train_images=14", "data.batch_size=14"), images(*overrides)
    for epoch, others in zip(expected, found, strict=True):
        assert torch.equal(epoch, others)
    assert not torch.equal(*expected)


def test_augmenting_leaves_the_global_generators_alone():
    config = load_config(None, ["data.size=8"]).data
    data = Augmented(Encoded([(Image.effect_noise((9, 9), 100).convert("RGB"), 0)]), TrainTransform(config), seed=0)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    drawn = [data[epoch, 0][0] for epoch in (0, 1, 0)]
    assert torch.equal(torch.get_rng_state(), states[0]) and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(data[0][0], drawn[0])  # an index alone is of epoch 0


def test_validation_sees_every_image_once_in_order():
    config = load_config(
        None, ["data.workers=0", "data.size=24", "data.batch_size=4", "data.procedural.val_images=10"]
    ).data
    data = ClassificationData(config, seed=0)
    loader = data.val_dataloader()
    assert isinstance(loader, DataLoader)
    labels = torch.cat([labels for _, labels in loader])
    assert labels.tolist() == [data.val_images[i][1] for i in range(10)]
