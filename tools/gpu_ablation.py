"""Runs sweeps on a machine with a GPU and no network: many small models side by side, until the time given is over.

    python tools/gpu_ablation.py pack FOLDER SWEEP... [--data DATA...] [--done RESULTS...]
    python tools/gpu_ablation.py run FOLDER --seconds 590 --workers 16 --output OUT      on the machine with the GPU

``pack``, where dk_bench and W&B's client are installed, leaves the runs' commands, all sweeps seed by seed so that a
seed's block is complete before the next begins, but for runs that RESULTS have finished records of, and the folders
DATA in one archive. ``run`` is `dk-bench sweep --by seed --time-limit` of them, with what that has not:
a run is a fork of a process that has imported everything, and waits for images that are prepared beside it, once for
all runs of a seed. Runs that are interrupted go on when it is called again. OUT then holds records.tar.gz, logs.tar.gz
and, with --weights NAME/MODEL..., the weights of the runs of these names and models in archives below 16 MiB each.
"""

# ruff: noqa: E402  (the clock starts before the imports, which take seconds)
from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

BEGAN = time.monotonic()

import torch
from forked import Forked

import dk_bench.classification.module
import dk_bench.training.run  # noqa: F401  # here, for all forks; nothing of it touches the GPU
from dk_bench.classification.data import ClassificationData
from dk_bench.cli import main as dk_bench_main
from dk_bench.config import Config, load_config
from dk_bench.data.laid_down import LaidDown
from dk_bench.data.shifts import held_out_sets
from dk_bench.processes.interrupts import Interrupted, begin_anew, interrupts
from dk_bench.runs.record import find_records, read_record
from dk_bench.sweep.job import Job
from dk_bench.sweep.listing import find_runs, skip_finished
from dk_bench.sweep.runner import Deadline, run_jobs

DATA, JOBS, CODE = "data.tar.xz", "jobs.json", "code"
MPS = "nvidia-cuda-mps-control"
ENDING_SECONDS = 12.0  # for interrupted runs to write their checkpoints, and for the archives
ARCHIVE_BYTES = 15 << 20
AHEAD = 4  # processes that prepare images while as many runs as there are to be at a time are at work
EPOCHS = 3  # augmented by one process, which takes a second to find its images


def pack(folder: Path, sweeps: list[Path], data: list[Path], done: list[Path]) -> None:
    """Writes the commands of the sweeps' runs, in order of their seeds, the data's archive, and a clone of the code.

    Runs that have a finished record in the folders ``done`` are left out."""
    from dk_bench.sweep.grid import read_sweep
    from dk_bench.sweep.listing import make_queue, ordered  # with W&B's client

    folder.mkdir(parents=True, exist_ok=True)
    jobs = [job for part in make_queue(sweeps, [read_sweep(path) for path in sweeps], None) for job in part]
    jobs = ordered(jobs, "seed")
    finished = {path.parent.name for path in find_records(done) if read_record(path).status == "finished"}
    find_runs(jobs)
    jobs = [job for job in jobs if job.run.folder.name not in finished]
    runs = [
        {"name": job.name, "log": str(job.log), "point": job.point, "argv": job.argv[job.argv.index("train") :]}
        for job in jobs
    ]
    (folder / JOBS).write_text(json.dumps(runs, indent=1))
    _clone(folder / CODE)
    if data:
        with tarfile.open(folder / DATA, "w:xz") as archive:  # solid: what all small images begin with is stored once
            for path in sorted(p for folder in data for p in Path(folder).rglob("*") if p.is_file()):
                archive.add(path, arcname=Path("data", path.parent.name, path.name))
    print(f"{len(runs)} runs; {sum(p.stat().st_size for p in folder.iterdir()) / 2**20:.1f} MiB in {folder}")


def _clone(folder: Path) -> None:
    """Clones the last commit, so that records there name it, with the operators as they are built here."""
    if folder.exists():
        shutil.rmtree(folder)
    root = Path(__file__).resolve().parent.parent
    subprocess.run(["git", "clone", "-q", "--depth", "1", root.as_uri(), str(folder)], check=True)
    for library in root.glob("dk_bench/_c*.so"):
        shutil.copy2(library, folder / "dk_bench")


