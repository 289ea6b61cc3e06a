"""Images per second of the data loader on its own: by source, where decoded images are kept, size, transform and number
of workers."""

import importlib.util
import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from dk_bench.analysis.bench.clock import in_rounds, spread
from dk_bench.analysis.bench.recording import bench_record
from dk_bench.config import DataConfig
from dk_bench.data.decoded import EVERY_TIME, Decoded, Encoded, keep
from dk_bench.data.order import Augmented, InOrder, StepSampler, Transformed, as_it_is
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.shards import READER, order_of
from dk_bench.data.sources import Images, open_images
from dk_bench.data.transforms import EvalTransform, TrainTransform

SCHEMA_VERSION = 1
TAR, FOLDER, SHARDS, PROCEDURAL, SYNTHETIC = "tar", "folder", READER, "procedural", "synthetic"
FILES = (TAR, FOLDER)
SOURCES = (*FILES, SHARDS, PROCEDURAL, SYNTHETIC)
TRAIN, EVAL = "train", "eval"
PER_SHARD = 1000  # images of the shards that are written
QUALITY = 90  # of the JPEG files that are written
SLOW_ROUNDS, SLOW_IMAGES = 3, 512  # where images are decoded in every round


@dataclass(frozen=True)
class LoaderPlan:
    """Sizes of a measurement. Where ``place`` names no files, ``images`` of ``side`` pixels are written. ``reader`` and
    ``root`` are ``data.reader`` and ``data.root``, where ``place`` is something for timm's reader."""

    sources: Sequence[str] = SOURCES
    sizes: Sequence[int] = (32, 64, 96)
    images: int = 2000
    side: int = 32
    batch: int = 128
    rounds: int = 7
    place: str | None = None
    reader: str = ""
    root: str | None = None
    workers: Sequence[int] = (0,)


def options(settings: dict[str, Any]) -> str:
    """Returns the options of `dk-bench bench data` that measure again as a record's settings say: those that are not
    the default."""
    given = []
    for field in fields(LoaderPlan):
        default, value = (list(v) if isinstance(v, tuple) else v for v in (field.default, settings.get(field.name)))
        if value is not None and value != default:
            name = "repeats" if field.name == "rounds" else field.name
            given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(given)


