"""Images per second of the data loader on its own: by source, where decoded images are kept, size and transform."""

import dataclasses
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dk_bench.analysis.bench.clock import in_rounds, spread
from dk_bench.analysis.bench.recording import bench_record
from dk_bench.config import DataConfig
from dk_bench.data.decoded import EVERY_TIME, Decoded, Encoded, keep
from dk_bench.data.order import Augmented, InOrder, StepSampler, Transformed, as_it_is
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.sources import open_images
from dk_bench.data.transforms import EvalTransform, TrainTransform

SCHEMA_VERSION = 1
TAR, FOLDER, PROCEDURAL = "tar", "folder", "procedural"
FILES = (TAR, FOLDER)
SOURCES = (*FILES, PROCEDURAL)
TRAIN, EVAL = "train", "eval"
QUALITY = 90  # of the JPEG files that are written
SLOW_ROUNDS, SLOW_IMAGES = 3, 512  # where images are decoded in every round


@dataclass(frozen=True)
class LoaderPlan:
    """Sizes of a measurement. Where ``place`` names no files, ``images`` of ``side`` pixels are written."""

    sources: Sequence[str] = SOURCES
    sizes: Sequence[int] = (32, 64, 96)
    images: int = 2000
    side: int = 32
    batch: int = 128
    rounds: int = 7
    place: str | None = None


def bench_data(plan: LoaderPlan, on_source: Callable[[str], Any] = lambda name: None) -> dict[str, Any]:
    """Measures the loader of this process, without workers, and returns the record; ``on_source`` hears of each first.
    Raises UserError for a place that holds no images of classes."""
    settings = {
        **asdict(plan),
        "place": plan.place and Path(plan.place).name,
        "jpeg_quality": QUALITY,
        "augment": asdict(DataConfig().augment),
        "workers": 0,
    }

    def measure() -> dict[str, Any]:
        rates: list[dict[str, Any]] = []
        openings: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            for source in plan.sources:
                on_source(source)
                found, opening = _measure(source, plan, Path(folder, source))
                rates += found
                openings.append(opening)
        return {
            "instruction_set": torch.backends.cpu.get_cpu_capability(),  # of torch, not of operators of ours
            "rates": rates,
            "openings": openings,
            "warnings": [],
        }

    return bench_record("image rates", SCHEMA_VERSION, settings, torch.device("cpu"), measure)


def _measure(source: str, plan: LoaderPlan, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measures all sizes, transforms and ways of keeping images of one source, which take turns: images per second, by
    the lower quartile of the seconds of a pass over all images, and by the median. Returns also what `_open` does."""
    configs = [_config(source, plan, size, folder) for size in plan.sizes]
    images, opening = _open(source, configs[-1], plan, folder)
    rates, measures = [], []
    for config in configs:
        plain = open_images(config, "train")
        own = keep(plain, config) if source == PROCEDURAL else images  # those of each size are drawn anew
        for pixels in (own, Encoded(plain)):
            slow = pixels.where == EVERY_TIME
            count = min(len(pixels), SLOW_IMAGES) if slow else len(pixels)
            rounds = min(plan.rounds, SLOW_ROUNDS) if slow else plan.rounds
            about = {"source": source, "decoded": pixels.where, "size": config.size}
            for mode in (TRAIN, EVAL):
                rates.append(about | {"mode": mode, "images": count, "rounds": rounds})
                measures.append(_pass(pixels, config, mode, count))
    for measure in measures:
        measure()  # what is made once is not counted
    times = map(spread, in_rounds(measures, [rate["rounds"] for rate in rates]))
    for rate, seconds in zip(rates, times, strict=True):
        rate["images_per_second"] = round(rate["images"] / seconds.low, 1)
        rate["median"] = round(rate["images"] / seconds.median, 1)
    return rates, opening


def _config(source: str, plan: LoaderPlan, size: int, folder: Path) -> DataConfig:
    if source == PROCEDURAL:
        shapes = dataclasses.replace(DataConfig().procedural, train_images=plan.images)
        return DataConfig(size=size, procedural=shapes, batch_size=plan.batch)
    place = plan.place or str(folder / "train.tar" if source == TAR else folder / "train")
    return DataConfig(source="timm", size=size, train=place, val=place, batch_size=plan.batch)


def _open(source: str, config: DataConfig, plan: LoaderPlan, folder: Path) -> tuple[Decoded | Encoded, dict[str, Any]]:
    """Returns the source's images, decoded once, and the seconds that took; from a file, those to map it again too."""
    if source != PROCEDURAL and plan.place is None:
        write_images(Path(config.train), plan.images, plan.side)
    images, cache = open_images(config, "train"), folder / "decoded"
    pixels, first = _timed(lambda: keep(images, config, cache))
    again = _timed(lambda: keep(images, config, cache))[1] if cache.exists() else None
    return pixels, {
        "source": source,
        "decoded": pixels.where,
        "images": len(images),
        "pixels": images[0][0].size,  # width and height of the first
        "first_seconds": first,
        "again_seconds": again,
    }


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def _pass(pixels: Decoded | Encoded, config: DataConfig, mode: str, count: int) -> Callable[[], float]:
    """Returns a function that reads ``count`` images as training or evaluation do, and returns the seconds it took."""
    batch = min(config.batch_size, count)
    if mode == TRAIN:
        images = Augmented(pixels, TrainTransform(config), seed=0)
        sampler = StepSampler(len(pixels), batch, seed=0)
    else:
        images, sampler = Transformed(pixels, EvalTransform(config)), InOrder(count)
    loader = DataLoader(images, batch_size=batch, sampler=sampler, drop_last=True, collate_fn=as_it_is)
    steps = count // batch

    def seconds() -> float:
        sampler.set_epoch(sampler.epoch + 1)
        begin = time.perf_counter()
        for step, _ in enumerate(loader, start=1):
            if step == steps:
                break
        return (time.perf_counter() - begin) * count / (steps * batch)

    return seconds


def write_images(place: Path, count: int, side: int) -> None:
    """Writes ``count`` procedural images of ``side`` pixels as JPEG, a folder a class, to a folder or a ``.tar``."""
    if place.suffix == ".tar":
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(place, "w") as tar:
            write_images(Path(folder), count, side)
            for file in sorted(Path(folder).rglob("*.jpg")):
                tar.add(file, file.relative_to(folder))
        return
    shapes = ShapeImages("train", count, size=side)
    for index in range(count):
        image, label = shapes[index]
        file = place / shapes.classes[label] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, "JPEG", quality=QUALITY)
