"""The cells of sweep files: runs that differ in their seed alone, counted."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError
from dk_bench.sweep.grid import Sweep, read_sweep
from dk_bench.sweep.job import Job, task_in
from dk_bench.sweep.listing import find_runs, make_jobs
from dk_bench.training.task import Task

NAMES = ("name", "model_name")  # last parts of keys whose values say themselves what they are
NO_CELL = ("seed", "output")  # parameters by which no cells are told apart


@dataclass
class PlannedCell:
    """Runs of one cell of a sweep: their jobs, and the task of the first of them."""

    sweep: str
    name: str  # the values by which it differs from others of the sweep
    task: Task
    jobs: list[Job] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)  # places of its jobs among those of all sweeps

    @property
    def runs(self) -> int:
        return len(self.jobs)


def list_cells(paths: Iterable[Path], **drawn: Any) -> list[PlannedCell]:
    """Returns the cells of all sweep files, in the files' order; ``drawn``: what `read_sweep` takes besides. Raises
    UserError for a faulty file, one of another program than ``dk-bench train``, and a run whose configuration cannot be
    read."""
    cells: list[PlannedCell] = []
    for path in paths:
        cells += _cells(path, read_sweep(path, **drawn), sum(cell.runs for cell in cells))
    return cells


def _cells(path: Path, sweep: Sweep, turn: int) -> list[PlannedCell]:
    """Returns the cells of a sweep, whose first job has the place ``turn``."""
    jobs = make_jobs(sweep, None)
    if unread := find_runs(jobs):
        job, error = unread[0]
        raise UserError(f"{path}: run {job.name!r}: {error}")
    if other := next((job for job in jobs if job.run is None), None):
        raise UserError(
            f"{path}: runs {' '.join(other.argv[:3])}, expected dk-bench train CONFIG, which can be planned"
        )
    varying = [key for key in jobs[0].point if key not in NO_CELL and _vary(jobs, key)]
    cells: dict[Path, PlannedCell] = {}
    for number, job in enumerate(jobs, start=turn):
        place = job.run.folder.with_name(job.run.folder.name.rpartition("-s")[0])  # what all seeds share
        if place not in cells:
            name = ", ".join(_words(key, job.point[key]) for key in varying)
            cells[place] = PlannedCell(sweep.name, name or sweep.name, task_in(job.argv))
        cells[place].jobs.append(job)
        cells[place].turns.append(number)
    return list(cells.values())


def _vary(jobs: list[Job], key: str) -> bool:
    return any(str(job.point[key]) != str(jobs[0].point[key]) for job in jobs)


def _words(key: str, value: Any) -> str:
    """Returns a parameter's value as it is short to read: a model's name alone, else with the last part of its key."""
    last = key.rpartition(".")[2]
    return str(value) if last in NAMES else f"{last}={json.dumps(value)}"
