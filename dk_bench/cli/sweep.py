"""``dk-bench sweep``: the runs of a W&B sweep file, started here. Started again, it goes on where it was stopped."""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from dk_bench.cli.options import add_number, add_output, add_stalled
from dk_bench.cli.sweep_wandb import add_wandb, check_place, jobs_again, list_missing
from dk_bench.reading.shipped import shipped_names
from dk_bench.runs.attempts import STALE
from dk_bench.sweep.budget import FailureBudget, alike_failed, why
from dk_bench.sweep.early import EarlyTermination
from dk_bench.sweep.grid import Sweep, read_sweep
from dk_bench.sweep.job import Job
from dk_bench.sweep.listing import check_parameter, find_runs, make_queue, ordered, skip_finished
from dk_bench.sweep.progress import Shown, SweepProgress
from dk_bench.sweep.runner import Deadline, available_cores, available_gpus, run_jobs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Started again, it skips what has finished, goes on from the last checkpoint of what was cut off and runs what "
        "failed again. Several may work on one folder: none takes a run that another is at. What W&B logged offline "
        "goes up later by `wandb sync OUTPUT/*/wandb/offline-run-*`. With the package come the sweeps "
        f"{', '.join(shipped_names('sweeps'))}."
    )
    files = "sweep file in W&B's format (method grid or random), or a name of the package's; several go in one queue"
    parser.add_argument("file", type=Path, nargs="*", help=files)
    add_wandb(parser)
    add_number(parser, "--workers", "N", "runs at a time, with a GPU or a share of the cores each (one)")
    add_number(parser, "--retries", "N", "how often to start a run that failed again (0)", default=0, least=0)
    add_output(parser, "FOLDER", "for runs and logs, in place of the file's parameter 'output'")
    add_number(parser, "--runs", "N", "at most N runs of each file, in place of its run_cap")
    seed = "what method random draws by (0): the same seed gives the same points, and with more runs further ones"
    add_number(parser, "--random-seed", "SEED", seed, default=0, least=0)
    by = "runs in order of this parameter first: `--by seed` ends a seed before it begins another"
    parser.add_argument("--by", metavar="PARAMETER", help=by)
    limit = "start no run that would not end by then, as those like it did, and stop what runs"
    add_number(parser, "--time-limit", "SECONDS", limit, least=0.0)
    budget = "stop once N runs have failed and none has finished (one more than run at a time, at least 4); 0: never"
    add_number(parser, "--failure-budget", "N", budget, least=0)
    add_stalled(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is wrong, run nothing")


def run(args: argparse.Namespace) -> int:
    """Starts the runs. Returns 1 if any failed; one left for want of time has not. Raises UserError for a faulty file,
    and what stopped the runs."""
    deadline = Deadline(args.time_limit)
    check_place(args)
    if args.wandb:
        output = args.output and str(args.output)
        if args.missing:
            return list_missing(args.wandb, output)
        return _train(args, args.wandb, jobs_again(args.wandb, output), deadline)
    sweeps = [read_sweep(path, runs=args.runs, seed=args.random_seed) for path in args.file]
    jobs = _queue(args, sweeps)
    _tell_of_draws(sweeps)
    if args.dry_run:
        return _show(jobs)
    for folder in skip_finished(jobs):
        _console().print(f"cut off {folder}: {STALE}", markup=False, highlight=False, style="yellow", soft_wrap=True)
    return _train(args, ", ".join(sweep.name for sweep in sweeps), jobs, deadline)


def _console() -> Console:
    return Console(file=Shown(sys.stderr))


def _train(args: argparse.Namespace, name: str, jobs: list[Job], deadline: Deadline) -> int:
    """Starts the jobs, shows them, and returns 1 if any failed."""
    console = _console()
    if not jobs:
        console.print(f"{name}: nothing to train", markup=False, highlight=False)
        return 0
    workers = min(args.workers or len(available_gpus()) or available_cores(), len(jobs))
    limits = {"deadline": deadline, "budget": FailureBudget.of(args.failure_budget, workers)}
    with SweepProgress(jobs, workers, console, stalled_after=60 * args.stalled_after) as progress:
        due = EarlyTermination(jobs).due
        run_jobs(jobs, workers, progress.changed, retries=args.retries, due_to_stop=due, **limits)
    return _report(name, jobs, console, limits["budget"].is_spent(jobs))


def _queue(args: argparse.Namespace, sweeps: list[Sweep]) -> list[Job]:
    """Returns the jobs of all sweeps in the order asked for. Raises UserError."""
    parts = make_queue(args.file, sweeps, args.output and str(args.output))
    jobs = [job for part in parts for job in part]
    if args.by is None:
        return jobs
    for path, part in zip(args.file, parts, strict=True):
        check_parameter(part, args.by, path)
    return ordered(jobs, args.by)


def _tell_of_draws(sweeps: list[Sweep]) -> None:
    """Says on the standard error with which seed points were drawn, and how many of them are others again."""
    for sweep in sweeps:
        if sweep.method == "random":
            points, runs = sweep.run_cap, len(sweep.points())
            again = f", {points - runs} of them others again, which are no further runs" if runs < points else ""
            Shown(sys.stderr).write(f"{sweep.name}: {points} points of random seed {sweep.seed}{again}\n")


def _show(jobs: list[Job]) -> int:
    """Prints the commands and which of them will fail, as their configuration cannot be read; 1 if there are such.
    Raises UserError for what a sweep refuses to start with."""
    print("\n".join(shlex.join(job.argv) for job in jobs))
    unread = find_runs(jobs)
    for job, error in unread:
        print(f"run {job.name!r} will fail: {error}", file=sys.stderr)
    return 1 if unread else 0


def _report(name: str, jobs: list[Job], console: Console, gave_up: bool) -> int:
    failed = [job for job in jobs if job.state == "failed"]
    left, early = sum(not job.has_ended for job in jobs), sum(job.state == "stopped" for job in jobs)
    finished = f"{len(jobs) - len(failed) - left - early} of {len(jobs)} runs finished"
    finished += f", {early} stopped early" if early else ""
    late = "waiting, as all that ended had failed" if gave_up else "for want of time"
    console.print(f"{name}: {finished}{f', {left} left {late}' if left else ''}", markup=False, highlight=False)
    if gave_up and left:
        failed = [job for job in jobs if job.failures]
        alike = alike_failed(failed)
        line = f"failed {len(alike)} of {len(failed)} alike, {alike[0].name} first: {why(alike[0])}"
        console.print(line, markup=False, style="red", soft_wrap=True)
        console.print(f"  {alike[0].log}", markup=False, highlight=False, soft_wrap=True)
        failed = [job for job in failed if job not in alike]
    for job in failed:
        console.print(f"failed {job.name}: {why(job)}", markup=False, style="red", soft_wrap=True)
        console.print(f"  {job.log}", markup=False, highlight=False, soft_wrap=True)
    return 1 if gave_up or failed else 0
