"""The record a run leaves: one JSON file, written atomically, from which every table is made."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import UnionType
from typing import Any, get_origin, get_type_hints

from dk_bench.errors import UserError, located, system_errors
from dk_bench.files import write_atomically
from dk_bench.runs.attempts import FIELDS, STALE, attempt_of, close_attempts, is_gone, this_process
from dk_bench.runs.environment import collect_git, collect_versions, portable
from dk_bench.runs.hardware import collect_hardware
from dk_bench.runs.identity import config_hash

SCHEMA_VERSION = 1
STATUSES = ("running", "finished", "failed", "stopped")  # stopped: early, by a sweep that says which runs are
# What a record is of: a training run of one of `dk_bench.tasks`, or a checkpoint's figures on images.
TRAINING, DETECTION, EVALUATION = "classification", "detection", "evaluation"
ADDED_LATER = ("attempts", "correct")  # fields that older records do without
# What tables rely on inside the free-form parts of a record; what may be null may be missing.
INSIDE = {
    "model.name": str,
    "model.spec": dict | None,
    "data.name": str,
    "data.classes": list | int | None,
    "data.train_images": int | None,
    "data.val_images": int | None,
    "data.test_images": int | None,
    "metrics.epochs": list,
    "metrics.final": dict,
}


@dataclass
class RunRecord:
    """One run: what was asked for, on what, and what came out.

    Top-1, top-5 and average precision are in percent, ``cost`` counts single parameters and multiply-adds of one image,
    throughput is in images per second and shares of 1, ``seconds`` of an epoch in seconds, times are ISO 8601 in UTC.

    ``started`` is when the first attempt began; device, commit, versions, status, error and end are the last one's.
    Where a cost is not known it is null, and ``cost`` has an ``error``. ``config_hash`` names the cell as the program
    that wrote the record saw it; tables compute it anew, see `dk_bench.runs.identity`.
    """

    run_id: str
    name: str
    config: dict[str, Any]
    config_hash: str
    model: dict[str, Any]  # name (a detector's backbone's), input_size, spec; num_classes, or detector
    data: dict[str, Any]  # name, classes (their names or number), train_images, val_images, test_images
    seed: int
    status: str = "running"
    error: str | None = None  # why a run failed, or was stopped early
    task: str = TRAINING
    # epochs: [{epoch, train/loss, val/loss, val/top1, val/top5, lr, seconds}]; final: the same names, last epoch, and
    # test/loss, test/top1, test/top5 where there are test images; of shifted ones test/SHIFT/...
    # Of detectors val/mAP, _50, _75, _s, _m, _l in place of top-1 and top-5, null where there is no object of the size
    metrics: dict[str, Any] = field(default_factory=lambda: {"epochs": [], "final": {}})
    correct: dict[str, Any] = field(default_factory=dict)  # of a set's name: each image's, see runs.correct
    cost: dict[str, Any] = field(default_factory=dict)  # params, macs, sampling_macs, input_size
    throughput: dict[str, Any] = field(default_factory=dict)  # see training.callbacks.Throughput
    versions: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)  # see runs.hardware; older records know less
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty; both null outside a checkout
    command: list[str] = field(default_factory=list)
    started: str = ""
    ended: str | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)  # all of them, the last one included
    schema_version: int = SCHEMA_VERSION


def new_record(
    *,
    name: str,
    config: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    seed: int,
    command: Iterable[str] = (),
    run_id: str | None = None,
    task: str = TRAINING,
    device: Any = None,
    earlier: Iterable[Mapping[str, Any]] = (),
) -> RunRecord:
    """Returns a record with status ``running``, started now, that knows versions, device and commit.

    ``config`` is plain data (dict, list, str, numbers). ``run_id`` defaults to ``<config hash>-s<seed>``. Absolute
    paths in configuration and command are shortened by `portable`. ``earlier`` are the attempts before this
    one; a run began when the first of them did.
    """
    cell = config_hash(config)
    record = RunRecord(
        run_id=run_id or f"{cell}-s{seed}",
        name=name,
        config=portable(dict(config), distinct=True),
        config_hash=cell,
        model=dict(model),
        data=portable(dict(data)),
        seed=seed,
        task=task,
        versions=collect_versions(),
        device=collect_hardware(device),
        git=collect_git(),
        command=portable(list(command)),
        started=utc_now(),
    )
    record.attempts = [*close_attempts(earlier), attempt_of(vars(record)) | {"process": this_process()}]
    record.started = record.attempts[0]["started"]
    return record


def note_hardware(record: RunRecord, device: Any, devices: int) -> None:
    """Puts into a record what its present attempt really runs on, once that is known: a torch device, and how many."""
    record.device = record.attempts[-1]["device"] = collect_hardware(device, devices)


def attempts_of(record: RunRecord) -> list[dict[str, Any]]:
    """Returns all attempts of a run. A record from before there were attempts tells of the last one only."""
    return record.attempts or [attempt_of(vars(record))]


def is_tested(record: RunRecord, tests: Iterable[str]) -> bool:
    """Tells whether a record has the final figures of test sets, by their names."""
    return set(tests) <= set(tested_sets(record))


def tested_sets(record: RunRecord) -> list[str]:
    """Returns the names of the test sets that a record has final figures of."""
    sets = dict.fromkeys(name.rpartition("/")[0] for name in record.metrics["final"])
    return [name for name in sets if name.partition("/")[0] == "test"]


def final_figures(record: RunRecord) -> dict[str, int | float]:
    """Returns what loggers are told of a run that has finished: its last metrics, speed and cost, as far as they are
    numbers."""
    figures = {**record.metrics["final"], **record.throughput, **record.cost}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def as_it_stands(record: RunRecord) -> RunRecord:
    """Returns the record, failed in place of running where its process, on this machine, is gone."""
    process = record.attempts[-1].get("process") if record.attempts else None
    if record.status != "running" or not process or not is_gone(process):
        return record
    return as_failed(record, STALE)


def as_failed(record: RunRecord, error: str) -> RunRecord:
    """Returns the record of a run that has ended without saying so."""
    return dataclasses.replace(record, status="failed", error=error, attempts=close_attempts(record.attempts))


def utc_now() -> str:
    """Returns this moment, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_record(record: RunRecord, path: str | Path) -> Path:
    """Writes the record as JSON, atomically: a reader finds the old record or the new one, never half a file.

    NaN and infinity, which JSON does not have, are stored as null: a diverged run can still leave its record, and no
    figure can be taken from it. Absolute paths in ``error`` are shortened by `portable`. Raises OSError where the file
    cannot be written.
    """
    content = dataclasses.asdict(record) | {"error": portable(record.error)}
    if record.attempts:
        content["attempts"][-1] |= {name: content[name] for name in ("ended", "status", "error")}
        if record.status != "running":
            content["attempts"][-1].pop("process", None)
        record.attempts = content["attempts"]
    text = json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False)
    return write_atomically(path, text + "\n")


