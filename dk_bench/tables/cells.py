"""Records grouped into cells, a cell being one point of a grid with all its seeds, and the figures a cell gives."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from dk_bench.runs.identity import DEFAULTS, cell_settings, config_hash, flatten, setting
from dk_bench.runs.record import RunRecord
from dk_bench.tables import pooling
from dk_bench.tables.entries import Figure, Number
from dk_bench.tables.pooling import Pair, count_dirty, devices_of, pair_of
from dk_bench.tables.statistics import summarize

UNKNOWN = "unknown"  # a cost that could not be counted
SPEC = ("model.spec.", "model.backbone.spec.")  # keys of a configuration that deforms the model it names
NAMES = ("model.name", "model.backbone.model_name", "model.backbone.spec")  # of the model; without a spec it is null
START = "model.backbone.checkpoint"  # weights that a detector starts from, each backbone's own; whether any counts
STARTS = ("model.checkpoint", "model.pretrained")  # what a classifier starts from
OFFSET_MULTIPLIER = "optim.offset_lr_multiplier"
DETECTORS_MULTIPLIERS = r"optim_wrapper\.paramwise_cfg\.custom_keys\.(kernel_offset|data_offset|data_mask)\."
OFFSET_RATE = re.compile(rf"{re.escape(OFFSET_MULTIPLIER)}$|{DETECTORS_MULTIPLIERS}")
PAPERS_SIZE, PAPERS_CROP = 224, 0.875  # the paper evaluates the centre 224 x 224 of an image resized to 256
# Of Faster R-CNN 1x as mmdet has it: height and width that images are scaled to fit, passes over the training images.
PAPERS_DETECTOR = {"model.type": "FasterRCNN", "model.neck.type": "FPN", "train_cfg.max_epochs": 12}
PAPERS_SCALE = [800, 1333]


@dataclass(frozen=True, order=True)
class Data:
    """Identifies the data of a run: equal for two runs of the same data set."""

    name: str
    classes: int = 0
    train_images: int = 0
    val_images: int = 0

    @classmethod
    def of(cls, record: RunRecord) -> Self:
        images = (record.data.get(part) or 0 for part in ("train_images", "val_images"))
        classes = record.data.get("classes") or 0  # their names or their number
        return cls(record.data["name"], classes if isinstance(classes, int) else len(classes), *images)

    @property
    def is_imagenet(self) -> bool:
        """Tells whether it is the data of the paper's figures: ImageNet 2012's 1000 classes and 50,000 val images."""
        return "imagenet" in self.name.lower() and (self.classes, self.val_images) == (1000, 50_000)

    @property
    def is_coco(self) -> bool:
        """Tells whether it is COCO 2017: 80 classes, train2017 (with or without its 1,021 empty images) and val2017."""
        is_whole = (self.classes, self.val_images) == (80, 5000) and self.train_images in (117_266, 118_287)
        return "coco" in self.name.lower() and is_whole

    def __str__(self) -> str:
        counts = f"{self.classes} classes, {self.train_images:,} training and {self.val_images:,} validation images"
        return f"{self.name} ({counts})" if self.classes else self.name


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed, and what tells the cell from others of its model.

    ``runs`` are one a seed, or one a seed and draw, see `dk_bench.tables.pooling`; ``again`` are those that came after
    one of the same seed and draw had finished, which change no figure.
    """

    runs: tuple[RunRecord, ...]
    label: str = ""
    again: tuple[RunRecord, ...] = ()

    @property
    def model(self) -> str:
        return self.runs[0].model["name"]

    @property
    def data(self) -> Data:
        return Data.of(self.runs[0])

    @cached_property
    def all_settings(self) -> dict[str, Any]:
        """Returns the settings that can change results, the number of devices, where it does, as ``devices``."""
        return cell_settings(self.runs[0].config) | {"devices": devices_of(self.runs[0])}

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the cell's settings but for the model's name and what a rigid model has not: equal where only the
        model differs, so that nothing else is compared."""
        return {
            key: bool(value) if key == START else value
            for key, value in self.all_settings.items()
            if key not in NAMES and not key.startswith(SPEC) and not OFFSET_RATE.match(key)
        }

    @property
    def offset_rates(self) -> dict[str, Any]:
        """Tells how fast offsets learn, where that is set."""
        return {key: value for key, value in self.all_settings.items() if OFFSET_RATE.match(key)}

    @property
    def has_spec(self) -> bool:
        """Tells whether the configuration deformed the model that it names."""
        return any(key.startswith(SPEC) for key in self.all_settings)

    @property
    def starts_trained(self) -> bool:
        """Tells whether its runs, of a classifier, start from trained weights: those of a file, or timm's."""
        return any(self.all_settings.get(key) for key in STARTS)

    @property
    def is_papers_protocol(self) -> bool:
        """Tells whether its figures may stand beside the paper's: the same images, evaluated the same way."""
        run = self.runs[0]
        size = setting(run.config, "data.size")
        sizes = {size, *(run.model.get("input_size") or [size])[-2:]}
        crop = setting(run.config, "data.crop_pct")
        return self.data.is_imagenet and sizes == {PAPERS_SIZE} and crop == PAPERS_CROP

    @property
    def is_papers_detector(self) -> bool:
        """Tells whether it is Faster R-CNN with FPN on COCO, setting 1x: its figures may stand beside the paper's."""
        run = self.runs[0]
        flat = dict(flatten(run.config))
        sizes = run.model.get("input_size") or [None]
        same = all(str(flat.get(key)).rpartition(".")[2] == str(value) for key, value in PAPERS_DETECTOR.items())
        return self.data.is_coco and same and sizes[-2:] == PAPERS_SCALE

    def final(self, metric: str) -> Figure:
        """Returns a metric at the end of training, over the finished runs."""
        values = [run.metrics["final"].get(metric) for run in self._finished()]
        known, states = list(filter(_is_number, values)), [run.status for run in self.runs]
        summary, without = summarize(known) if known else None, len(values) - len(known)
        failed, running, stopped = (states.count(state) for state in ("failed", "running", "stopped"))
        return Figure(summary, failed, running, without, count_dirty(self.runs), stopped=stopped)

    def figures(self, metric: str) -> dict[Pair, float]:
        """Returns a metric at the end of training of every finished run that has it, by what runs are paired by."""
        found = {pair_of(run): run.metrics["final"].get(metric) for run in self._finished()}
        return {pair: value for pair, value in found.items() if _is_number(value)}

    def pairs_with(self, other: Self) -> int:
        """Tells how many runs of both have finished that may be paired."""
        ours, theirs = ({pair_of(run) for run in cell._finished()} for cell in (self, other))
        return len(ours & theirs)

    def mixture(self, metric: str) -> list[str]:
        """Tells what of the finished runs is not alike, and what was run again with which figure, in words."""
        figures = ((run.seed, run.metrics["final"].get(metric)) for run in self.again)
        again = [f"seed {seed} again: {'no figure' if value is None else f'{value:.1f}'}" for seed, value in figures]
        return pooling.mixture(self._finished()) + again

    def cost(self, key: str) -> float | str | None:
        """Returns a count, the same for every seed, which a failed run knows too; UNKNOWN where counting failed."""
        known = (run.cost[key] for run in self.runs if run.cost.get(key) is not None)
        return next(known, UNKNOWN if any(run.cost.get("error") for run in self.runs) else None)

    def length(self) -> Number | str:
        """Tells for how many epochs the finished runs trained, or iterations where they have no epochs."""
        rows = [run.metrics["epochs"] for run in self._finished()]
        iterations = max((epochs[-1].get("iteration", 0) for epochs in rows if epochs), default=0)
        return f"{iterations} iterations" if iterations else Number(max(map(len, rows), default=None), 0)

    def _finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.status == "finished"]


