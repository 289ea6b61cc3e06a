"""From a PIL image to the tensor a network sees. All randomness comes from torch's CPU generator."""

from __future__ import annotations

import math

from torchvision import transforms as T

from dk_bench.config import DataConfig


def train_transform(config: DataConfig) -> T.Compose:
    """Random resized crop, flip and colour jitter as configured: (H, W) image -> (3, size, size) float32."""
    augment, size = config.augment, (config.size, config.size)
    steps = _resize_and_crop(config) if augment.scale is None else []
    if augment.scale is not None:
        steps.append(T.RandomResizedCrop(size, tuple(augment.scale), tuple(augment.ratio)))
    if augment.flip > 0:
        steps.append(T.RandomHorizontalFlip(augment.flip))
    if augment.color_jitter > 0:
        steps.append(T.ColorJitter(*[augment.color_jitter] * 3))
    return T.Compose([*steps, T.ToTensor(), T.Normalize(config.mean, config.std)])


def eval_transform(config: DataConfig) -> T.Compose:
    """Resize of the shorter side to size / crop_pct, centre crop: (H, W) image -> (3, size, size) float32."""
    return T.Compose([*_resize_and_crop(config), T.ToTensor(), T.Normalize(config.mean, config.std)])


def _resize_and_crop(config: DataConfig) -> list:
    return [T.Resize(math.floor(config.size / config.crop_pct)), T.CenterCrop(config.size)]