def read_record(path: str | Path) -> RunRecord:
    """Reads a record and checks its shape. Raises UserError that names the file and what is wrong with it."""
    with located(path):
        try:
            with system_errors("cannot be read"):
                content = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
        except ValueError as error:  # bad JSON or bad UTF-8
            raise UserError(f"not a JSON file: {error}") from error
        _check(content)
    return RunRecord(**content)


def find_records(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Lists record files, sorted: those named, and ``record.json`` or ``*.record.json`` anywhere below folders named.
    Raises UserError for a path that does not exist."""
    found: set[Path] = set()
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        below = (p for pattern in ("record.json", "*.record.json") for p in path.rglob(pattern))
        found.update(below if path.is_dir() else [path])
    return sorted(found)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _check(content: Any) -> None:
    """Raises UserError for what keeps parsed JSON from being a record."""
    if not isinstance(content, dict):
        raise UserError(f"a record is a JSON object, this is a {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"schema_version is {version!r}, this program reads {SCHEMA_VERSION}")
    hints = get_type_hints(RunRecord)
    if missing := [name for name in hints if name not in content and name not in ADDED_LATER]:
        raise UserError(f"missing field {', '.join(missing)}")
    if unknown := sorted(content.keys() - hints.keys()):
        raise UserError(f"unknown field {', '.join(unknown)}")
    for name in content:
        kind = hints[name] if isinstance(hints[name], UnionType) else get_origin(hints[name]) or hints[name]
        if not isinstance(content[name], kind):
            raise UserError(f"{name} is {type(content[name]).__name__}, expected {hints[name]}")
    if content["status"] not in STATUSES:
        raise UserError(f"status is {content['status']!r}, expected one of {', '.join(STATUSES)}")
    _check_inside(content)
    for number, attempt in enumerate(content.get("attempts", ())):
        if not isinstance(attempt, dict) or not set(FIELDS) <= attempt.keys():
            raise UserError(f"attempts[{number}] is no attempt: expected {', '.join(FIELDS)}")
        if not isinstance(attempt["git"], dict) or not isinstance(attempt.get("process", {}), dict | None):
            raise UserError(f"attempts[{number}]: expected objects for git and process")


def _check_inside(content: dict[str, Any]) -> None:
    """Raises UserError for what tables could not use of the parts that are free-form."""
    for key, kind in INSIDE.items():
        part, name = key.split(".")
        if name not in content[part] and not isinstance(None, kind):
            raise UserError(f"missing field {key}")
        if not isinstance(value := content[part].get(name), kind):
            raise UserError(f"{key} is {value!r}, expected {getattr(kind, '__name__', kind)}")
    for part, figures in (("metrics.final", content["metrics"]["final"]), ("throughput", content["throughput"])):
        for name, value in figures.items():
            if not isinstance(value, int | float | None):
                raise UserError(f"{part}.{name} is {value!r}, expected a number")
