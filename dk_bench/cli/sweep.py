"""``dk-bench sweep``: the cells of a W&B sweep file, run here. Started again, it goes on where it was stopped."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

from rich.console import Console

from dk_bench.cli.options import add_output
from dk_bench.errors import UserError
from dk_bench.results.attempts import STALE
from dk_bench.sweep.cells import find_runs
from dk_bench.sweep.grid import Sweep, read_sweep
from dk_bench.sweep.progress import Shown, SweepProgress
from dk_bench.sweep.runner import Job, available_cores, available_gpus, run_jobs
from dk_bench.sweep.runs import training_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Started again, it skips what has finished, goes on from the last checkpoint of what was cut off and runs what "
        "failed again. Several may work on one folder: none takes a cell that another is at. What W&B logged offline "
        "goes up later by `wandb sync OUTPUT/*/wandb/offline-run-*`."
    )
    parser.add_argument("file", type=Path, help="sweep file in W&B's format, method grid")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="cells at a time, with a GPU or a share of the cores each (one)")
    parser.add_argument("--retries", type=int, metavar="N", default=0,
                        help="how often to run a cell that failed again (0)")
    add_output(parser, "FOLDER", "for runs and logs, in place of the file's parameter 'output'")
    parser.add_argument("--by", metavar="PARAMETER",
                        help="cells in order of this parameter first: `--by seed` ends a seed before it begins another")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is wrong, run nothing")


def run(args: argparse.Namespace) -> int:
    """Runs the cells. Returns 1 if any failed. Raises UserError for a faulty file, and what stopped the cells."""
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers is {args.workers}, expected at least 1")
    if args.retries < 0:
        raise UserError(f"--retries is {args.retries}, expected at least 0")
    sweep = read_sweep(args.file)
    jobs = make_jobs(sweep, None if args.output is None else str(args.output))
    if args.by is not None:
        jobs = ordered(jobs, args.by, args.file)
    if args.dry_run:
        return _show(jobs)
    console = Console(file=Shown(sys.stderr))
    for folder in skip_finished(jobs):
        console.print(f"failed {folder}: {STALE}", markup=False, highlight=False, style="red", soft_wrap=True)
    workers = min(args.workers or len(available_gpus()) or available_cores(), len(jobs))
    with SweepProgress(jobs, workers, console) as progress:
        run_jobs(jobs, workers, progress.changed, retries=args.retries)
    return _report(sweep, jobs, console)


def make_jobs(sweep: Sweep, output: str | None) -> list[Job]:
    """One job a cell, in the grid's order. ``output`` takes the place of the parameter of that name."""
    cells = [dict(sorted({**cell, "output": output}.items())) if output else cell for cell in sweep.cells()]
    varying = [key for key in cells[0] if any(str(cell[key]) != str(cells[0][key]) for cell in cells)]
    jobs = []
    for number, cell in enumerate(cells, start=1):
        name = " ".join(f"{key}={cell[key]}" for key in varying) or sweep.name
        values = _file_name("-".join(str(cell[key]) for key in varying)) or "cell"
        log = f"{_file_name(sweep.name) or 'sweep'}-{number:03d}-{values}.log"
        folder = Path(str(cell.get("output", "runs"))) / "logs"
        jobs.append(Job(name, sweep.argv(cell), folder / log, cell=cell))
    _check_apart(jobs)
    return jobs


def ordered(jobs: list[Job], parameter: str, source: Path) -> list[Job]:
    """The jobs by their value of a parameter, as the file lists its values, else in the order given: a sweep that is
    cut off leaves whole blocks. Raises UserError for a parameter that the file has not."""
    if unknown := [job for job in jobs if parameter not in job.cell]:
        known = ", ".join(sorted(unknown[0].cell))
        raise UserError(f"--by is {parameter!r}, expected a parameter of {source}: {known}")
    values = list(dict.fromkeys(str(job.cell[parameter]) for job in jobs))
    return sorted(jobs, key=lambda job: values.index(str(job.cell[parameter])))


def _check_apart(jobs: list[Job]) -> None:
    """Raises UserError for two cells of one command: they would be one run, and the grid a cell short."""
    seen: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        other = seen.setdefault(tuple(job.argv), job)
        if other is job:
            continue
        for key, value in job.cell.items():
            if str(value) == str(other.cell[key]) and repr(value) != repr(other.cell[key]):
                raise UserError(
                    f"parameter '{key}' has {other.cell[key]!r} and {value!r}, which are one argument, {key}={value}; "
                    "expected one of them"
                )
        raise UserError(
            f"cells {other.name!r} and {job.name!r} are one command, {shlex.join(job.argv)}; expected key 'command' "
            "with ${args_no_hyphens} or the like, so that every parameter that varies reaches it"
        )


def _show(jobs: list[Job]) -> int:
    """Prints the commands and which of them will fail, as their configuration cannot be read; 1 if there are such.

    Raises UserError for what a sweep refuses to start with.
    """
    print("\n".join(shlex.join(job.argv) for job in jobs))
    unread = find_runs(jobs)
    for job, error in unread:
        print(f"cell {job.name!r} will fail: {error}", file=sys.stderr)
    return 1 if unread else 0


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


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text)[:100]


def _report(sweep: Sweep, jobs: list[Job], console: Console) -> int:
    failed = [job for job in jobs if job.state == "failed"]
    finished = f"{len(jobs) - len(failed)} of {len(jobs)} cells finished"
    console.print(f"{sweep.name}: {finished}", markup=False, highlight=False)
    for job in failed:
        said = f": {line}" if (line := job.last_line()) else ""
        console.print(f"failed {job.name}: {job.reason}{said}", markup=False, style="red", soft_wrap=True)
        console.print(f"  {job.log}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0
