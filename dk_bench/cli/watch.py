"""``dk-bench watch``: how the runs in folders, or of a sweep at W&B's server, stand, over all machines, in one view."""

import argparse
from pathlib import Path

from rich.console import Console

from dk_bench.cli.options import add_number, add_stalled
from dk_bench.errors import UserError
from dk_bench.runs.wandb_server import SweepAtWandb
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.listing import find_runs, make_queue
from dk_bench.sweep.onlooker import Onlooker
from dk_bench.sweep.view import watch
from dk_bench.sweep.wandb_onlooker import WandbOnlooker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "It reads records, locks and logs, or asks W&B's server, and writes nothing. Until all runs have ended it "
        "shows them again; the exit status is 1 if any failed or is stalled."
    )
    folders = "of runs, shared by the machines; left out, those that the sweep files name as 'output'"
    parser.add_argument("folder", type=Path, nargs="*", help=folders)
    files = "sweep files whose runs to show, those that nobody has begun too, in place of all in the folders"
    parser.add_argument("--sweep", type=Path, nargs="+", default=(), metavar="FILE", help=files)
    add_number(parser, "--runs", "N", "as given to `dk-bench sweep`")
    add_number(parser, "--random-seed", "SEED", "as given to `dk-bench sweep` (0)", default=0, least=0)
    wandb = "a sweep at W&B's server, in place of folders and files"
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT/SWEEP", help=wandb)
    parser.add_argument("--once", action="store_true", help="show how things stand now, and end")
    add_number(parser, "--every", "SECONDS", "how often to look (5; W&B's server: 30)", least=0.0)
    add_stalled(parser)


def run(args: argparse.Namespace) -> int:
    """Shows the runs. Returns 1 if any failed or is stalled. Raises UserError for a folder or file that is none."""
    onlooker, every = (_at_wandb(args), 30.0) if args.wandb else (_onlooker(args), 5.0)
    rows = watch(onlooker.rows, Console(), once=args.once, every=args.every or every)
    return 1 if any(row.state in ("failed", "stalled") for row in rows) else 0


def _at_wandb(args: argparse.Namespace) -> WandbOnlooker:
    if args.folder or args.sweep:
        raise UserError("--wandb goes without folders and sweep files")
    return WandbOnlooker(SweepAtWandb(args.wandb), stalled_after=60 * args.stalled_after)


def _onlooker(args: argparse.Namespace) -> Onlooker:
    if not args.sweep:
        if not args.folder:
            raise UserError("expected a FOLDER of runs, --sweep FILE or --wandb ENTITY/PROJECT/SWEEP")
        return Onlooker(args.folder, stalled_after=60 * args.stalled_after)
    sweeps = [read_sweep(path, runs=args.runs, seed=args.random_seed) for path in args.sweep]
    jobs = [job for part in make_queue(args.sweep, sweeps, None) for job in part]
    for job, error in find_runs(jobs):
        job.state, job.reason = "failed", str(error)
    outputs = dict.fromkeys(job.run.output for job in jobs if job.run)
    folders = args.folder or [output for output in outputs if output.exists()]
    metric = next((sweep.metric for sweep in sweeps if sweep.metric), "")
    return Onlooker(folders, jobs, stalled_after=60 * args.stalled_after, metric=metric)
