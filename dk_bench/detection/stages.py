"""Data sets whose pipeline changes in the course of training, as hooks of mmdet's change it."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from mmcv.transforms import Compose

from dk_bench.detection.hook_names import OF_EPOCHS, hooks_of, name_of
from dk_bench.detection.image_loading import check_pipeline
from dk_bench.detection.mmengine_config import DetectionConfig
from dk_bench.errors import UserError

LAST_EPOCHS, SKIPPED = 15, ("Mosaic", "RandomAffine", "MixUp")  # YOLOXModeSwitchHook's defaults


def stages_of(config: DetectionConfig, images: Any) -> list[tuple[int, Any]]:
    """Returns pairs, rising, of an epoch and the training images as PipelineSwitchHook and YOLOXModeSwitchHook leave
    them from then on. ``images`` themselves stay as they are. Raises UserError for images that cannot change so."""
    changes = [_change(config, key, settings, images) for key, settings in hooks_of(config.cfg, OF_EPOCHS)]
    stages = []
    for epoch, change in sorted(changes, key=lambda pair: pair[0]):
        images = copy.copy(images)  # shallow: the annotations are shared
        change(images)
        stages.append((epoch, images))
    return stages


def _change(
    config: DetectionConfig, key: str, settings: dict[str, Any], images: Any
) -> tuple[int, Callable[[Any], None]]:
    name, length = name_of(settings), config.loop.length
    if name == "PipelineSwitchHook":
        if not hasattr(images, "pipeline"):
            what = f"a {type(images).__name__} has no pipeline of its own"
            raise UserError(f"key '{key}' is a {name}, but train_dataloader.dataset, {what}")
        return settings["switch_epoch"], partial(_switch, key, settings["switch_pipeline"])
    if not hasattr(images, "update_skip_type_keys"):
        expected = (
            f"expected a MultiImageMixDataset, whose transforms can be left out; this is a {type(images).__name__}"
        )
        raise UserError(f"key '{key}' is a {name}: train_dataloader.dataset: {expected}")
    skipped = settings.get("skip_type_keys", SKIPPED)
    # As mmdet's hook counts: with 15 last epochs the sixteenth from the end is the first.
    begin = max(0, length - settings.get("num_last_epochs", LAST_EPOCHS) - 1)
    return begin, lambda images: images.update_skip_type_keys(skipped)


def _switch(key: str, pipeline: list[dict[str, Any]], images: Any) -> None:
    try:
        images.pipeline = Compose(pipeline)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"key '{key}.switch_pipeline' cannot be built: {type(error).__name__}: {error}") from error
    check_pipeline(images, key)
