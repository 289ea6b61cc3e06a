"""timm's augmentations of one image: RandAugment, AutoAugment and AugMix, and random erasing.

timm draws from the generators of the process (Python's, numpy's and torch's). Here they are seeded by the image's own
number, and are afterwards as they were before: what an image becomes is a function of seed, epoch and image alone.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dk_bench.config import AugmentConfig, DataConfig
from dk_bench.errors import UserError

# Sections of timm's descriptions, after the first: timm passes over others, or takes them for something else.
SECTIONS = {
    "rand": r"(m|n|p|mstd|mmax|inc)\d+(\.\d+)?|t(weights|3a|3aw)",
    "augmix": r"(m|w|d|a|b|mstd)\d+(\.\d+)?",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), r"mstd\d+(\.\d+)?"),
}
ERASING = 0x9E3779B9  # by which the seed of erasing differs from that of what is done to the picture before


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's generators (the CPU's) for the block, and puts them back after it. ``seed``:
    from 0 to 2^32 - 1."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def seed_of(number: float) -> int:
    """Returns the seed that one of an image's numbers, of `dk_bench.data.draws.uniform`, gives."""
    return int(number * 2**32)


def auto_augment(config: DataConfig) -> Callable[[Tensor, float], Tensor] | None:
    """Returns what ``config.augment.auto_augment`` describes: an image (1, 3, H, W) uint8, and a number of its own ->
    the same; None where that is null. Raises UserError for a description that timm does not have."""
    if (described := config.augment.auto_augment) is None:
        return None
    change = _by_timm(described, config)

    def changed(image: Tensor, number: float) -> Tensor:
        picture = Image.fromarray(image[0].permute(1, 2, 0).contiguous().numpy())
        with drawn_by(seed_of(number)):
            picture = change(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]

    return changed


def random_erasing(config: AugmentConfig) -> Callable[[Tensor, float], Tensor] | None:
    """Returns timm's random erasing as ``config`` has it: an image (3, H, W), less its mean over its deviation, and a
    number of its own -> the same, changed in place; None where the probability is zero."""
    if not config.random_erasing:
        return None
    from timm.data.random_erasing import RandomErasing  # slow to import

    kind = {"mode": config.random_erasing_mode, "max_count": config.random_erasing_count}
    erase = RandomErasing(config.random_erasing, device="cpu", **kind)

    def erased(image: Tensor, number: float) -> Tensor:
        with drawn_by(seed_of(number) ^ ERASING):
            return erase(image)

    return erased


def _by_timm(described: str, config: DataConfig) -> Callable[[Image.Image], Image.Image]:
    """Returns timm's transform, with the settings that timm.data.create_transform gives it."""
    from timm.data import auto_augment as timms

    kind, *sections = described.split("-")
    pattern = SECTIONS.get(kind)
    if pattern is None or not all(re.fullmatch(pattern, section) for section in sections):
        known = f"one of timm's: {', '.join(SECTIONS)}, with sections as in rand-m7-mstd0.5-inc1, or null"
        raise UserError(f"expected {known}", key="data.augment.auto_augment", value=described)
    settings = {
        "translate_const": int(config.size * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in config.mean),
        "interpolation": Image.Resampling.BILINEAR,  # as all our resizing is
    }
    try:
        if kind == "rand":
            made = timms.rand_augment_transform(described, settings)
        elif kind == "augmix":
            made = timms.augment_and_mix_transform(described, settings | {"translate_pct": 0.3})
        else:
            made = timms.auto_augment_transform(described, settings)
        if kind == "augmix" and made.width < 1:
            raise ValueError("a width of no chains, which would leave a darker picture")
        if kind == "augmix" and made.alpha <= 0:
            raise ValueError("an alpha that is not above 0, of which no shares can be drawn")
    except (AssertionError, ValueError) as error:  # a number that is none of a section's kind
        raise UserError(f"timm refuses it: {error}", key="data.augment.auto_augment", value=described) from error
    for step in getattr(made, "ops", None) or [step for policy in made.policy for step in policy]:
        if step.aug_fn is timms.posterize:
            step.aug_fn = _posterize
    return made


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps so many bits of every channel. At the end of its range timm asks for none: black, as Pillow had it before
    it refused that (13.0 does, in the middle of an epoch)."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new("RGB", image.size)
