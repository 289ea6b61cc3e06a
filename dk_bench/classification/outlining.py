"""What a plan asks of a classifier's configuration: how many images, and what training does for one of them."""

import dataclasses
import functools
import json

import torch

from dk_bench.classification.timm_models import base_and_spec, build_model, without_initial_weights
from dk_bench.config import Config, DataConfig, ModelConfig
from dk_bench.data.known_sizes import KNOWN_SIZES
from dk_bench.data.shifts import held_out_sets
from dk_bench.data.sources import data_name
from dk_bench.models.workload import Workload, count_workload
from dk_bench.training.outline import Outline, copies_kept

CLASSES = 1000  # of a classifier where only the data could tell


def outline_of(config: Config) -> Outline:
    """Returns the outline of a configuration; nothing is opened."""
    data, known = config.data, KNOWN_SIZES.get(data_name(config.data))
    shapes = data.procedural if data.source == "procedural" else None
    if shapes:
        images = {"train": shapes.train_images, "val": shapes.val_images}
        tests, classes, pixels = shapes.test_images, shapes.classes, (data.size, data.size)
    elif data.source == "synthetic":
        made = data.synthetic
        images = {"train": made.train_images, "val": made.val_images}
        tests, classes, pixels = None, made.classes, (made.width, made.height)
    else:
        images = {"train": known and known.train, "val": known and known.val}
        tests, classes, pixels = known and (known.test or None), known and known.classes, known and known.pixels
    images |= dict.fromkeys(held_out_sets(data), tests)
    decoded = _decoded(data, images, pixels)
    model = config.model
    is_timed = model.spec is None and not model.kwargs
    return Outline(
        model=model.name,
        timed_as=model.name if is_timed else None,
        base=None if model.kwargs else base_and_spec(model)[0],
        data=data_name(data),
        images=images,
        classes=classes,
        input_size=(3, data.size, data.size),
        batch=data.batch_size,
        per_device=False,
        epochs=config.optim.epochs,
        evaluations=config.optim.epochs,
        precision=config.trainer.precision,
        copies=copies_kept(config.optim.optimizer, averaged=config.ema.decay is not None),
        decoded=sum(decoded.values()),
        pixels=pixels,
        every_time=_decodes_every_time(data, decoded),
    )


def _decodes_every_time(data: DataConfig, decoded: dict[str, float]) -> bool:
    """Tells whether training images are files that every epoch decodes; ``decoded`` has the splits kept in files."""
    if data.source == "synthetic":
        made = data.synthetic
        kept = data.cache != "off" and 3.0 * made.width * made.height * made.train_images <= data.cache_gb * 1e9
        return made.stored == "jpeg" and not kept
    return data.source == "timm" and "train" not in decoded and data.cache != "memory"


def _decoded(data: DataConfig, images: dict[str, int | None], pixels: tuple[int, int] | None) -> dict[str, float]:
    """Returns the bytes of each split that is kept decoded in a file, as far as they are known."""
    in_files = data.cache not in ("memory", "off") and (data.source == "timm" or data.cache != "auto")
    if not in_files or data.reader or pixels is None:
        return {}
    sizes = {split: 3.0 * pixels[0] * pixels[1] * count for split, count in images.items() if count}
    return {split: size for split, size in sizes.items() if size <= data.cache_gb * 1e9}


def workload_of(config: Config, outline: Outline, rigid: bool) -> Workload:
    """Counts what training does for one image, with the model or its rigid base. Raises UserError for a model that
    cannot be built."""
    wanted = without_initial_weights(config.model)
    if rigid:
        wanted = dataclasses.replace(wanted, name=base_and_spec(wanted)[0], spec=None)
    return _counted(json.dumps(dataclasses.asdict(wanted)), outline.classes or CLASSES, outline.input_size)


@functools.lru_cache
def _counted(model: str, classes: int, input_size: tuple[int, int, int]) -> Workload:
    """Counts once for the cells of all sweeps that have the model, whose settings are given as JSON."""
    with torch.device("meta"):
        built = build_model(ModelConfig(**json.loads(model)), classes).train()
    return count_workload(built, built, input_size)