def run(folder: Path, seconds: float, workers: int, overrides: list[str], goes_on: bool = False) -> dict[str, str]:
    """Runs the packed commands until ``seconds`` from the start of this process; returns how each run stands by its
    name, without those that had finished before.

    Where it ``goes_on`` in another call, runs are started that cannot end in this one."""
    left = BEGAN + seconds - ENDING_SECONDS - time.monotonic()
    deadline = (ForAnotherCall if goes_on else Deadline)(left, patience=ENDING_SECONDS / 2)
    if (folder / DATA).exists() and not Path("data").exists():
        with tarfile.open(folder / DATA) as archive:
            archive.extractall(".", filter="data")
    with_mps = _start_mps()
    torch.set_num_threads(1)
    jobs = read_jobs(folder, overrides)
    images = Images(jobs)
    print(f"{len(jobs)} runs, {workers} at a time, for {seconds:.0f} s, MPS: {with_mps}", flush=True)

    def changed(job: Job | None) -> None:
        states = [job.state for job in jobs]
        if job is None:
            images.prepare(max(AHEAD, workers + AHEAD - states.count("running")))
        elif job.has_ended:
            print(f"{time.strftime('%X')} {_said(job)} in {job.seconds:.0f} s: {job.name}", flush=True)
            if states.count("failed") > workers and "finished" not in states:
                deadline.end = 0.0  # every one of them fails

    try:
        run_jobs(jobs, workers, changed, deadline=deadline, is_ready=images.are_ready, starter=fork)
    finally:
        images.stop()
        if with_mps:
            _stop_mps()
    return {job.name: _said(job) for job in jobs}


class ForAnotherCall(Deadline):
    """An end before which all may start: what it overtakes goes on in another call."""

    def choose(self, candidates: Sequence[Job], jobs: Sequence[Job]) -> list[Job]:
        return list(candidates)


def read_jobs(folder: Path, overrides: list[str]) -> list[Job]:
    """The packed runs that have not finished."""
    packed = json.loads((folder / JOBS).read_text())
    jobs = [
        Job(one["name"], ["dk-bench", *one["argv"], *overrides], Path(one["log"]), point=one["point"]) for one in packed
    ]
    skip_finished(jobs)
    return [job for job in jobs if not job.has_ended]


def fork(argv: list[str], log: IO[bytes], environment: dict[str, str]) -> Forked:
    """Starts a run in place of `dk_bench.sweep.runner.launch`."""

    def command() -> int:
        sys.argv = argv
        return dk_bench_main(argv[1:])

    return Forked(command, log, environment)


def _said(job: Job) -> str:
    """Tells how a run stands, in words."""
    if job.state == "waiting" and job.reason:
        return "interrupted"
    return f"{job.state}, {job.reason}" if job.reason else job.state


def collect(output: Path, runs: Path, weights: list[str]) -> None:
    """Packs records, logs and the weights of runs that are named; weights without the optimiser's state."""
    output.mkdir(parents=True, exist_ok=True)
    for name, pattern in (("records", "record.json"), ("logs", "*.log")):
        with tarfile.open(output / f"{name}.tar.gz", "w:gz") as archive:
            for path in sorted(runs.rglob(pattern)):
                archive.add(path)
    chosen = []
    for path in sorted(runs.rglob("record.json")):
        record = json.loads(path.read_text())
        if record["status"] == "finished" and f"{record['name']}/{record['model']['name']}" in weights:
            chosen.append((record["seed"], path.parent / "last.ckpt"))
    archives: list[list[tuple[str, bytes]]] = [[]]
    for _, path in sorted(chosen):
        content = _weights_of(path)
        if sum(len(c) for _, c in archives[-1]) + len(content) > ARCHIVE_BYTES:
            archives.append([])
        archives[-1].append((str(path), content))
    for number, files in enumerate(archives):
        with tarfile.open(output / f"weights-{number}.tar", "w") as archive:
            for name, content in files:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def _weights_of(checkpoint: Path) -> bytes:
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers"):
        content[key] = []
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Images:
    """Makes what runs share: decoded images, and their augmented epochs, which are the same for all models of a seed.

    Both are made in processes of their own, in the order in which the jobs come.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self._at_work: list[multiprocessing.Process] = []
        self._blocks: dict[str, tuple[str, int]] = {}  # a job's images, by its name, and its seed
        self._decoding: dict[str, list[multiprocessing.Process]] = {}
        self._tasks: list[tuple[tuple[str, int], Config, range]] = []
        self._left: dict[tuple[str, int], list[multiprocessing.Process | None]] = {}
        for job in jobs:
            config = _config(job)
            images = repr(config.data)
            block = self._blocks[job.name] = images, config.seed
            if images not in self._decoding:
                splits = ["train", "val", *held_out_sets(config.data)]
                self._decoding[images] = [self._start(_decode, config, split) for split in splits]
            if block not in self._left:
                parts = [range(n, min(n + EPOCHS, config.optim.epochs)) for n in range(0, config.optim.epochs, EPOCHS)]
                self._tasks += [(block, config, part) for part in parts]
                self._left[block] = [None] * len(parts)

    def _start(self, target: Callable, *arguments: object) -> multiprocessing.Process:
        process = multiprocessing.get_context("fork").Process(target=_until_stopped, args=(target, *arguments))
        process.start()
        self._at_work.append(process)
        return process

    def prepare(self, most: int) -> None:
        """Starts what comes next, so that at most so many processes are at it."""
        self._at_work = [process for process in self._at_work if process.exitcode is None]
        while self._tasks and len(self._at_work) < most:
            block, config, epochs = self._tasks[0]
            if not _have_ended(self._decoding[block[0]]):
                return
            del self._tasks[0]
            self._left[block].remove(None)
            self._left[block].append(self._start(_lay_down, config, epochs))

    def are_ready(self, job: Job) -> bool:
        """Tells whether the images of a job's run are all there; where making them failed, the run makes them."""
        return _have_ended(self._left[self._blocks[job.name]])

    def stop(self) -> None:
        """Ends what is being prepared; what is whole by then stays."""
        for process in self._at_work:
            process.terminate()
        for process in self._at_work:
            process.join(1.0)
            process.kill()


