"""From decoded images to the batch a network sees.

The augmentations are those of torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter, drawn by
`dk_bench.data.draws`. They are applied as Pillow does it, on a batch at once: bilinear resizing with antialiasing,
whose grey levels are rounded, and changes of colour, after each of which grey levels are cut to integers. Given the
same draws, an image is the same as by torchvision's transforms of PIL images, but for single levels where torch rounds
a resize's weights otherwise. `dk_bench.data.timm_augment` acts between flip and change of colour, and at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dk_bench.config import DataConfig
from dk_bench.data.draws import JITTERS, OF_TIMM, ORDERS, draw_crops, draw_flips, draw_jitter
from dk_bench.data.timm_augment import auto_augment, random_erasing

PART_BYTES = 1 << 21  # of pixels that go through all steps together; what the second-level cache holds is quickest
GREY = [part / 65536 for part in (19595, 38470, 7471)]  # of red, green and blue: Pillow's integers for ITU-R 601


class EvalTransform:
    """Resize of the shorter side to size / crop_pct, then the centre.

    N images (1, 3, H, W) uint8, each of its own size, become (N, 3, size, size) float32, less ``mean`` over ``std``.
    """

    def __init__(self, config: DataConfig) -> None:
        self.size, self.shorter = config.size, math.floor(config.size / config.crop_pct)
        mean, std = (np.array(values)[:, None, None] for values in (config.mean, config.std))
        self.together = max(1, PART_BYTES // (12 * self.size**2))
        self.scale, self.shift = (torch.from_numpy(a.astype(np.float32)) for a in (1 / (255 * std), mean / std))

    def __call__(self, images: Sequence[Tensor], numbers: np.ndarray | None = None) -> Tensor:
        out = self._empty(len(images))
        for part, pixels in self._changed(images, numbers):
            out.index_copy_(0, torch.tensor(part), pixels.mul_(self.scale).sub_(self.shift))
        return out

    def _changed(self, images: Sequence[Tensor], _: None) -> Iterator[tuple[list[int], Tensor]]:
        """Yields parts of the batch, by their places, and their pixels: whole grey levels, float32, free to change."""
        return self._parts(np.zeros(len(images)), lambda index: self._central(images[index]))

    def _central(self, image: Tensor) -> Tensor:
        """Returns the resized image's centre: (1, 3, size, size) uint8."""
        height, width = image.shape[2:]
        short, long = sorted((height, width))
        longer = int(self.shorter * long / short)
        height, width = (self.shorter, longer) if height <= width else (longer, self.shorter)
        top, left = (round((side - self.size) / 2) for side in (height, width))
        return resize(image, height, width)[..., top : top + self.size, left : left + self.size]

    def _empty(self, count: int) -> Tensor:
        return torch.empty(count, 3, self.size, self.size)

    def _parts(self, orders: np.ndarray, cut: Callable[[int], Tensor]) -> Iterator[tuple[list[int], Tensor]]:
        """Yields what `_changed` does, of images whose colours change in one order; ``cut`` gives each at its size."""
        scratch = self._empty(min(self.together, len(orders)))
        for order in np.unique(orders):
            places = np.flatnonzero(orders == order).tolist()
            for begin in range(0, len(places), self.together):
                part = places[begin : begin + self.together]
                pixels = scratch[: len(part)]
                for place, index in zip(pixels.split(1), part, strict=True):
                    place.copy_(cut(index))
                yield part, pixels


class TrainTransform(EvalTransform):
    """Random resized crop, flip, timm's augmentation and colour jitter as configured, by the numbers given: as
    `EvalTransform`.

    Without a range of crops, its resize and centre crop. Raises UserError for an augmentation that timm does not have.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.augment = config.augment
        self.auto_augment, self.erasing = auto_augment(config), random_erasing(config.augment)

    def __call__(self, images: Sequence[Tensor], numbers: np.ndarray) -> Tensor:
        return self._erased(super().__call__(images, numbers), numbers)

    def levels(self, images: Sequence[Tensor], numbers: np.ndarray) -> Tensor:
        """Returns the same before mean, deviation and erasing: grey levels, (N, 3, size, size) uint8. See
        `from_levels`."""
        out = torch.empty(len(images), 3, self.size, self.size, dtype=torch.uint8)
        for part, pixels in self._changed(images, numbers):
            out.index_copy_(0, torch.tensor(part), pixels.to(torch.uint8))
        return out

    def from_levels(self, levels: Tensor, numbers: np.ndarray) -> Tensor:
        """Returns what a call gives of images whose `levels` these are by the same numbers, to the bit."""
        return self._erased(levels.float().mul_(self.scale).sub_(self.shift), numbers)

    def _erased(self, pixels: Tensor, numbers: np.ndarray) -> Tensor:
        """Erases parts of images (N, 3, size, size), in place, where that is configured."""
        if self.erasing:
            for image, number in zip(pixels, numbers[:, OF_TIMM], strict=True):
                self.erasing(image, number)
        return pixels

    def _changed(self, images: Sequence[Tensor], numbers: np.ndarray) -> Iterator[tuple[list[int], Tensor]]:
        boxes, factors, orders = None, None, np.zeros(len(images))
        if self.augment.scale is not None:
            heights, widths = np.array([image.shape[2:] for image in images]).T
            boxes = draw_crops(numbers, heights, widths, self.augment).tolist()
        if self.augment.color_jitter > 0:
            factors, orders = draw_jitter(numbers, self.augment.color_jitter)
        flips = draw_flips(numbers, self.augment.flip)

        def cut(index: int) -> Tensor:
            image = self._crop(images[index], *boxes[index]) if boxes else self._central(images[index])
            image = image.flip(-1) if flips[index] else image
            return self.auto_augment(image, numbers[index, OF_TIMM]) if self.auto_augment else image

        for part, pixels in self._parts(orders, cut):
            if factors is not None:
                change_colors(pixels, factors[part], ORDERS[orders[part[0]]])
            yield part, pixels

    def _crop(self, image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        return resize(image[..., top : top + height, left : left + width], self.size, self.size)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes bilinearly, antialiased: (1, 3, H, W) uint8 -> (1, 3, height, width) uint8."""
    if image.shape[2:] == (height, width):
        return image
    return F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)


def change_colors(pixels: Tensor, factors: np.ndarray, order: Sequence[int]) -> Tensor:
    """Blends images with black, their mean grey and their own grey, in that order or another, in place.

    ``pixels`` (N, 3, H, W) float32 and the result are whole grey levels, 0 to 255; ``factors`` (N, 3) are for
    `JITTERS`. Plain products and sums, each rounded for itself: an image is the same whatever batch it is in.
    """
    for number in order:
        factor = torch.from_numpy(factors[:, number]).view(-1, 1, 1, 1)
        if JITTERS[number] == "brightness":
            pixels.mul_(factor)
        else:
            other = _grey(pixels)
            if JITTERS[number] == "contrast":
                total = other.sum(3, keepdim=True).sum(2, keepdim=True, dtype=torch.float64)  # exact
                other = total.div_(other[0].numel()).add_(0.5).floor_().float()
            pixels.sub_(other).mul_(factor).add_(other)
        pixels.clamp_(0, 255).floor_()
    return pixels


def _grey(pixels: Tensor) -> Tensor:
    """Returns (N, 1, H, W) of (N, 3, H, W), in whole levels. Before, nothing is rounded: all are multiples of 2^-16."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).add_(0.5).floor_()