def gather(records: Iterable[RunRecord]) -> list[Cell]:
    """Groups runs into cells, sorted by data, model and label.

    A run found twice counts once; of a seed that was run again the first that finished, see `dk_bench.tables.pooling`.
    The cell is that of the record's configuration, not of the hash it holds, which older records made by other rules;
    runs on other images, or on more devices where that matters, are other cells.
    """
    by_cell: dict[tuple, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_cell[Data.of(record), record.model["name"], devices_of(record), config_hash(record.config)].append(record)
    by_model: dict[tuple, list[Cell]] = defaultdict(list)
    for (data, model, *_), runs in sorted(by_cell.items(), key=lambda item: item[0]):
        for part in pooling.apart_by_data(pooling.each_once(runs)):
            first, again = pooling.first_of_each(part)
            by_model[data, model].append(Cell(tuple(first), again=tuple(again)))
    return [labelled for cells in by_model.values() for labelled in _label(cells)]


def _label(cells: list[Cell]) -> list[Cell]:
    """Names each of a model's cells by what they differ in: configuration keys, the number of devices, and, where that
    is all the same, the images; a single cell needs no label."""
    flats = [{key: value for key, value in c.all_settings.items() if key != "trainer.devices"} for c in cells]
    if any(flat in flats[:place] for place, flat in enumerate(flats)):
        flats = [flat | {"images": _images(cell)} for flat, cell in zip(flats, cells, strict=True)]
    keys = sorted({key for flat in flats for key in flat})
    shown = [{key: flat.get(key, DEFAULTS.get(key)) for key in keys} for flat in flats]
    differing = [key for key in keys if any(values[key] != shown[0][key] for values in shown)]
    labels = [", ".join(f"{key}={values[key]}" for key in differing) for values in shown]
    labelled = (replace(cell, label=label) for cell, label in zip(cells, labels, strict=True))
    return sorted(labelled, key=lambda cell: cell.label)


def _images(cell: Cell) -> str:
    known = (sums for run in cell.runs if any(sums := pooling.checksums_of(run)))
    return next(("/".join(str(checksum)[:6] for checksum in sums) for sums in known), UNKNOWN)


def pair_marks(cells: Sequence[Cell], metric: str) -> list[str]:
    """Tells what of the runs a contrast pairs is not alike, and how many seeds several draws keep out, in words."""
    figures = [cell.figures(metric) for cell in cells]
    pairs = set.intersection(*map(set, figures))
    seeds = set.intersection(*({pair.seed for pair in of_cell} for of_cell in figures))  # paired or not
    runs = [run for cell in cells for run in cell._finished() if pair_of(run) in pairs]
    dirty, left = count_dirty(runs), len(seeds - {pair.seed for pair in pairs})
    words = [f"{left} of several draws"] * bool(left) + pooling.mixture(runs)
    return words + [f"{dirty} dirty"] * bool(dirty)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
