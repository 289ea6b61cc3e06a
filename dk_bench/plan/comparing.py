"""Plans that were measured (``--fit``) beside the runs that they were of: the check of how near plans come."""

import json
import os
import statistics
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError, system_errors
from dk_bench.plan.printed import duration
from dk_bench.runs.environment import collect_git, collect_versions
from dk_bench.runs.hardware import collect_device
from dk_bench.runs.record import RunRecord, attempts_of, find_records, read_record, utc_now
from dk_bench.tables.entries import Number, Right
from dk_bench.tables.table import Column, Document, Table, make_table

KIND, PLAN = "plan check", "plan"
SCHEMA_VERSION = 1
TITLE = "Plans beside what runs took"
NOTES = (
    "`dk-bench plan SWEEP --fit` tried each cell for some steps; then the sweep ran. Seconds of a run are those from "
    "begin to end in its record, in the mean over a cell's runs; those of all runs are from the first one's begin to "
    "the last one's end. Predicted over measured is 1 where the plan was right.",
)
TOTAL = "all runs"


def read_plan(path: Path) -> dict[str, Any]:
    """Returns a plan that ``--output`` wrote after ``--fit``. Raises UserError for any other file."""
    plan = _read(path, PLAN)
    if not plan.get("recorded_seconds"):
        raise UserError(f"{path}: a plan without --fit, which says nothing of seconds here; expected one with it")
    return plan


def _read(path: Path, kind: str) -> dict[str, Any]:
    with system_errors(f"{path}: cannot be read"):
        text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{path}: is no {kind}")
    return content


def compare(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the record of a check: each cell's and all runs' seconds as the plan has them and as the records below a
    folder do. Raises UserError where a run is missing, has not finished, or took several attempts."""
    by_cell: dict[str, list[RunRecord]] = {}
    for path in find_records(folder):
        record = read_record(path)
        by_cell.setdefault(record.config_hash, []).append(record)
    cells, runs = [], []
    for cell in plan["cells"]:
        found = by_cell.get(cell["cell"], [])
        _check(cell, found, folder)
        measured = statistics.fmean(map(_seconds, found))
        fit = cell["fit"]
        decoding = fit["decoding"] * fit["waiting"] / cell["runs"]
        predicted = 3600 * cell["run_hours"] + decoding - fit["before"] - fit["after"]
        about = {key: cell[key] for key in ("sweep", "name", "runs")}
        cells.append(about | _pair(predicted, measured))
        runs += found
    begin, end = min(_moment(run.started) for run in runs), max(_moment(run.ended) for run in runs)
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "made": utc_now(),
        "began": min(run.started for run in runs),
        "workers": plan["workers"],
        "steps": plan["steps"],
        "trial_seconds": plan["trial_seconds"],
        "device": collect_device(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": collect_versions(),
        "git": collect_git(),
        "cells": cells,
        "total": _pair(plan["recorded_seconds"], end - begin),
    }


def _pair(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted": predicted, "measured": measured, "ratio": predicted / measured}


def _check(cell: dict[str, Any], found: list[RunRecord], folder: Path) -> None:
    what = f"--check {folder}: {cell['sweep']}, {cell['name']}"
    if len(found) != cell["runs"]:
        raise UserError(f"{what}: {len(found)} runs, the plan is of {cell['runs']}")
    for run in found:
        if run.status != "finished":
            raise UserError(f"{what}: run {run.run_id} is {run.status}, expected finished ones")
        if len(attempts_of(run)) > 1:
            raise UserError(f"{what}: run {run.run_id} took several attempts, expected runs that were not cut off")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _seconds(run: RunRecord) -> float:
    """Returns the seconds of a run, of which its record knows whole ones."""
    return max(1.0, _moment(run.ended) - _moment(run.started))


def checks_document(paths: Iterable[Path]) -> Document:
    """Returns the tables of the records of checks. Raises UserError for a file that is none."""
    tables = [_table(path, _read(path, KIND)) for path in paths]
    return Document("plan", TITLE, [*NOTES] if tables else ["No sweep was compared with its plan yet."], tables)


def _table(path: Path, record: dict[str, Any]) -> Table:
    rows = [*record["cells"], {"name": TOTAL, "runs": sum(cell["runs"] for cell in record["cells"])} | record["total"]]
    device, versions = record["device"], record["versions"]
    commit = str(record["git"]["commit"])[:7] + (" with changes" if record["git"]["dirty"] else "")
    note = (
        f"{path.name}: {record['workers']} runs at a time on {device['name']} ({device['count']} of them), torch "
        f"{versions['torch']}, commit {commit}, {record['began'][:10]}; the trials took "
        f"{duration(record['trial_seconds'])}."
    )
    return make_table(path.stem, COLUMNS, rows, note, section=lambda row: row["name"] == TOTAL)


COLUMNS: list[Column[dict[str, Any]]] = [
    Column("cell", lambda row: row["name"]),
    Column("runs", lambda row: Number(row["runs"], 0)),
    Column("predicted", lambda row: Right(duration(row["predicted"]))),
    Column("measured", lambda row: Right(duration(row["measured"]))),
    Column("predicted over measured", lambda row: Number(row["ratio"], 2)),
]
