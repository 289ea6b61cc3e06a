"""What augmentation draws, against torchvision's transforms: one by one where those are told what was drawn, and by
statistics of many draws of theirs and of ours."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from dk_bench.config import AugmentConfig, load_config
from dk_bench.data.decoded import Encoded
from dk_bench.data.draws import NUMBERS, ORDERS, draw_crops, draw_flips, draw_jitter, philox, uniform
from dk_bench.data.transforms import EvalTransform, TrainTransform

UNIT = ("data.mean=[0,0,0]", "data.std=[1,1,1]")
ADJUST = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, [2**32 - 1] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x299F31D0A4093822, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_its_authors_known_answers(key, counter, words):
    (found,) = philox(key, np.array([counter], np.uint64))
    assert " ".join(f"{int(word):08x}" for word in found) == words


def test_numbers_are_uniform_and_of_seed_epoch_and_index_alone():
    numbers = uniform(7, [2] * 4000, range(4000))
    assert numbers.shape == (4000, NUMBERS) and numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.001
    assert min(stats.kstest(column, "uniform").pvalue for column in numbers.T) > 0.001 / NUMBERS
    correlation = np.corrcoef(numbers.T) - np.eye(NUMBERS)
    assert abs(correlation).max() < 5 / math.sqrt(4000)
    assert np.array_equal(uniform(7, [2, 2], [3999, 5]), numbers[[3999, 5]])
    for other in (uniform(8, [2], [5]), uniform(7, [3], [5]), uniform(7, [2], [6]), uniform(7, [5], [2])):
        assert not np.isin(other, numbers[5]).any()
    assert np.array_equal(uniform(7, [2], [5], 3)[0], numbers[5, :3])


SHAPES = [(32, 32), (48, 64), (300, 40), (20, 200), (1, 1)]  # height, width; the third and fourth often fall back
RANGES = [AugmentConfig(), AugmentConfig(scale=[0.35, 1.0]), AugmentConfig(scale=[0.5, 0.5], ratio=[1.0, 2.0])]


def ours(count, height, width, config, seed=0):
    numbers = uniform(seed, [0] * count, range(count))
    return draw_crops(numbers, np.full(count, height), np.full(count, width), config)


def theirs(count, height, width, config):
    image = Image.new("RGB", (width, height))
    torch.manual_seed(0)
    return np.array([T.RandomResizedCrop.get_params(image, config.scale, config.ratio) for _ in range(count)])


@pytest.mark.parametrize("config", RANGES, ids=str)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_crops_are_distributed_as_torchvisions(height, width, config):
    found, expected = ours(3000, height, width, config), theirs(1500, height, width, config)
    assert (found[:, :2] >= 0).all() and (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= (height, width)).all()
    sides = (np.prod(boxes[:, 2:], axis=1) for boxes in (found, expected))
    ratios = (boxes[:, 3] / boxes[:, 2] for boxes in (found, expected))
    pairs = [sides, ratios, *((found[:, axis], expected[:, axis]) for axis in range(4))]
    assert min(stats.ks_2samp(*pair).pvalue for pair in pairs) > 1e-4


def test_where_no_crop_fits_it_is_the_largest_in_the_middle():
    wide, tall = AugmentConfig(scale=[1.0, 1.0], ratio=[1.0, 1.5]), AugmentConfig(scale=[1.0, 1.0], ratio=[0.5, 0.8])
    assert ours(2, 10, 100, wide).tolist() == [[0, 42, 10, 15]] * 2
    assert ours(2, 100, 10, tall).tolist() == [[40, 0, 20, 10]] * 2
    assert theirs(1, 10, 100, wide).tolist() == [[0, 42, 10, 15]]
    assert theirs(1, 100, 10, tall).tolist() == [[40, 0, 20, 10]]
    # A pixel at least, where theirs has none.
    wide, tall = AugmentConfig(ratio=[3.0, 4.0]), AugmentConfig(ratio=[0.1, 0.2])
    assert ours(2, 5, 1, wide).tolist() == [[2, 0, 1, 1]] * 2
    assert ours(2, 1, 5, tall).tolist() == [[0, 2, 1, 1]] * 2


def test_flips_and_changes_of_colour_are_distributed_as_torchvisions():
    numbers = uniform(1, [0] * 6000, range(6000))
    assert [draw_flips(numbers, p).mean() for p in (0, 1)] == [0, 1]
    assert abs(draw_flips(numbers, 0.3).mean() - 0.3) < 0.02
    for strength in (0.4, 1.5):
        ours, ordered = draw_jitter(numbers, strength)
        torch.manual_seed(0)
        ranges = T.ColorJitter(*[strength] * 3)
        of = (ranges.brightness, ranges.contrast, ranges.saturation, None)
        drawn = [T.ColorJitter.get_params(*of) for _ in range(3000)]
        for number in range(3):
            expected = [factors[number] for _, *factors in drawn]
            assert stats.ks_2samp(ours[:, number], expected).pvalue > 1e-4
    orders = [tuple(number for number in order.tolist() if number < 3) for order, *_ in drawn]
    counts = [[list(ordered).count(number) for number in range(6)], [orders.count(order) for order in ORDERS]]
    assert stats.chi2_contingency(counts).pvalue > 1e-4 and sum(counts[1]) == 3000


def smooth(count, height, width):
    """Images like photographs: random, but not from pixel to pixel."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in coarse]


