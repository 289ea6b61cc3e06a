"""Images per second of a model on a device: from a record where there is one, else a guess, and named so."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dk_bench.models.workload import Workload
from dk_bench.plan.devices import Device
from dk_bench.plan.measured import Speed
from dk_bench.plan.roofline import EVALUATE, TRAIN, efficiency_of, seconds_an_image, with_starts

#: Where a figure is from: measured as it stands; measured, of another size or of the rigid base; worked out; here.
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

    A record of the same model, size, device and precision gives the figure as it is; one of another size, by the ratio
    of pixels; one of the rigid base, by the ratio of the two guesses. Without a record it is the guess. Starting a
    step's operators takes its time, see `with_starts`, whatever the source.
    """
    own = [speed for speed in speeds if speed.device is device and speed.precision == precision]
    guess = {
        mode: 1 / seconds_an_image(asked.workload, device, precision, mode, efficiency_of(device, precision))
        for mode in (TRAIN, EVALUATE)
    }
    found = _measured(asked, own) or _scaled(asked, own, device, precision, guess)
    rate = found or Rate(guess[TRAIN], guess[EVALUATE], GUESS)
    train, evaluate = (
        1 / with_starts(1 / images, asked.workload, device, mode, batch)
        for mode, images in ((TRAIN, rate.train), (EVALUATE, rate.evaluate))
    )
    return replace(rate, train=train, evaluate=evaluate)


def _measured(asked: Question, speeds: list[Speed]) -> Rate | None:
    fitting = [speed for speed in speeds if speed.model == asked.model and asked.size == (3, speed.size, speed.size)]
    return Rate(fitting[0].train, fitting[0].evaluate, MEASURED, fitting[0]) if fitting else None


def _scaled(
    asked: Question, speeds: list[Speed], device: Device, precision: str, guess: dict[str, float]
) -> Rate | None:
    """Returns the rate by a record of the model at another size, or of its base."""
    area = asked.size[1] * asked.size[2]
    for model, workload in ((asked.model, asked.workload), (asked.base, asked.base_workload)):
        fitting = [speed for speed in speeds if speed.model == model]
        if not fitting or workload is None:
            continue
        near = min(fitting, key=lambda speed: abs(speed.size**2 - area))
        by_size = near.size**2 / area
        rates = {TRAIN: near.train * by_size, EVALUATE: near.evaluate * by_size}
        if workload is not asked.workload:
            efficiency = efficiency_of(device, precision)
            rates = {
                mode: rate * guess[mode] * seconds_an_image(workload, device, precision, mode, efficiency)
                for mode, rate in rates.items()
            }
        return Rate(rates[TRAIN], rates[EVALUATE], SCALED, near)
    return None