def bench_data(plan: LoaderPlan, on_source: Callable[[str], Any] = lambda name: None) -> dict[str, Any]:
    """Measures the loader of this process, with so many workers each, and returns the record; ``on_source`` hears of
    each source first. Raises UserError for a place that holds no images of classes."""
    settings = {
        **asdict(plan),
        "place": plan.place and Path(plan.place).name,
        "root": plan.root and Path(plan.root).name,
        "jpeg_quality": QUALITY,
        "augment": asdict(DataConfig().augment),
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

    return bench_record("image rates", SCHEMA_VERSION, settings, torch.device("cpu"), measure, max(plan.workers))


def _measure(source: str, plan: LoaderPlan, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measures all sizes, transforms, numbers of workers and ways of keeping images of one source, which take turns:
    images per second, by the lower quartile of the seconds of a pass over all images, and by the median. Returns also
    what `_open` does."""
    configs = [_config(source, plan, size, folder) for size in plan.sizes]
    images, opening = _open(source, configs[-1], plan, folder)
    rates, measures = [], []
    for config in configs:
        plain = open_images(config, "train", folder / "decoded")
        own = keep(plain, config) if source == PROCEDURAL else images  # those of each size are drawn anew
        for pixels in (own, Encoded(plain)) if own.where != EVERY_TIME else (own,):
            slow = pixels.where == EVERY_TIME
            count = min(len(pixels), SLOW_IMAGES) if slow else len(pixels)
            rounds = min(plan.rounds, SLOW_ROUNDS) if slow else plan.rounds
            about = {"source": source, "decoded": pixels.where, "size": config.size}
            for workers, mode in product(plan.workers, (TRAIN, EVAL)):
                rates.append(about | {"mode": mode, "workers": workers, "images": count, "rounds": rounds})
                measures.append(_pass(pixels, plain, replace(config, workers=workers), mode, count))
    for measure in measures:
        measure()  # what is made once is not counted
    times = map(spread, in_rounds(measures, [rate["rounds"] for rate in rates]))
    for rate, seconds in zip(rates, times, strict=True):
        rate["images_per_second"] = round(rate["images"] / seconds.low, 1)
        rate["median"] = round(rate["images"] / seconds.median, 1)
    return rates, opening


def _config(source: str, plan: LoaderPlan, size: int, folder: Path) -> DataConfig:
    same = {"size": size, "batch_size": plan.batch}
    if source == PROCEDURAL:
        return DataConfig(procedural=replace(DataConfig().procedural, train_images=plan.images), **same)
    if source == SYNTHETIC:
        return DataConfig(source=source, synthetic=replace(DataConfig().synthetic, train_images=plan.images), **same)
    if plan.reader:
        place = {"reader": plan.reader, "root": plan.root, "train": plan.place}
    elif source == SHARDS:
        last = (plan.images - 1) // PER_SHARD
        place = {"reader": f"{READER}/bench", "root": str(folder), "train": f"{{0000..{last:04d}}}.tar"}
    else:
        place = {"train": plan.place or str(folder / "train.tar" if source == TAR else folder / "train")}
    return DataConfig(source="timm", val=place["train"], **place, **same)


def _open(source: str, config: DataConfig, plan: LoaderPlan, folder: Path) -> tuple[Decoded | Encoded, dict[str, Any]]:
    """Returns the source's images, decoded once, and the seconds that took; from a file, those to map it again too. Of
    shards also the seconds to find all samples, and to read where these are."""
    if config.source == "timm" and plan.place is None:
        write_images(
            folder if source == SHARDS else Path(config.train), plan.images, plan.side, shards=source == SHARDS
        )
    cache = folder / "decoded"
    images, found = _timed(lambda: open_images(config, "train", cache))
    reading = _timed(lambda: open_images(config, "train", cache))[1]
    pixels, first = _timed(lambda: Encoded(images) if source == SYNTHETIC else keep(images, config, cache))
    again = _timed(lambda: keep(images, config, cache))[1] if isinstance(pixels, Decoded) and pixels.path else None
    return pixels, {
        "source": source,
        "decoded": pixels.where,
        "images": len(images),
        "pixels": images[0][0].size,  # width and height of the first
        "first_seconds": first if isinstance(pixels, Decoded) else None,
        "again_seconds": again,
        **({"index_seconds": found, "index_again_seconds": reading} if source == SHARDS else {}),
    }


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


class First(Sampler):
    """The first ``count`` of what another sampler yields, so that a pass ends where it is meant to."""

    def __init__(self, sampler: DistributedSampler, count: int) -> None:
        self.sampler, self.count = sampler, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(self.sampler, self.count)


def _pass(pixels: Decoded | Encoded, plain: Images, config: DataConfig, mode: str, count: int) -> Callable[[], float]:
    """Returns a function that reads ``count`` images as training or evaluation do, and returns the seconds it took."""
    batch = min(config.batch_size, count)
    if mode == TRAIN:
        images = Augmented(pixels, TrainTransform(config), seed=0)
        sampler = StepSampler(len(pixels), batch, seed=0, order=order_of(plain, config))
    else:
        images, sampler = Transformed(pixels, EvalTransform(config)), InOrder(count)
    used = count // batch * batch
    with_workers = {"num_workers": config.workers, "prefetch_factor": config.prefetch, "persistent_workers": True}
    more = with_workers if config.workers else {}
    loader = DataLoader(images, batch_size=batch, sampler=First(sampler, used), collate_fn=as_it_is, **more)

    def seconds() -> float:
        sampler.set_epoch(sampler.epoch + 1)
        begin = time.perf_counter()
        for _ in loader:
            pass
        return (time.perf_counter() - begin) * count / used

    return seconds


def default_sources() -> list[str]:
    """Returns all sources that there is what they need for."""
    return [source for source in SOURCES if source != SHARDS or importlib.util.find_spec("webdataset")]


def write_images(place: Path, count: int, side: int, *, shards: bool = False) -> None:
    """Writes ``count`` procedural images of ``side`` pixels as JPEG, a folder a class, to a folder or a ``.tar``, or as
    shards into a folder."""
    shapes = ShapeImages("train", count, size=side)
    if shards:
        _write_shards(place, shapes)
        return
    if place.suffix == ".tar":
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(place, "w") as tar:
            write_images(Path(folder), count, side)
            for file in sorted(Path(folder).rglob("*.jpg")):
                tar.add(file, file.relative_to(folder))
        return
    for index in range(count):
        image, label = shapes[index]
        file = place / shapes.classes[label] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, "JPEG", quality=QUALITY)


def _write_shards(folder: Path, shapes: ShapeImages) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(shapes), PER_SHARD)):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as tar:
            for index in range(begin, min(begin + PER_SHARD, len(shapes))):
                image, label = shapes[index]
                stream = io.BytesIO()
                image.save(stream, "JPEG", quality=QUALITY)
                for suffix, content in (("jpg", stream.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
