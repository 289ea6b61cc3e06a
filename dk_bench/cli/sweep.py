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
from dk_bench.runs.attempts import STALE
from dk_bench.sweep.deadline import Deadline
from dk_bench.sweep.grid import Sweep, read_sweep
from dk_bench.sweep.listing import find_runs, skip_finished
from dk_bench.sweep.progress import Shown, SweepProgress
from dk_bench.sweep.runner import Job, available_cores, available_gpus, run_jobs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Started again, it skips what has finished, goes on from the last checkpoint of what was cut off and runs what "
        "failed again. Several may work on one folder: none takes a cell that another is at. What W&B logged offline "
        "goes up later by `wandb sync OUTPUT/*/wandb/offline-run-*`."
    )
    parser.add_argument(
        "file",
        type=Path,
        nargs="+",
        help="sweep file in W&B's format, method grid; the cells of several go in one queue",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="cells at a time, with a GPU or a share of the cores each (one)"
    )
    parser.add_argument(
        "--retries", type=int, metavar="N", default=0, help="how often to run a cell that failed again (0)"
    )
    add_output(parser, "FOLDER", "for runs and logs, in place of the file's parameter 'output'")
    parser.add_argument(
        "--by",
        metavar="PARAMETER",
        help="cells in order of this parameter first: `--by seed` ends a seed before it begins another",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="start no cell that would not end by then, as those like it did, and stop what runs",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is wrong, run nothing")


def run(args: argparse.Namespace) -> int:
    """Runs the cells. Returns 1 if any failed; one left for want of time has not. Raises UserError for a faulty file,
    and what stopped the cells."""
    deadline = Deadline(args.time_limit)
    for name, low in ("workers", 1), ("retries", 0), ("time_limit", 0.001):
        if (given := getattr(args, name)) is not None and not given >= low:
            raise UserError(f"--{name.replace('_', '-')} is {given}, expected at least {low}")
    sweeps = [read_sweep(path) for path in args.file]
    jobs = _queue(args, sweeps)
    if args.dry_run:
        return _show(jobs)
    console = Console(file=Shown(sys.stderr))
    for folder in skip_finished(jobs):
        console.print(f"failed {folder}: {STALE}", markup=False, highlight=False, style="red", soft_wrap=True)
    workers = min(args.workers or len(available_gpus()) or available_cores(), len(jobs))
    with SweepProgress(jobs, workers, console) as progress:
        run_jobs(jobs, workers, progress.changed, retries=args.retries, deadline=deadline)
    return _report(", ".join(sweep.name for sweep in sweeps), jobs, console)


def _queue(args: argparse.Namespace, sweeps: list[Sweep]) -> list[Job]:
    """Returns the jobs of all sweeps in the order asked for. Raises UserError."""
    output = None if args.output is None else str(args.output)
    parts = [make_jobs(sweep, output, named=len(sweeps) > 1) for sweep in sweeps]
    jobs = [job for part in parts for job in part]
    if args.by is None:
        return jobs
    for path, part in zip(args.file, parts, strict=True):
        check_parameter(part, args.by, path)
    return ordered(jobs, args.by)


def make_jobs(sweep: Sweep, output: str | None, *, named: bool = False) -> list[Job]:
    """Returns one job a cell, in the grid's order. ``output`` takes the place of the parameter of that name. ``named``:
    the jobs' names begin with the sweep's."""
    cells = [dict(sorted({**cell, "output": output}.items())) if output else cell for cell in sweep.cells()]
    varying = [key for key in cells[0] if any(str(cell[key]) != str(cells[0][key]) for cell in cells)]
    jobs = []
    for number, cell in enumerate(cells, start=1):
        name = " ".join(f"{key}={cell[key]}" for key in varying) or sweep.name
        values = _file_name("-".join(str(cell[key]) for key in varying)) or "cell"
        log = f"{_file_name(sweep.name) or 'sweep'}-{number:03d}-{values}.log"
        folder = Path(str(cell.get("output", "runs"))) / "logs"
        name = f"{sweep.name} {name}" if named and name != sweep.name else name
        jobs.append(Job(name, sweep.argv(cell), folder / log, cell=cell))
    _check_apart(jobs)
    return jobs


def check_parameter(jobs: list[Job], parameter: str, source: Path) -> None:
    """Raises UserError for a parameter that the jobs' file has not."""
    if unknown := [job for job in jobs if parameter not in job.cell]:
        named = ", ".join(sorted(unknown[0].cell))
        raise UserError(f"--by is {parameter!r}, expected a parameter of {source}: {named}")


def ordered(jobs: list[Job], parameter: str) -> list[Job]:
    """Returns the jobs by their value of a parameter, as the files list its values, else in the order given: a sweep
    that is cut off leaves whole blocks."""
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


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text)[:100]


def _report(name: str, jobs: list[Job], console: Console) -> int:
    failed = [job for job in jobs if job.state == "failed"]
    left = sum(not job.has_ended for job in jobs)
    finished = f"{len(jobs) - len(failed) - left} of {len(jobs)} cells finished"
    late = f", {left} left for want of time" if left else ""
    console.print(f"{name}: {finished}{late}", markup=False, highlight=False)
    for job in failed:
        said = f": {line}" if (line := job.last_line()) else ""
        console.print(f"failed {job.name}: {job.reason}{said}", markup=False, style="red", soft_wrap=True)
        console.print(f"  {job.log}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0
