"""``dk-bench sweep --wandb``: what is missing of a sweep at W&B's server, listed, or trained here."""

import argparse
import sys
from collections.abc import Sequence

from dk_bench.errors import UserError
from dk_bench.runs.wandb_server import RunAtWandb, SweepAtWandb
from dk_bench.sweep.job import Job
from dk_bench.sweep.wandb_cells import FINISHED, CellAtWandb, count_states, list_cells
from dk_bench.sweep.wandb_requeue import Queue, sort_out

FOR_FILES = ("runs", "by", "random_seed", "dry_run")  # options that say nothing of a sweep at the server


def add_wandb(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a sweep at the server."""
    wandb = "a sweep that `wandb sweep` has made, in place of files; with --missing or --requeue"
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT/SWEEP", help=wandb)
    what = parser.add_mutually_exclusive_group()
    missing = "list its cells, each with its state; exit status 1 unless all have finished"
    what.add_argument("--missing", action="store_true", help=missing)
    requeue = (
        "train here what its agents are not given again: cells whose run crashed, failed or was killed, as the same "
        "run; those that live elsewhere are waited for. Several machines may do so at once"
    )
    what.add_argument("--requeue", action="store_true", help=requeue)


def check_place(args: argparse.Namespace) -> None:
    """Raises UserError unless there are either files or a sweep at the server, with options that go with it."""
    if bool(args.file) == bool(args.wandb):
        raise UserError("expected sweep files, or --wandb ENTITY/PROJECT/SWEEP, and not both")
    if not args.wandb and (args.missing or args.requeue):
        raise UserError(f"--{'missing' if args.missing else 'requeue'} goes with --wandb ENTITY/PROJECT/SWEEP")
    if args.wandb and not (args.missing or args.requeue):
        raise UserError("--wandb needs --missing, which lists its cells, or --requeue, which trains lost ones")
    if args.wandb and (extra := [name for name in FOR_FILES if getattr(args, name)]):
        raise UserError(f"--{extra[0].replace('_', '-')} goes with sweep files, not with --wandb")


def list_missing(path: str, output: str | None = None) -> int:
    """Prints the cells of a sweep with their states; returns 1 unless all have finished. Raises UserError."""
    cells, strays = list_cells(SweepAtWandb(path), output)
    for cell in cells:
        print(f"{cell.name}: {cell.told()}")
    _tell(path, cells, strays)
    return int(any(cell.state != FINISHED for cell in cells))


def jobs_again(path: str, output: str | None = None) -> list[Job]:
    """Returns the jobs of the cells that have finished or are to be trained here, and says how many are not. Raises
    UserError."""
    server = SweepAtWandb(path)
    queue = Queue(server, output)
    ours, given = sort_out(queue.cells, server.is_running())
    _tell(path, queue.cells, queue.strays)
    if given:
        print(f"{path}: {len(given)} of them are its agents' to train: wandb agent {path}", file=sys.stderr)
    return queue.jobs([cell for cell in queue.cells if cell.finished or cell in ours])


def _tell(path: str, cells: Sequence[CellAtWandb], strays: Sequence[RunAtWandb]) -> None:
    for run in strays:
        print(f"{path}: run {run.id} ({run.state}) has no parameters of a cell", file=sys.stderr)
    print(f"{path}: {count_states(cells)}", file=sys.stderr)
