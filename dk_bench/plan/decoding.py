"""How many cores it takes to decode and augment images as fast as devices train on them, by records of
``dk-bench bench data``."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dk_bench.data.decoded import EVERY_TIME
from dk_bench.plan.measured import IMAGES, bench_records
from dk_bench.training.outline import Outline

TRAIN = "train"
FILES = ("tar", "folder", "wds")  # as records call sources of files
ALIKE = 4.0  # images of up to so many times the pixels, or so many times fewer, tell how long others take


@dataclass(frozen=True)
class LoaderSpeed:
    """Images a second that one core decodes and augments for training, as a record has it: files of ``pixels`` each,
    for a network that sees squares of ``size``."""

    pixels: float
    size: int
    rate: float


def read_loader_speeds(places: Iterable[Path]) -> list[LoaderSpeed]:
    """Returns the speeds of loaders without worker processes that decode files in every epoch."""
    speeds = []
    for _, record in bench_records(places, IMAGES):
        for part in record["parts"]:
            pixels = {opening["source"]: math.prod(opening["pixels"]) for opening in part["openings"]}
            speeds += [
                LoaderSpeed(pixels[rate["source"]], rate["size"], rate["images_per_second"])
                for rate in part["rates"]
                if (rate["decoded"], rate["mode"], rate.get("workers", 0)) == (EVERY_TIME, TRAIN, 0)
                and rate["source"] in FILES
            ]
    return speeds


def cores_for(outline: Outline, rate: float, speeds: Iterable[LoaderSpeed]) -> float | None:
    """Returns the cores that load ``rate`` images a second: those of the record nearest in the images' pixels and in
    the network's, in proportion to the former. None where nothing is decoded, or no record is near."""
    if not outline.every_time or outline.pixels is None:
        return None
    pixels, size = math.prod(outline.pixels), outline.input_size[1]
    near = [speed for speed in speeds if 1 / ALIKE <= speed.pixels / pixels <= ALIKE]
    if not near:
        return None
    best = min(near, key=lambda speed: abs(math.log(speed.pixels / pixels)) + abs(math.log(speed.size / size)))
    return rate / (best.rate * best.pixels / pixels)
