"""Images per second of a model on a device: from a record where there is one, else a guess, and named so."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dk_bench.models.workload import Workload
from dk_bench.plan.devices import Device
from dk_bench.plan.measured import Speed
from dk_bench.plan.roofline import EVALUATE, ON_GPU, TRAIN, efficiency_of, family, seconds_an_image, with_starts

#: Where a figure is from: measured as it stands; measured, of other settings or the rigid base; worked out; here.
MEASURED, SCALED, GUESS, FITTED = "record", "record, scaled", "guess", "measured here"


@dataclass(frozen=True)
class Rate:
    """Images per second of one device in training and in evaluation, where they are from, and by which record."""

    train: float
    evaluate: float
    source: str
    speed: Speed | None = None


@dataclass(frozen=True)
class Question:
    """Holds what a rate is asked for: a model by name with its rigid base, and its workload for one image."""

    model: str
    base: str | None
    size: tuple[int, int, int]
    workload: Workload
    base_workload: Workload | None


def find_rate(asked: Question, device: Device, precision: str, batch: float, speeds: Iterable[Speed]) -> Rate:
    """Returns images per second for batches of ``batch`` images on a device.

    A record of the same model, size, batch, device and precision gives the figure as it is; one of another batch or
    size, or of the rigid base, by the ratio of the two guesses. Without a record it is the guess. On a GPU a step takes
    at least what starting its operators does, see `with_starts`, but where it was measured.
    """
    own = [speed for speed in speeds if speed.device is device and speed.precision == precision]
    near = _nearest(asked, own, batch)
    if near and (near.model, near.batch) == (asked.model, batch) and asked.size == (3, near.size, near.size):
        return Rate(near.train, near.evaluate, MEASURED, near)
    pixels = asked.size[1] * asked.size[2]
    seconds = {}
    for mode in (TRAIN, EVALUATE):
        seconds[mode] = _guess(asked.workload, device, precision, mode, batch)
        if near:
            workload = asked.workload if near.model == asked.model else asked.base_workload
            there = _guess(workload, device, precision, mode, near.batch, near.size**2 / pixels)
            scaled = seconds[mode] / there / (near.train if mode == TRAIN else near.evaluate)
            least = with_starts(0, asked.workload, device, mode, batch) if family(device) == ON_GPU else 0
            seconds[mode] = max(scaled, least)
    return Rate(1 / seconds[TRAIN], 1 / seconds[EVALUATE], SCALED if near else GUESS, near)


def _guess(workload: Workload, device: Device, precision: str, mode: str, batch: float, by_size: float = 1.0) -> float:
    """Returns the guess of an image's seconds in a batch, at a size of ``by_size`` times the workload's pixels."""
    seconds = seconds_an_image(workload, device, precision, mode, efficiency_of(device, precision))
    return with_starts(by_size * seconds, workload, device, mode, batch)


def _nearest(asked: Question, speeds: list[Speed], batch: float) -> Speed | None:
    """Returns the speed of the model, else of its base, that is nearest in size, then in batch."""
    for model, workload in ((asked.model, asked.workload), (asked.base, asked.base_workload)):
        fitting = [speed for speed in speeds if speed.model == model]
        if fitting and workload is not None:
            pixels = asked.size[1] * asked.size[2]
            return min(fitting, key=lambda s: (abs(math.log(s.size**2 / pixels)), abs(math.log(s.batch / batch))))
    return None
