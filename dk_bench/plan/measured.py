"""Speeds that were measured: the records of ``dk-bench bench train`` that a plan can go by."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError, system_errors
from dk_bench.plan.devices import CPU, DEVICES, HALF, SINGLE, Device, device_called

RECORD = "record.json"  # runs' own, of which there are many, and none is of a bench
MODELS, OPERATORS, IMAGES = "model speeds", "operator times", "image rates"
KINDS = (MODELS, OPERATORS, IMAGES)


@dataclass(frozen=True)
class Speed:
    """Images per second of a model on a device, as one part of a record has them; ``memory``: the most bytes held."""

    model: str
    base: str
    batch: int
    size: int
    device: Device
    precision: str
    train: float
    evaluate: float
    memory: int | None
    file: str


def bench_records(places: Iterable[Path], kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the records of a kind, `MODELS`, `OPERATORS` or `IMAGES`, in files or below folders, in order of their
    paths. Raises UserError for a place that is not there, and a file that is named and is no such record."""
    found = []
    for place in places:
        if not place.exists():
            raise UserError(f"--bench {place}: no such file or folder")
        files = sorted(place.rglob("*.json")) if place.is_dir() else [place]
        for file in files:
            if file != place and (file.name == RECORD or file.name.endswith(f".{RECORD}")):
                continue
            record = _read(file)
            is_bench = isinstance(record, dict) and record.get("kind") in KINDS and "parts" in record
            if file == place and not is_bench:
                raise UserError(f"--bench {file}: is no record of `dk-bench bench`")
            if is_bench and record["kind"] == kind:
                found.append((file, record))
    return found


def _read(file: Path) -> Any:
    with system_errors(f"--bench {file}: cannot be read"):
        content = file.read_bytes()
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"--bench {file}: is no JSON: {error}") from error


def device_of(record: dict[str, Any]) -> Device | None:
    """Returns the device that a record is of; None for a card that is not known, and for several threads of a CPU,
    whose device in plans is one core."""
    about = record["device"]
    device = device_called(about["type"], about["name"])
    return None if device is DEVICES[CPU] and about.get("threads") != 1 else device


def read_speeds(places: Iterable[Path]) -> list[Speed]:
    """Returns the speeds of all models in records below the places, of devices that plans know."""
    speeds = []
    for file, record in bench_records(places, MODELS):
        device = device_of(record)
        precision = HALF if record["settings"]["precision"].startswith(("bfloat16", "float16")) else SINGLE
        if device is None:
            continue
        for speed in (speed for part in record["parts"] for speed in part["speeds"]):
            about = {key: speed[key] for key in ("model", "base", "batch", "size")}
            rates = {"train": speed["train_images_per_second"], "evaluate": speed["eval_images_per_second"]}
            memory = speed.get("peak_memory")
            speeds.append(Speed(**about, device=device, precision=precision, **rates, memory=memory, file=str(file)))
    return speeds