def _config(job: Job) -> Config:
    return load_config(job.argv[2], job.argv[3:])


def _have_ended(processes: list[multiprocessing.Process | None]) -> bool:
    return all(process is not None and process.exitcode is not None for process in processes)


def _until_stopped(target: Callable, *arguments: object) -> None:
    """Leaves no half of a file where it is stopped."""
    begin_anew()
    with contextlib.suppress(Interrupted), interrupts():
        target(*arguments)


def _lay_down(config: Config, epochs: range) -> None:
    images = ClassificationData(config.data, config.seed).augmented
    for epoch in epochs if isinstance(images, LaidDown) else ():  # others are not decoded in files
        images.write(epoch)


def _decode(config: Config, split: str) -> None:
    data = ClassificationData(config.data, config.seed)
    if split in ("train", "val"):
        getattr(data, f"{split}_pixels")
    else:
        data.test_dataloader(split)


def _start_mps() -> bool:
    """Tells whether NVIDIA's multi-process service runs, by which kernels of several processes run side by side: where
    it was started and a process can use the GPU through it. Else it is ended, and the processes take turns."""
    try:
        started = subprocess.run([MPS, "-d"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if started.returncode:
        return False
    code = "import torch; assert torch.ones(8, device='cuda').sum().item() == 8"
    try:
        tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        _stop_mps()
        return False
    if tried.returncode:
        print(f"no MPS: {tried.stderr.strip().splitlines()[-1:]}", flush=True)
        _stop_mps()
    return tried.returncode == 0


def _stop_mps() -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([MPS], input=b"quit\n", capture_output=True, timeout=10, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packer = commands.add_parser("pack")
    packer.add_argument("folder", type=Path)
    packer.add_argument("sweeps", type=Path, nargs="+")
    packer.add_argument("--data", type=Path, nargs="*", default=[])
    packer.add_argument("--done", type=Path, nargs="*", default=[])
    runner = commands.add_parser("run")
    runner.add_argument("folder", type=Path)
    runner.add_argument("--seconds", type=float, required=True)
    runner.add_argument("--workers", type=int, default=os.cpu_count())
    runner.add_argument("--output", type=Path, required=True)
    runner.add_argument("--weights", nargs="*", default=[], metavar="NAME/MODEL", help="runs' names and models")
    runner.add_argument("--goes-on", action="store_true", help="another call follows: start runs that it has to end")
    runner.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.folder, args.sweeps, args.data, args.done)
        return 0
    states = run(args.folder, args.seconds, args.workers, args.override, args.goes_on)
    collect(args.output, Path("runs"), args.weights)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    print(json.dumps(counts))
    (args.output / "states.json").write_text(json.dumps(states, indent=1))
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
