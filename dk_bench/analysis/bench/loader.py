"""Images per second of the data loader on its own: by source, where decoded images are kept, size and transform."""

from __future__ import annotations

import dataclasses
import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dk_bench.analysis.bench.clock import Spread, in_rounds, spread
from dk_bench.analysis.bench.recording import bench_record
from dk_bench.config import DataConfig
from dk_bench.data.decoded import EVERY_TIME, Decoded, Encoded, keep
from dk_bench.data.order import Augmented, InOrder, StepSampler, Transformed, as_it_is
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.sources import open_images
from dk_bench.data.transforms import EvalTransform, TrainTransform

SCHEMA_VERSION = 1
KIND = "image rates"
TAR, FOLDER, PROCEDURAL = "tar", "folder", "procedural"
FILES = (TAR, FOLDER)
SOURCES = (*FILES, PROCEDURAL)
TRAIN, EVAL = "train", "eval"
QUALITY = 90  # of the JPEG files that are written
SLOW_ROUNDS, SLOW_IMAGES = 3, 512  # where images are decoded in every round


@dataclass(frozen=True)
class Rate:
    """Images per second in one process, by the lower quartile of the seconds of a pass over ``images`` images."""

    source: str
    decoded: str  # where decoded images are, see `dk_bench.data.decoded`
    size: int
    mode: str
    images: int
    rounds: int
    images_per_second: float
    median: float


@dataclass(frozen=True)
class Opening:
    """Seconds until a split's decoded images are at hand: decoded the first time, and, of a file, mapped again."""

    source: str
    decoded: str
    images: int
    pixels: tuple[int, int]  # width and height of the first image
    first_seconds: float
    again_seconds: float | None


@dataclass(frozen=True)
class LoaderPlan:
    """What is measured: ``images`` of ``side`` pixels are written where files are wanted and ``place`` names none."""

    sources: Sequence[str] = SOURCES
    sizes: Sequence[int] = (32, 64, 96)
    images: int = 2000
    side: int = 32
    batch: int = 128
    rounds: int = 7
    place: str | None = None


def bench_data(plan: LoaderPlan, on_source: Callable[[str], Any] = lambda name: None) -> dict[str, Any]:
    """Times the loader of this process, without workers, and returns the record; ``on_source`` hears of each at first.

    Raises UserError for a place that holds no images of classes.
    """
    settings = {
        **asdict(plan),
        "place": plan.place and Path(plan.place).name,
        "jpeg_quality": QUALITY,
        "augment": asdict(DataConfig().augment),
        "workers": 0,
    }

    def measure() -> dict[str, Any]:
        rates: list[Rate] = []
        openings: list[Opening] = []
        with tempfile.TemporaryDirectory() as folder:
            for source in plan.sources:
                on_source(source)
                found, opening = _measure(source, plan, Path(folder, source))
                rates += found
                openings.append(opening)
        return {
            "instruction_set": torch.backends.cpu.get_cpu_capability(),  # of torch, not of operators of ours
            "rates": [asdict(rate) for rate in rates],
            "openings": [asdict(opening) for opening in openings],
            "warnings": [],
        }

    return bench_record(KIND, SCHEMA_VERSION, settings, torch.device("cpu"), measure)


def _measure(source: str, plan: LoaderPlan, folder: Path) -> tuple[list[Rate], Opening]:
    """Returns all sizes, transforms and ways of keeping images of one source, which take turns."""
    configs = [_config(source, plan, size, folder) for size in plan.sizes]
    with _opened(source, configs[-1], plan, folder) as (images, opening):
        rows, measures, rounds = [], [], []
        for config in configs:
            plain = open_images(config, "train")
            own = keep(plain, config) if source == PROCEDURAL else images  # those of each size are drawn anew
            for pixels in (own, Encoded(plain)):
                slow = pixels.where == EVERY_TIME
                count = min(len(pixels), SLOW_IMAGES) if slow else len(pixels)
                for mode in (TRAIN, EVAL):
                    rows.append((source, pixels.where, config.size, mode, count))
                    measures.append(_pass(pixels, config, mode, count))
                    rounds.append(min(plan.rounds, SLOW_ROUNDS) if slow else plan.rounds)
        for measure in measures:
            measure()  # what is made once is not counted
        times = map(spread, in_rounds(measures, rounds))
        return [_rate(*row) for row in zip(rows, rounds, times, strict=True)], opening


def _rate(row: tuple, rounds: int, seconds: Spread) -> Rate:
    count = row[-1]
    return Rate(*row, rounds, round(count / seconds.low, 1), round(count / seconds.median, 1))


def _config(source: str, plan: LoaderPlan, size: int, folder: Path) -> DataConfig:
    if source == PROCEDURAL:
        shapes = dataclasses.replace(DataConfig().procedural, train_images=plan.images)
        return DataConfig(size=size, procedural=shapes, batch_size=plan.batch)
    place = plan.place or str(folder / "train.tar" if source == TAR else folder / "train")
    return DataConfig(source="timm", size=size, train=place, val=place, batch_size=plan.batch)


@contextmanager
def _opened(
    source: str, config: DataConfig, plan: LoaderPlan, folder: Path
) -> Iterator[tuple[Decoded | Encoded, Opening]]:
    """Returns the source's images, decoded once, and how long that took."""
    if source != PROCEDURAL and plan.place is None:
        write_images(Path(config.train), plan.images, plan.side)
    images, cache = open_images(config, "train"), folder / "decoded"
    begin = time.perf_counter()
    pixels = keep(images, config, cache)
    first, again = time.perf_counter() - begin, None
    if cache.exists():
        begin = time.perf_counter()
        keep(images, config, cache)
        again = time.perf_counter() - begin
    yield pixels, Opening(source, pixels.where, len(images), images[0][0].size, first, again)


def _pass(pixels: Decoded | Encoded, config: DataConfig, mode: str, count: int) -> Callable[[], float]:
    """Returns a function that reads ``count`` images as training or evaluation do, an epoch later each time, and
    returns the seconds that took."""
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
    """Writes ``count`` procedural images of ``side`` pixels as JPEG files, a folder a class: to a folder, or, where
    ``place`` ends so, into a tar."""
    shapes = ShapeImages("train", count, size=side)
    numbered = ((index, *shapes[index]) for index in range(count))
    files = ((f"{shapes.classes[label]}/{index}.jpg", _jpeg(image)) for index, image, label in numbered)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix != ".tar":
        for name, content in files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return
    with tarfile.open(place, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _jpeg(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
