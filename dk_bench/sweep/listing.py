"""Lists the runs of a sweep before any is started: which training run each is, by which values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dk_bench.errors import UserError
from dk_bench.reading.overrides import split_override, standing
from dk_bench.runs.attempts import STALE
from dk_bench.sweep.runner import Job
from dk_bench.sweep.runs import Run, training_runs, training_values

NOTHING = object()


def find_runs(jobs: list[Job]) -> list[tuple[Job, UserError]]:
    """Sets the training run that each job of ``dk-bench train`` stands for. Returns the jobs whose configuration
    cannot be read, and why: run, such a cell fails by itself, and says so in its log.

    Raises UserError for two cells that are one run, by other words, and for a value that a key of the configuration
    takes for another.
    """
    unread: list[tuple[Job, UserError]] = []
    cells: dict[Path, Job] = {}
    for job in jobs:
        try:
            found = training_values(job.argv)
        except UserError as error:
            unread.append((job, error))
            continue
        if found is None:
            continue
        _check_values(job, found[1])
        job.run = Run.of(*found)
        other = cells.setdefault(job.run.folder.resolve(), job)
        if other.argv != job.argv:
            raise UserError(
                f"cells {other.name!r} and {job.name!r} are one run, {job.run.folder}: they differ in what changes no "
                "result; expected parameters that do"
            )
    return unread


def skip_finished(jobs: list[Job]) -> list[Path]:
    """Finds the runs that jobs of ``dk-bench train`` stand for, and marks those that have a finished record in their
    folder, which has the run's name, cell and seed in its own.

    Training would see that itself and return at once, but only after half a minute of imports for every few cells.
    Returns the folders of runs whose record says running while their process, on this machine, is gone; their jobs
    wait to be run, from the last checkpoint. Raises UserError as `find_runs` does.
    """
    find_runs(jobs)
    outputs: dict[Path, None] = {}
    for job in jobs:
        if job.run is None:
            continue
        outputs[job.run.output] = None
        if job.run.has_finished(job.run.record()):
            job.state, job.reason = "skipped", "finished before"
        job.run.know()
    return [folder for output in outputs for folder, record in training_runs(output) if record.error == STALE]


def _check_values(job: Job, values: Mapping[str, Any]) -> None:
    """Raises UserError where a parameter's value is not the one that its argument gives the configuration."""
    for name, written in job.cell.items():
        if f"{name}={written}" not in job.argv or name == "data_root":  # which moves paths, and may lose a slash
            continue
        read = standing(values, split_override(f"{name}=")[0], NOTHING)
        if read is not NOTHING and not _is_same(written, read):
            raise UserError(
                f"cell {job.name!r}: parameter '{name}' is {written!r} in the sweep file, and {read!r} to the "
                f"configuration, by the argument {name}={written}; expected a value of the kind that the key takes"
            )


def _is_same(written: Any, read: Any) -> bool:
    if isinstance(written, Mapping):
        return isinstance(read, Mapping) and all(_is_same(written[key], read[key]) for key in written if key in read)
    if isinstance(written, list):
        return isinstance(read, list | tuple) and len(written) == len(read) and all(map(_is_same, written, read))
    if isinstance(written, str) and isinstance(read, int | float) and not isinstance(read, bool):
        return yaml.safe_load(written) == written  # 1e-4, for which YAML has no number without quotes
    if isinstance(read, str):
        return written == read or type(written) is int and str(written) == read
    return written is read if isinstance(written, bool | None) else written == read
