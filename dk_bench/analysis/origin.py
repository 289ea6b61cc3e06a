"""Where the checkpoints of a study come from, and the file that says so beside its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dk_bench.config import Config, to_dict
from dk_bench.errors import UserError
from dk_bench.files import write_atomically
from dk_bench.runs.environment import portable
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import read_record
from dk_bench.tables.render import Table

UNKNOWN = "not known"


@dataclass(frozen=True)
class Origin:
    """One checkpoint of a study.

    Attributes:
        model: what the study calls it.
        seed: of its run.
        run: the run's id, by which its record is found; None where the study did not say.
        configuration: hash of its configuration, the same for every seed.
        commit: that it was trained at, and ``dirty`` whether code had changes that no commit holds; None: no record of
            that run lay beside the checkpoint.
        top1: percent, at the end of the run, from that record.
    """

    model: str
    seed: int
    run: str | None = None
    configuration: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    top1: float | None = None


def origin_of(path: str | Path, model: str, config: Config, run_id: str) -> Origin:
    """Of a checkpoint's file; commit and top-1 stand in the record beside it, where that is of the same run."""
    beside = Path(path).with_name("record.json")
    record = read_record(beside) if beside.exists() else None
    if record is None or record.run_id != run_id:
        return Origin(model, config.seed, run_id or None, config_hash(to_dict(config)))
    return Origin(
        model,
        config.seed,
        run_id,
        config_hash(to_dict(config)),
        record.git.get("commit"),
        record.git.get("dirty"),
        record.metrics["final"].get("val/top1"),
    )


def origin_table(origins: Sequence[Origin]) -> Table:
    """Returns the checkpoints of a study, a row each."""
    return Table(
        "Checkpoints",
        ("model", "run", "configuration", "seed", "top-1 (%)", "trained at commit"),
        [_row(origin) for origin in origins],
    )


def _row(origin: Origin) -> list[str]:
    commit = (origin.commit or UNKNOWN)[:12] + (" with changes" if origin.dirty else "")
    top1 = "-" if origin.top1 is None else f"{origin.top1:.1f}"
    return [origin.model, origin.run or UNKNOWN, origin.configuration or UNKNOWN, str(origin.seed), top1, commit]


def write_about(path: Path, about: Mapping[str, Any], origins: Sequence[Origin]) -> Path:
    """Writes what a study was of, as JSON: its settings, absolute paths shortened, and its checkpoints.

    Raises UserError where it cannot.
    """
    content = portable(dict(about)) | {"checkpoints": [asdict(origin) for origin in origins]}
    try:
        return write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_about(path: Path, needed: Sequence[str]) -> tuple[dict[str, Any], list[Origin]]:
    """Tells what :func:`write_about` wrote. Raises UserError where it cannot be read, or lacks a key of ``needed``."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        origins = [Origin(**each) for each in about.pop("checkpoints")]
        missing = [key for key in needed if key not in about]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        names = ", ".join(each.name for each in fields(Origin))
        expected = f"what a study's command leaves beside its CSV, with checkpoints of {names}"
        raise UserError(f"{path}: cannot be read: {error!r}; expected {expected}") from error
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)}; expected what a study's command leaves beside its CSV")
    return about, origins