def tensors(images):
    return Encoded([(image, 0) for image in images]).load(range(len(images)))[0]


def levels(pixels):
    return (255 * pixels).round().numpy().transpose(0, 2, 3, 1).astype(int)


@pytest.mark.parametrize(
    ("height", "width", "size", "worst", "share"),
    [(32, 32, 64, 0, 0), (32, 32, 32, 0, 0), (40, 61, 48, 4, 0.01), (150, 200, 64, 8, 0.03)],
)
def test_an_image_is_what_torchvision_makes_of_it_with_the_same_draws(height, width, size, worst, share):
    """To the bit, but for single levels where crops shrink: torch's weights have 16 bits there, and a change of colour
    makes of one level up to one and a half."""
    config, images = load_config(None, [f"data.size={size}", *UNIT]).data, smooth(60, height, width)
    numbers = uniform(3, [0] * 60, range(60))
    boxes = draw_crops(numbers, np.full(60, height), np.full(60, width), config.augment)
    flips, (factors, orders) = draw_flips(numbers, 0.5), draw_jitter(numbers, 0.4)
    expected = []
    for index, image in enumerate(images):
        image = TF.resized_crop(image, *boxes[index].tolist(), [size, size])
        image = TF.hflip(image) if flips[index] else image
        for number in ORDERS[orders[index]]:
            image = ADJUST[number](image, float(factors[index, number]))
        expected.append(np.asarray(image))
    difference = abs(levels(TrainTransform(config)(tensors(images), numbers)) - np.stack(expected))
    assert difference.max() <= worst and (difference > 0).mean() <= share


@pytest.mark.parametrize(
    ("height", "width", "size", "crop_pct"),
    [(32, 32, 64, 0.875), (33, 50, 32, 0.875), (70, 45, 24, 1.0), (48, 48, 48, 1.0), (90, 160, 32, 0.5)],
)
def test_evaluation_is_torchvisions(height, width, size, crop_pct):
    config = load_config(None, [f"data.size={size}", f"data.crop_pct={crop_pct}", *UNIT]).data
    images = smooth(8, height, width)
    old = T.Compose([T.Resize(math.floor(size / crop_pct)), T.CenterCrop(size)])
    found, expected = levels(EvalTransform(config)(tensors(images))), np.stack([np.asarray(old(i)) for i in images])
    assert abs(found - expected).max() <= 2 and (found != expected).mean() < 0.05
    plain = TrainTransform(
        load_config(
            None,
            [
                f"data.size={size}",
                f"data.crop_pct={crop_pct}",
                *UNIT,
                "data.augment.scale=null",
                "data.augment.flip=0",
                "data.augment.color_jitter=0",
            ],
        ).data
    )
    assert np.array_equal(levels(plain(tensors(images), uniform(0, [0] * 8, range(8)))), found)


def test_mean_and_spread_of_many_draws_are_torchvisions():
    config = load_config(None, ["data.size=32"]).data
    (image,) = smooth(1, 40, 40)
    old = T.Compose(
        [
            T.RandomResizedCrop(32, tuple(config.augment.scale), tuple(config.augment.ratio)),
            T.RandomHorizontalFlip(0.5),
            T.ColorJitter(0.4, 0.4, 0.4),
            T.ToTensor(),
            T.Normalize(config.mean, config.std),
        ]
    )
    torch.manual_seed(0)
    expected = torch.stack([old(image) for _ in range(1500)])
    found = TrainTransform(config)(tensors([image]) * 3000, uniform(0, range(3000), [0] * 3000))
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3))):  # of each channel of each image
        for channel in range(3):
            pair = (statistic(pixels)[:, channel].numpy() for pixels in (found, expected))
            assert stats.ks_2samp(*pair).pvalue > 1e-4
    # of every pixel over the draws, in standard errors of a mean over 1,500 draws
    assert (abs(found.mean(0) - expected.mean(0)) / expected.std(0) * math.sqrt(1000)).max() < 5


def test_images_of_many_sizes_and_any_parts_of_a_batch_are_alike():
    config = load_config(None, ["data.size=20"]).data
    images = [image for size in ((7, 30), (30, 7), (1, 1), (64, 64)) for image in tensors(smooth(3, *size))]
    numbers, transform = uniform(5, [1] * 12, range(12)), TrainTransform(config)
    whole = transform(images, numbers)
    assert whole.shape == (12, 3, 20, 20) and whole.dtype == torch.float32
    transform.together = 2
    assert torch.equal(transform(images, numbers), whole)
    for index in range(12):
        assert torch.equal(transform([images[index]], numbers[index : index + 1])[0], whole[index])


def test_pixels_are_the_same_for_any_number_of_threads():
    config = load_config(None, ["data.size=60"]).data
    images, numbers = tensors(smooth(40, 90, 70)), uniform(5, [1] * 40, range(40))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append((TrainTransform(config)(images, numbers), EvalTransform(config)(images)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
