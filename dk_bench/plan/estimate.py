"""What the runs of a sweep will take: images a second, hours, memory, disk and price of each of its cells.

hours of a run = (epochs x training images / training images a second + evaluations x validation images / evaluation
images a second + test images likewise) / 3600. What lies between, as starting, is not in it; ``--fit`` measures it.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from dk_bench.errors import UserError, located
from dk_bench.models.workload import Workload
from dk_bench.plan.decoding import LoaderSpeed, cores_for, read_loader_speeds
from dk_bench.plan.devices import CPU, HALF, TRUE_HALF, Device, precision_of
from dk_bench.plan.fitting import Fit
from dk_bench.plan.listed import PlannedCell
from dk_bench.plan.measured import Speed, read_speeds
from dk_bench.plan.rates import FITTED, MEASURED, SCALED, Question, Rate, find_rate
from dk_bench.runs.identity import config_hash
from dk_bench.training.outline import Outline

VALUE_BYTES = 4  # of a weight, a gradient, what an optimiser keeps; half of it in true half precision
RECORDED_COPIES = 1  # of the weights, that the optimiser of records keeps: SGD with momentum
ESTIMATED = "estimated"
RECORD_BYTES = 1e6  # of a run's record, its log, W&B's files: about


@dataclass(frozen=True)
class Machine:
    """What a plan is for: so many devices for each run, and the price of one of them for an hour, if it is known."""

    device: Device
    count: int = 1
    price: float | None = None

    @property
    def processes(self) -> int:
        """Counts those of a run, which share its batches: one for each device, but one for all cores of a CPU."""
        return 1 if self.device.name == CPU else self.count


@dataclass(frozen=True)
class Speeds:
    """What records say: of training models, and of loading images."""

    models: tuple[Speed, ...] = ()
    loaders: tuple[LoaderSpeed, ...] = ()

    @classmethod
    def read(cls, places: Iterable[Path]) -> Self:
        """Reads the records of ``dk-bench bench`` in files and below folders."""
        places = list(places)
        return cls(tuple(read_speeds(places)), tuple(read_loader_speeds(places)))


@dataclass(frozen=True)
class CellPlan:
    """Holds what the runs of one cell take, together where it does not say ``a run``."""

    sweep: str
    name: str
    cell: str  # the hash of its configuration
    model: str
    task: str
    data: str
    runs: int
    params: int
    macs: float  # of one image
    memory: float  # bytes on one device in training
    memory_source: str
    train_rate: float  # images a second of all devices of a run
    evaluation_rate: float
    rate_source: str
    rate_file: str
    train_images: int  # an epoch
    evaluated_images: int  # a run
    epochs: int
    run_hours: float
    device_hours: float
    price: float | None
    disk: float  # bytes
    cores: float | None  # that load images as fast, where they are decoded in every epoch and a record says how fast
    note: str = ""
    fit: dict[str, Any] | None = None  # what was measured here


def plan_cell(
    cell: PlannedCell, machine: Machine, images: tuple[int, ...] | None, speeds: Iterable[Speed], fit: Fit | None = None
) -> CellPlan:
    """Returns the plan of a cell, by what was measured here where there is a ``fit``. ``images``: how many there are to
    train on and to validate on, where neither the configuration nor the data's name says so. Raises UserError where
    that is not known, and for a batch, a precision or a model that does not go with the machine."""
    with located(f"sweep {cell.sweep}, {cell.name}"):
        outline = cell.task.outline()
        if fit:  # which has counted them
            images = fit.images["train"], fit.images["val"]
            outline = replace(outline, images={**outline.images, **fit.images})
        outline = with_images(outline, images)
        workload, count = cell.task.workload(outline), machine.count
        rate = _fitted(fit, outline, count) if fit else _found(cell, outline, workload, machine, speeds)
        memory, source = _memory(outline, workload, machine, rate.speed)
    if fit and fit.memory:
        memory, source = fit.memory, FITTED
    evaluated = outline.evaluations * outline.images["val"] + tests_of(outline)
    hours = fit.seconds(outline) / 3600 if fit else run_hours(outline, rate, count, evaluated, machine.processes)
    device_hours = hours * count * cell.runs
    return CellPlan(
        sweep=cell.sweep,
        name=cell.name,
        cell=config_hash(cell.task.values),
        model=outline.model,
        task=cell.task.name,
        data=outline.data,
        runs=cell.runs,
        params=workload.params,
        macs=workload.macs,
        memory=memory,
        memory_source=source,
        train_rate=rate.train * count,
        evaluation_rate=rate.evaluate * count,
        rate_source=rate.source,
        rate_file=rate.speed.file if rate.speed else "",
        train_images=outline.images["train"],
        evaluated_images=evaluated,
        epochs=outline.epochs,
        run_hours=hours,
        device_hours=device_hours,
        price=None if machine.price is None else device_hours * machine.price,
        disk=cell.runs * run_bytes(outline, workload),
        cores=cores_for(outline, rate.train * count, speeds.loaders),
        note=workload.note,
        fit=asdict(fit) if fit else None,
    )


def _fitted(fit: Fit, outline: Outline, count: int) -> Rate:
    """Returns images a second of one of ``count`` devices, as a trial saw them."""
    evaluation = fit.evaluation + fit.batches * fit.evaluated
    return Rate(batch_of_device(outline, count) / fit.step, fit.images["val"] / evaluation / count, FITTED)


def _found(cell: PlannedCell, outline: Outline, workload: Workload, machine: Machine, speeds: Speeds) -> Rate:
    """Returns images a second of one device by records, or as a guess; the rigid base is counted where a record may
    have it."""
    has_base = outline.base not in (None, outline.timed_as) and any(s.model == outline.base for s in speeds.models)
    base = cell.task.workload(outline, rigid=True) if has_base else None
    asked = Question(outline.timed_as or "", outline.base, outline.input_size, workload, base)
    precision, batch = precision_of(outline.precision, machine.device), batch_of_device(outline, machine.processes)
    rate = find_rate(asked, machine.device, precision, batch, speeds.models)
    is_other = outline.precision in TRUE_HALF and rate.source == MEASURED  # records are of autocast
    return replace(rate, source=SCALED) if is_other else rate


def with_images(outline: Outline, given: tuple[int, ...] | None) -> Outline:
    """Returns the outline with the numbers of images that are given, to train, to validate and to test on, in place of
    those that it does not know; without the last, tests have as many as validation. Raises UserError where there are
    none."""
    if given:
        train, val = given[:2]
        numbers = {"train": train, "val": val}
        counts = {
            name: numbers.get(name, given[-1]) if count is None else count for name, count in outline.images.items()
        }
        return replace(outline, images=counts)
    if unknown := [name for name, count in outline.images.items() if count is None]:
        expected = "--images TRAIN,VAL, or the name of data that is known"
        raise UserError(f"how many {unknown[0]} images {outline.data} has is not known here; expected {expected}")
    return outline


def batch_of_device(outline: Outline, count: int) -> int:
    """Returns the images that one device has at once. Raises UserError where devices cannot share the batch evenly."""
    if outline.per_device:
        return outline.batch
    if outline.batch % count:
        raise UserError(f"--count {count}: the batch of {outline.batch} is not a multiple of it")
    return outline.batch // count


def tests_of(outline: Outline) -> int:
    """Counts the images that the trained model is tested on."""
    return sum(count for name, count in outline.images.items() if name not in ("train", "val"))


def run_hours(outline: Outline, rate: Rate, count: int, evaluated: int, processes: int | None = None) -> float:
    """Returns the hours of a run on ``count`` devices, in as many processes or in ``processes``."""
    trained = outline.trained(processes or count)
    return (trained / rate.train + evaluated / rate.evaluate) / count / 3600


def training_memory(workload: Workload, batch: float, precision: str, copies: float, weight: float) -> float:
    """Estimates the bytes that training takes on a device: weights of ``weight`` bytes, gradients, ``copies`` of them
    that the optimiser keeps, and what the backward pass needs of a batch of so many images. What libraries take for
    themselves, and room for temporary results, is not in it."""
    weights = weight * (workload.params + workload.buffers)
    kept = weight * workload.trained * (1 + copies)
    size = VALUE_BYTES / 2 if precision == HALF else VALUE_BYTES
    cast = size * workload.params if size < weight else 0  # the copies that autocast makes
    return weights + kept + cast + batch * (size * workload.saved + workload.saved_bytes)


def weight_bytes(outline: Outline) -> float:
    """Returns the bytes of a weight."""
    return VALUE_BYTES / 2 if outline.precision in TRUE_HALF else VALUE_BYTES


def _memory(outline: Outline, workload: Workload, machine: Machine, speed: Speed | None) -> tuple[float, str]:
    """Returns the bytes that training takes and where they are from: an estimate, or a record that measured them with
    the same model and size. For another batch or precision of weights that is scaled by the ratio of the estimates;
    what more an optimiser keeps than the record's, and an average of the weights, comes on top."""
    precision, batch = precision_of(outline.precision, machine.device), batch_of_device(outline, machine.processes)
    weight = weight_bytes(outline)
    if speed is None or not speed.memory or (speed.model, speed.size) != (outline.timed_as, outline.input_size[1]):
        return training_memory(workload, batch, precision, outline.copies, weight), ESTIMATED
    here = training_memory(workload, batch, precision, RECORDED_COPIES, weight)
    there = training_memory(workload, speed.batch, precision, RECORDED_COPIES, VALUE_BYTES)
    memory = speed.memory * here / there + weight * workload.trained * (outline.copies - RECORDED_COPIES)
    return memory, MEASURED if memory == speed.memory else SCALED


def run_bytes(outline: Outline, workload: Workload) -> float:
    """Estimates what a run leaves on disk: its one checkpoint, of weights and what the optimiser keeps, its record and
    its log. While a checkpoint is written the one before it is there as well."""
    checkpoint = weight_bytes(outline) * (workload.params + workload.buffers + outline.copies * workload.trained)
    return checkpoint + RECORD_BYTES


def totals(plans: Iterable[CellPlan]) -> dict[str, Any]:
    """Adds up runs, hours (one run after another), device-hours, price and disk."""
    plans = list(plans)
    prices = [plan.price for plan in plans if plan.price is not None]
    return {
        "cells": len(plans),
        "runs": sum(plan.runs for plan in plans),
        "hours": sum(plan.run_hours * plan.runs for plan in plans),
        "device_hours": sum(plan.device_hours for plan in plans),
        "price": math.fsum(prices) if prices else None,
        "disk": sum(plan.disk for plan in plans),
    }
