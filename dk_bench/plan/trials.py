"""Trials of all cells, started as a sweep's runs are: so many at a time, each with its share of the machine."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError
from dk_bench.plan.fitting import Fit, fit_of, wall_seconds
from dk_bench.plan.listed import PlannedCell
from dk_bench.sweep.job import Job, training_arguments
from dk_bench.sweep.runner import run_jobs

STEPS = 30  # of each epoch of a trial
MODULE = "dk_bench.plan.trial"
DECODED = "decoded"  # folder of decoded images, beside the runs


def run_trials(
    cells: Sequence[PlannedCell], workers: int, steps: int, on_change: Callable[[Any], None] = lambda job: None
) -> list[Fit]:
    """Returns a fit of each cell, measured here, ``workers`` at a time. Nothing is left but what runs would share too:
    procedural scenes, written where the configuration says. Raises UserError where a trial fails."""
    with tempfile.TemporaryDirectory(prefix="dk_bench-plan-") as folder:
        place = Path(folder)
        # Images that all runs share are decoded by the first one: a trial of its own, in another order of things.
        shared = {cell.task.run.output: cell for cell in reversed(cells) if _decodes_first(cell)}
        firsts = [_job(cell, place, f"first-{number}", steps) for number, cell in enumerate(shared.values())]
        _run(firsts, 1, on_change)
        jobs = [_job(cell, place, str(number), steps) for number, cell in enumerate(cells)]
        # No trial shall have the machine to itself because it is the last.
        spare = [_job(cell, place, f"again-{n}", steps) for n, cell in enumerate(cells[: -len(cells) % workers])]
        _run([*jobs, *spare], workers, on_change)
        fits = [_fit(job, place) for job in jobs]
        for job, cell in zip(firsts, shared.values(), strict=True):
            alone = next(fit for other, fit in zip(cells, fits, strict=True) if other is cell)
            decoding = max(0.0, _fit(job, place).start - alone.start)
            fits = with_decoding(cells, fits, cell.task.run.output, decoding, workers)
    return fits


def with_decoding(
    cells: Sequence[PlannedCell], fits: Sequence[Fit], output: str, decoding: float, workers: int
) -> list[Fit]:
    """Returns the fits with the seconds that the first runs of an output's folder take to decode, all at once."""
    own = [cell if cell.task.run.output == output else None for cell in cells]
    first = sorted(turn for cell in own if cell for turn in cell.turns)[:workers]
    waiting = [sum(turn in first for turn in cell.turns) if cell else 0 for cell in own]
    return [
        replace(fit, decoding=decoding, waiting=count) if count else fit
        for fit, count in zip(fits, waiting, strict=True)
    ]


def _decodes_first(cell: PlannedCell) -> bool:
    """Tells whether the first run of a cell decodes images for all others."""
    return cell.task.outline().decoded > 0 and not Path(cell.task.run.output, DECODED).exists()


def _job(cell: PlannedCell, place: Path, name: str, steps: int) -> Job:
    """Returns the trial of a cell's first run, which leaves what it saw in ``place``/``name``.json."""
    config, *overrides = training_arguments(cell.jobs[0].argv)
    own = [f"output={place / _folder(cell)}", f"name=trial-{name}"]
    if cell.task.run.wandb.mode == "online":
        own.append("wandb.mode=offline")
    argv = [sys.executable, "-m", MODULE, str(place / f"{name}.json"), str(steps), config, *overrides, *own]
    return Job(f"{cell.sweep}: {cell.name}", argv, place / f"{name}.log")


def _folder(cell: PlannedCell) -> str:
    """Returns a name for what the runs of an output folder share."""
    return f"output-{abs(hash(cell.task.run.output))}"


def _run(jobs: list[Job], workers: int, on_change: Callable[[Any], None]) -> None:
    """Runs the jobs. Raises UserError for the first that failed."""
    run_jobs(jobs, workers, on_change)
    if failed := next((job for job in jobs if job.state != "finished"), None):
        raise UserError(f"the trial of {failed.name} failed ({failed.reason}): {failed.last_line()}")


def _fit(job: Job, place: Path) -> Fit:
    seen = json.loads((job.log.with_suffix(".json")).read_text(encoding="utf-8"))
    return fit_of(seen, job.started, job.started + job.seconds)


def sweep_seconds(cells: Sequence[PlannedCell], fits: Sequence[Fit], workers: int, *, recorded: bool = False) -> float:
    """Returns how long the runs of all cells take, in the order of their sweeps, ``workers`` at a time; ``recorded``:
    from the begin of the first to the end of the last in their records."""
    turns: dict[int, tuple[float, Fit]] = {}
    for cell, fit in zip(cells, fits, strict=True):
        whole = fit.seconds(cell.task.outline())
        for number, turn in enumerate(sorted(cell.turns)):
            turns[turn] = whole + (fit.decoding if number < fit.waiting else 0.0), fit
    order = [turns[turn] for turn in sorted(turns)]
    seconds = wall_seconds([seconds for seconds, _ in order], workers)
    return seconds - (order[0][1].before + order[-1][1].after if recorded else 0.0)
