"""The random numbers of augmentation, and what is drawn with them: functions of seed, epoch and image alone.

They come from a counter-based generator, Philox 4x32 with ten rounds (Salmon et al., "Parallel Random Numbers: As Easy
as 1, 2, 3", SC 2011): the number in a place is a function of key and place, so that those of a whole batch are computed
at once and do not depend on the batch, the worker or the device that an image falls to.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from dk_bench.config import AugmentConfig

TRIES = 10  # crops that are drawn before the fallback, as in torchvision
JITTERS = ("brightness", "contrast", "saturation")
ORDERS = tuple(itertools.permutations(range(len(JITTERS))))

# Which of an image's numbers is for what. New ones go to the end: the others then stay as they are.
AREA, RATIO = slice(0, TRIES), slice(TRIES, 2 * TRIES)
TOP, LEFT, FLIP = range(2 * TRIES, 2 * TRIES + 3)
FACTORS, ORDER = slice(FLIP + 1, FLIP + 4), FLIP + 4
OF_TIMM = ORDER + 1  # seeds what timm draws
NUMBERS = OF_TIMM + 1

WORD = (1 << 32) - 1
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(key: int, counters: np.ndarray) -> np.ndarray:
    """Returns four random 32-bit words for each counter of four, by a key of 64 bits: (..., 4) uint64 -> the same."""
    keys = [key & WORD, key >> 32]
    a, b, c, d = np.moveaxis(counters, -1, 0)
    for _ in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (right >> 32) ^ b ^ keys[0], right & WORD, (left >> 32) ^ d ^ keys[1], left & WORD
        keys = [(key + step) & WORD for key, step in zip(keys, KEY_STEPS, strict=True)]
    return np.stack([a, b, c, d], axis=-1)


def uniform(
    key: int,
    epochs: Sequence[int],
    indices: Sequence[int],
    count: int = NUMBERS,
    *,
    repeats: Sequence[int] | None = None,
) -> np.ndarray:
    """Draws ``count`` numbers in [0, 1) for each of N images, by epoch and index: (N, count) float64. ``repeats`` tells
    the times apart that one epoch sees an image; None: they are all the first, 0."""
    blocks = math.ceil(count / 4)
    counters = np.zeros((len(indices), blocks, 4), np.uint64)
    counters[..., 0] = np.arange(blocks, dtype=np.uint64)
    counters[..., 1] = np.asarray(indices, np.uint64)[:, None]
    counters[..., 2] = np.asarray(epochs, np.uint64)[:, None]
    if repeats is not None:
        counters[..., 3] = np.asarray(repeats, np.uint64)[:, None]
    return philox(key, counters).reshape(len(indices), -1)[:, :count] * 2.0**-32


def draw_crops(numbers: np.ndarray, heights: np.ndarray, widths: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Draws boxes (N, 4) int64 of (top, left, height, width) in pixels, by the rule of torchvision's RandomResizedCrop.

    Of ten tries the first that fits: its area uniform in ``scale``, its ratio of width to height log-uniform in
    ``ratio``, its place uniform. Where none fits, the largest centred crop of a ratio in range. ``numbers``: `uniform`.
    """
    low, high = config.scale
    area = (heights * widths)[:, None] * (low + (high - low) * numbers[:, AREA])
    low, high = (math.log(ratio) for ratio in config.ratio)
    ratio = np.exp(low + (high - low) * numbers[:, RATIO])
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (0 < width) & (width <= widths[:, None]) & (0 < height) & (height <= heights[:, None])
    first = fits.argmax(axis=1)[:, None]
    drawn = fits.any(axis=1)
    width, height = (np.take_along_axis(sides, first, axis=1)[:, 0] for sides in (width, height))
    top = (numbers[:, TOP] * (heights - height + 1)).astype(np.int64)
    left = (numbers[:, LEFT] * (widths - width + 1)).astype(np.int64)
    boxes = np.stack([top, left, height, width], axis=1)
    if not drawn.all():
        boxes[~drawn] = _central(heights[~drawn], widths[~drawn], config.ratio)
    return boxes


def _central(heights: np.ndarray, widths: np.ndarray, ratio: Sequence[float]) -> np.ndarray:
    low, high = ratio
    shape = widths / heights
    # At least a pixel, which torchvision's rule does not see to: an image of 1 x 5 has no crop of ratio 3.
    height = np.where(shape < low, np.rint(widths / low).clip(1), heights).astype(np.int64)
    width = np.where(shape > high, np.rint(heights * high).clip(1), widths).astype(np.int64)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def draw_flips(numbers: np.ndarray, probability: float) -> np.ndarray:
    """Tells which images are mirrored: (N,) bool."""
    return numbers[:, FLIP] < probability


def draw_jitter(numbers: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws changes of colour as torchvision's ColorJitter: factors (N, 3) float32 for `JITTERS`, uniform in
    [max(0, 1 - strength), 1 + strength], and by which of `ORDERS` they follow, (N,) int64, all alike."""
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = low + (high - low) * numbers[:, FACTORS]
    return factors.astype(np.float32), (numbers[:, ORDER] * len(ORDERS)).astype(np.int64)
