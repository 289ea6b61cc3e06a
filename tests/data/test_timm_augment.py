"""timm's augmentations of images: the same pixels as by timm's own transforms, by each image's own numbers."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config
from dk_bench.data import order
from dk_bench.data.decoded import Encoded
from dk_bench.data.draws import uniform
from dk_bench.data.order import Augmented, StepSampler
from dk_bench.data.timm_augment import ERASING, _posterize, auto_augment, drawn_by, random_erasing, seed_of
from dk_bench.data.transforms import TrainTransform
from dk_bench.errors import UserError
from dk_bench.runs.identity import config_hash, is_per_device

DESCRIBED = ["rand-m7-mstd0.5-inc1", "rand-m9-n3-p0.7-tweights", "augmix-m5-w2-d2-b1", "original-mstd0.5", "3a"]


def configured(*overrides):
    return load_config(None, ["data.size=32", *(f"data.augment.{override}" for override in overrides)]).data


def pictures(count, side=32):
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 4, side // 4, 3), dtype=np.uint8)
    return [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in coarse]


def tensors(images):
    return Encoded([(image, 0) for image in images]).load(range(len(images)))[0]


@pytest.mark.parametrize("described", DESCRIBED)
def test_pictures_are_those_of_timms_own_transform(described):
    config = configured(f"auto_augment={described}")
    settings = {"interpolation": "bilinear", "mean": tuple(config.mean), "separate": True, "color_jitter": None}
    _, timms, _ = create_transform(config.size, is_training=True, auto_augment=described, **settings)
    change, numbers, changed = auto_augment(config), np.random.default_rng(1).random(12), 0
    for image, number in zip(pictures(12), numbers, strict=True):
        with drawn_by(seed_of(number)):
            expected = np.asarray(timms(image))
        found = change(tensors([image])[0], number)
        assert found.shape == (1, 3, 32, 32) and found.dtype == torch.uint8
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), expected)
        changed += not np.array_equal(expected, np.asarray(image))
    assert changed > 3


@pytest.mark.parametrize("described", ["v0", "rand-m10-n8-p1-inc1", "rand-m0-n8-p1", "augmix-m10-d3"])
def test_no_picture_is_refused_at_the_ends_of_timms_ranges(described):
    """Where timm asks Pillow to keep no bit of a channel."""
    change = auto_augment(configured(f"auto_augment={described}"))
    images = tensors(pictures(1)) * 200
    for image, number in zip(images, np.random.default_rng(1).random(200), strict=True):
        assert change(image, number).shape == image.shape


def test_posterising_is_pillows_and_black_where_no_bit_is_kept():
    (image,) = pictures(1)
    for bits in range(1, 8):
        assert _posterize(image, bits).tobytes() == ImageOps.posterize(image, bits).tobytes()
    assert _posterize(image, 8).tobytes() == image.tobytes() and not np.asarray(_posterize(image, 0)).any()


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_what_is_erased_is_what_timm_erases(mode):
    config = configured("random_erasing=0.5", f"random_erasing_mode={mode}", "random_erasing_count=3").augment
    erase, timms, erased = random_erasing(config), RandomErasing(0.5, mode=mode, max_count=3, device="cpu"), 0
    for number in np.random.default_rng(1).random(60):
        image = torch.ones(3, 32, 32)
        with drawn_by(seed_of(number) ^ ERASING):
            expected = timms(image.clone())
        found = erase(image, number)
        assert torch.equal(found, expected)
        if mode == "const":
            assert set(found.unique().tolist()) <= {0.0, 1.0}
        erased += bool((found != 1).any())
    assert 15 < erased < 45  # of 60, at one half


def test_the_generators_of_the_process_go_on_as_if_nothing_was_drawn():
    config = configured("auto_augment=augmix-m5", "random_erasing=1", "color_jitter=0")
    transform, images, numbers = TrainTransform(config), tensors(pictures(4)), uniform(0, [0] * 4, range(4))

    def drawn(then):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        then()
        return random.random(), np.random.random(), torch.rand(()).item()

    assert drawn(lambda: transform(images, numbers)) == drawn(lambda: None)


@pytest.mark.parametrize("changes", [("auto_augment=rand-m9-mstd0.5",), ("random_erasing=0.7",), ("repeats=2",)])
def test_an_image_is_a_function_of_seed_epoch_index_and_repeat(changes):
    images = Augmented(Encoded([(image, 0) for image in pictures(6)]), TrainTransform(configured(*changes)), seed=3)
    keys = [(1, 2, 0), (1, 4, 1), (1, 2, 1), (2, 2, 0)]
    together, _ = images.__getitems__(keys)
    for place, key in enumerate(keys):
        assert torch.equal(images[key][0], together[place])
    assert torch.equal(images[1, 2][0], images[1, 2, 0][0])
    assert not torch.equal(images[1, 2, 0][0], images[1, 2, 1][0])


def test_each_part_changes_pixels_and_the_cell_and_none_does_by_default():
    images, numbers = tensors(pictures(8)), uniform(3, [0] * 8, range(8))
    plain, default = TrainTransform(configured())(images, numbers), load_config(None, [])
    for change in ("auto_augment=rand-m9", "random_erasing=1"):
        assert not torch.equal(TrainTransform(configured(change))(images, numbers), plain)
    off = ("auto_augment=null", "random_erasing=0.0", "repeats=1", "mixup=0", "cutmix=0.0")
    assert torch.equal(TrainTransform(configured(*off))(images, numbers), plain)
    hashes = {config_hash(dataclasses.asdict(default))}
    on = ("auto_augment=v0", "random_erasing=0.1", "repeats=3", "mixup=0.2", "cutmix=1")
    for change in (*off, *on):
        hashes.add(config_hash(dataclasses.asdict(load_config(None, [f"data.augment.{change}"]))))
    assert len(hashes) == 1 + len(on)  # the defaults, written out, are the default


def test_images_that_are_mixed_make_the_number_of_devices_count():
    shared = "trainer.sync_batchnorm=true"
    for overrides, expected in (([shared], False), ([shared, "data.augment.cutmix=1"], True), ([], True)):
        assert is_per_device(dataclasses.asdict(load_config(None, overrides))) == expected


@pytest.mark.parametrize(
    "described",
    [
        "",
        "rand-foo",
        "rand-m",
        "rand-m7-w0",
        "rand-tother",
        "rand-m7.5",
        "v1",
        "augmix-x3",
        "original-m3",
        "randm7",
        "augmix-a0",
        "augmix-m3-w0",
    ],
)
def test_a_description_that_timm_does_not_have_is_refused(described):
    with pytest.raises(UserError, match=r"data\.augment\.auto_augment"):
        auto_augment(configured(f"auto_augment={described!r}"))


@pytest.mark.parametrize(
    "override", ["random_erasing=1.5", "mixup=-1", "repeats=0", "random_erasing_mode=noise", "mixup_mode=half"]
)
def test_values_out_of_range_are_refused(override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        configured(override)


@pytest.mark.parametrize(
    ("override", "on"),
    [
        ("mixup_prob=0.5", ["cutmix=1"]),
        ("mixup_mode=elem", ["mixup=0.2"]),
        ("mixup_switch_prob=0.2", ["mixup=0.2", "cutmix=1"]),
        ("random_erasing_mode=rand", ["random_erasing=0.1"]),
        ("random_erasing_count=3", ["random_erasing=0.1"]),
    ],
)
def test_a_key_that_would_change_nothing_is_refused(override, on):
    for fewer in (on[:-1], on[1:]):
        with pytest.raises(UserError, match=rf"{override.partition('=')[0]}.*with data\.augment"):
            configured(override, *fewer)
    hashes = {config_hash({"data": dataclasses.asdict(configured(*more))}) for more in (on, [override, *on])}
    assert len(hashes) == 2  # with what it belongs to it tells cells apart


def test_an_odd_batch_is_not_mixed():
    config = load_config(None, ["data.batch_size=5", "data.augment.mixup=0.2", "data.procedural.train_images=20"])
    with pytest.raises(UserError, match=r"data\.batch_size.*5.*even"):
        ClassificationData(config.data, 0).train_dataloader()


def of_ranks(world, monkeypatch, make):
    for rank in range(world):
        monkeypatch.setattr(order, "processes", lambda rank=rank: (rank, world))
        yield rank, make()


@pytest.mark.parametrize(("world", "repeats"), [(1, 3), (2, 3), (4, 2)])
def test_repeats_are_dealt_out_as_by_timms_sampler(world, repeats, monkeypatch):
    monkeypatch.setattr(order, "mix_seed", lambda seed, epoch: epoch)  # timm's seed
    count, batch = 2 * 256, 64
    for rank, ours in of_ranks(world, monkeypatch, lambda: StepSampler(count, batch, seed=0, repeats=repeats)):
        timms = RepeatAugSampler(range(count), world, rank, num_repeats=repeats)
        for epoch in (0, 3):
            ours.set_epoch(epoch), timms.set_epoch(epoch)
            found = list(ours)
            assert [index for _, index, _ in found] == [int(index) for index in timms] and len(found) == len(ours)


def test_repeats_differ_and_go_on_in_the_middle_of_an_epoch(monkeypatch):
    whole = list(StepSampler(23, 5, seed=1, repeats=3))
    assert len(whole) == 20 and len(set(whole)) == 20 and len({index for _, index, _ in whole}) == 7
    assert list(StepSampler(23, 5, seed=1, repeats=3, done=lambda: 3)) == whole[15:]
    assert list(StepSampler(23, 5, seed=1, repeats=3, done=lambda: 4)) == []
