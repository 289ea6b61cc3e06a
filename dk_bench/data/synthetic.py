"""Images of ImageNet's shape that are in no file: what the rest of the pipeline takes can be measured with them alone.

They show nothing, and labels have nothing to do with them. Decoding, augmentation, transfer and training cost what
they cost with photographs of that size; reading a disk or a network is what is missing.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from dk_bench.config import SyntheticConfig
from dk_bench.data.pixels import open_image
from dk_bench.data.procedural import ShapeImages

NAME = "synthetic"  # of the source, and what records call the data
SPLITS = ("train", "val")
DIFFERENT = 32  # pictures; image i is picture i modulo this
# Of 500 x 375 pixels, ImageNet's commonest size, these make JPEG files of 115 kB, which its files have on average.
QUALITY = 95
AMPLITUDE = 38.0  # grey levels, of the largest waves
FALL = 0.86  # of waves half as long


class SyntheticImages:
    """One split as map-style data set: item ``index`` is (RGB image, label); labels go round.

    Pictures are noise whose amplitude falls with frequency, as that of photographs does. They are made once, on first
    use. Where ``config.stored`` is ``jpeg`` they are decoded whenever they are asked for, as files are.
    """

    def __init__(self, config: SyntheticConfig, split: str) -> None:
        self.config, self.split = config, split
        self.count = config.train_images if split == "train" else config.val_images
        self.classes = list(map(str, range(config.classes)))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        picture = self.pictures[index % DIFFERENT]
        image = open_image(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        return image, index % self.config.classes

    @property
    def labels(self) -> np.ndarray:
        """Returns the labels of all images, in order: (images,) int64."""
        return np.arange(self.count) % self.config.classes

    @property
    def settings(self) -> dict[str, Any]:
        """Returns all that the images depend on, but for the program that makes them."""
        return {"split": self.split, **asdict(self.config)}

    @cached_property
    def pictures(self) -> Sequence[bytes | Image.Image]:
        """Returns the different pictures: JPEG files or decoded."""
        made = [_noise(self.config.width, self.config.height, number) for number in range(min(DIFFERENT, self.count))]
        return list(map(_encoded, made)) if self.config.stored == "jpeg" else made


Drawn = ShapeImages | SyntheticImages  # made by a program, from settings


def _noise(width: int, height: int, seed: int) -> Image.Image:
    """Returns a picture of waves of all lengths, each half as long as those before."""
    rng = np.random.default_rng((20, seed))
    pixels, step, amplitude = np.full((height, width, 3), 128, np.float32), max(width, height), AMPLITUDE
    while step >= 1:
        coarse = rng.standard_normal((height // step + 2, width // step + 2, 3)).astype(np.float32)
        for channel in range(3):
            fine = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += amplitude * np.asarray(fine)
        step, amplitude = step // 2, FALL * amplitude
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
