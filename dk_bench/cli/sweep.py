"""``dk-bench sweep``: the cells of a W&B sweep file, run here. Started again, it goes on where it was stopped."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from dk_bench.config import Config, load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.results.attempts import STALE
from dk_bench.results.identity import config_hash
from dk_bench.results.record import TRAINING, RunRecord, as_it_stands, find_records, read_record
from dk_bench.sweep.grid import Sweep, read_sweep
from dk_bench.sweep.progress import SweepProgress
from dk_bench.sweep.runner import Job, available_cores, run_jobs

STOPPED = 130  # what shells report after Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="sweep file in W&B's format, method grid")
    parser.add_argument("--workers", type=int, help="cells at a time; they share the cores (one a core)")
    parser.add_argument("--output", help="folder for runs and logs, in place of the file's parameter 'output'")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")


def run(args: argparse.Namespace) -> int:
    """Runs the cells. Returns 1 if any failed, 130 if stopped. Raises UserError for a faulty file."""
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers is {args.workers}, expected at least 1")
    sweep = read_sweep(args.file)
    jobs = make_jobs(sweep, args.output)
    if args.dry_run:
        print("\n".join(shlex.join(job.argv) for job in jobs))
        return 0
    console = Console(stderr=True)
    for folder in skip_finished(jobs):
        console.print(f"failed {folder}: {STALE}", markup=False, highlight=False, style="red", soft_wrap=True)
    workers = min(args.workers or available_cores(), len(jobs))
    # A plain kill stops the cells too, just as Ctrl-C does.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with SweepProgress(jobs, workers, console) as progress:
            run_jobs(jobs, workers, progress.changed)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return _report(sweep, jobs, console)


def make_jobs(sweep: Sweep, output: str | None) -> list[Job]:
    """One job a cell, in the grid's order. ``output`` takes the place of the parameter of that name."""
    cells = [dict(sorted({**cell, "output": output}.items())) if output else cell for cell in sweep.cells()]
    varying = [key for key in cells[0] if any(cell[key] != cells[0][key] for cell in cells)]
    jobs = []
    for number, cell in enumerate(cells, start=1):
        name = " ".join(f"{key}={cell[key]}" for key in varying) or sweep.name
        log = f"{sweep.name}-{number:03d}-{_file_name(cell, varying)}.log"
        jobs.append(Job(name, sweep.argv(cell), Path(str(cell.get("output", "runs"))) / "logs" / log))
    return jobs


def skip_finished(jobs: list[Job]) -> list[Path]:
    """Marks jobs of ``dk-bench train`` whose run has a finished record below its output folder.

    Training would see that itself and return at once, but only after half a minute of imports for every few cells.
    Returns the folders of runs whose record says running while their process, on this machine, is gone; their jobs
    wait to be run, from the last checkpoint.
    """
    runs: dict[str, list[tuple[Path, RunRecord]]] = {}  # output folder -> training runs in it
    for job in jobs:
        config = _train_config(job.argv)
        if config is None:
            continue
        if config.output not in runs:
            runs[config.output] = list(_training_runs(Path(config.output)))
        finished = {(config_hash(r.config), r.seed) for _, r in runs[config.output] if r.status == "finished"}
        if (config_hash(to_dict(config)), config.seed) in finished:
            job.state = "skipped"
    return [folder for found in runs.values() for folder, record in found if record.error == STALE]


def _train_config(argv: list[str]) -> Config | None:
    """The configuration ``[...] dk-bench train CONFIG key=value...`` stands for; None for any other command."""
    names = [Path(part).name for part in argv]
    for start in range(len(names) - 2):
        if names[start : start + 2] == ["dk-bench", "train"]:
            with contextlib.suppress(UserError):  # the cell itself will fail with it, and say so in its log
                return load_config(argv[start + 2], argv[start + 3 :])
    return None


def _training_runs(folder: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Folder and record, as it stands now, of the training runs below a folder."""
    for path in find_records([folder]) if folder.exists() else []:
        with contextlib.suppress(UserError):  # a file that is no record is no run
            record = as_it_stands(read_record(path))
            if record.task == TRAINING:
                yield path.parent, record


def _file_name(cell: dict[str, Any], varying: list[str]) -> str:
    return re.sub(r"[^\w.=-]+", "_", "-".join(str(cell[key]) for key in varying))[:100] or "cell"


def _report(sweep: Sweep, jobs: list[Job], console: Console) -> int:
    failed = [job for job in jobs if job.state == "failed"]
    console.print(f"{sweep.name}: {len(jobs) - len(failed)} of {len(jobs)} cells finished", highlight=False)
    for job in failed:
        console.print(f"failed {job.name}: {job.reason}: {job.last_line()}", markup=False, style="red", soft_wrap=True)
        console.print(f"  {job.log}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0
