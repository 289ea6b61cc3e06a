"""Where the checkpoints of a study come from, and the file that says so beside its numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dk_bench.analysis.outputs import write_text
from dk_bench.config import Config, to_dict
from dk_bench.errors import UserError
from dk_bench.runs.environment import portable
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import read_record
from dk_bench.tables.entries import Number
from dk_bench.tables.table import Column, Table, make_table

UNKNOWN = "not known"


@dataclass(frozen=True)
class Origin:
    """One checkpoint of a study; commit and top-1 are None where no record of its run lay beside it."""

    model: str  # what the study calls it
    seed: int
    run: str | None = None  # its id, by which its record is found; None where the study did not say
    configuration: str | None = None  # its hash, the same for every seed
    commit: str | None = None  # that it was trained at
    dirty: bool | None = None  # whether code had changes that no commit holds
    top1: float | None = None  # percent, at the end of the run


def origin_of(path: str | Path, model: str, config: Config, run_id: str) -> Origin:
    """Returns the origin of a checkpoint's file; commit and top-1 are from the record beside it, if of the same run."""
    origin = Origin(model, config.seed, run_id or None, config_hash(to_dict(config)))
    beside = Path(path).with_name("record.json")
    record = read_record(beside) if beside.exists() else None
    if record is None or record.run_id != run_id:
        return origin
    git, top1 = record.git, record.metrics["final"].get("val/top1")
    return replace(origin, run=run_id, commit=git.get("commit"), dirty=git.get("dirty"), top1=top1)


def origin_table(origins: Sequence[Origin]) -> Table:
    """Returns the checkpoints of a study, a row each."""
    columns = [
        Column("model", lambda of: of.model),
        Column("run", lambda of: of.run or UNKNOWN),
        Column("configuration", lambda of: of.configuration or UNKNOWN),
        Column("seed", lambda of: str(of.seed)),
        Column("top-1 (%)", lambda of: str(Number(of.top1, 1))),
        Column("trained at commit", lambda of: (of.commit or UNKNOWN)[:12] + (" with changes" if of.dirty else "")),
    ]
    return make_table("Checkpoints", columns, origins)


def write_about(path: Path, about: Mapping[str, Any], origins: Sequence[Origin]) -> Path:
    """Writes what a study was of, as JSON: its settings, absolute paths shortened, and its checkpoints. Raises
    UserError where it cannot."""
    content = portable(dict(about)) | {"checkpoints": [asdict(origin) for origin in origins]}
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_about(path: Path, needed: Sequence[str]) -> tuple[dict[str, Any], list[Origin]]:
    """Reads what :func:`write_about` wrote. Raises UserError where it cannot be read, or lacks a key of ``needed``."""
    expected = "what a study's command leaves beside its CSV"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        origins = [Origin(**each) for each in about.pop("checkpoints")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parts = ", ".join(each.name for each in fields(Origin))
        told = f"cannot be read: {error!r}; expected {expected}, with checkpoints of {parts}"
        raise UserError(f"{path}: {told}") from error
    if missing := [key for key in needed if key not in about]:
        raise UserError(f"{path}: no {', '.join(missing)}; expected {expected}")
    return about, origins
