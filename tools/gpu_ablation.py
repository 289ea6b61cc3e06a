"""Runs sweeps on a machine with a GPU and no network: many small models side by side, until the time given is over.

    python tools/gpu_ablation.py pack FOLDER SWEEP... [--data DATA...]     where dk_bench and W&B's client are installed
    python tools/gpu_ablation.py run FOLDER --seconds 590 --workers 16 --output OUT      on the machine with the GPU

``pack`` leaves the runs' commands, all sweeps seed by seed so that a seed's block is complete before the next begins,
and the folders DATA in one archive. ``run`` starts every run in a fork of a process that has imported everything, stops
starting runs that would not end in time, and interrupts those that are at work when it is over: started again on the
same folder, they go on from their checkpoints. OUT then holds records.tar.gz, logs.tar.gz and, with --weights
NAME/MODEL..., the weights of the runs of these names and models in archives below 16 MiB each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from pathlib import Path

DATA, JOBS, CODE = "data.tar.xz", "jobs.json", "code"
MPS = "nvidia-cuda-mps-control"
ENDING_SECONDS = 12.0  # for interrupted runs to write their checkpoints, and for the archives
ARCHIVE_BYTES = 15 << 20
POLL_SECONDS = 0.05
AHEAD = 4  # processes that prepare images while as many runs as there are to be at a time are at work
EPOCHS = 3  # augmented by one process, which takes a second to find its images


def pack(folder: Path, sweeps: list[Path], data: list[Path]) -> None:
    """Writes the commands of the sweeps' runs, in order of their seeds, the data's archive, and a clone of the code."""
    from dk_bench.cli.sweep import make_jobs
    from dk_bench.sweep.grid import read_sweep

    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for path in sweeps:
        for job in make_jobs(read_sweep(path), None):
            start = job.argv.index("train")
            runs.append({"seed": int(job.cell["seed"]), "name": job.name, "argv": job.argv[start:]})
    runs.sort(key=lambda run: run["seed"])  # stable: within a seed the sweeps come as they are named
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
    """Runs the packed commands until ``seconds`` from now; returns how each run stands by its name.

    Where it ``goes_on`` in another call, runs are started that cannot end in this one."""
    end = time.monotonic() + seconds - ENDING_SECONDS
    if (folder / DATA).exists() and not Path("data").exists():
        with tarfile.open(folder / DATA) as archive:
            archive.extractall(".", filter="data")
    with_mps = _start_mps()
    _import_everything()
    waiting = [job for job in json.loads((folder / JOBS).read_text()) if not _has_finished(job, overrides)]
    images = Images(waiting, overrides)
    states = {_key(job): "waiting" for job in waiting}
    running: dict[str, tuple[multiprocessing.Process, dict, float]] = {}
    took: dict[str, list[float]] = defaultdict(list)
    print(f"{len(waiting)} runs, {workers} at a time, for {seconds:.0f} s, MPS: {with_mps}", flush=True)
    while (waiting or running) and time.monotonic() < end:
        images.prepare(max(AHEAD, workers + AHEAD - len(running)))
        while len(running) < workers and (job := _next(waiting, took, end + goes_on * 1e9, images)):
            waiting.remove(job)
            running[_key(job)] = (_fork(job, overrides), job, time.monotonic())
        if not running and not goes_on and not any(_fits(job, took, end) for job in waiting):
            break
        ended = [state for state in states.values() if state != "waiting"]
        if len(ended) > workers and "finished" not in ended:
            break  # every one of them fails
        time.sleep(POLL_SECONDS)
        for key, (process, job, begun) in [*running.items()]:
            if process.exitcode is not None:
                lasted = time.monotonic() - begun
                states[key] = "finished" if process.exitcode == 0 else f"failed, exit status {process.exitcode}"
                if process.exitcode == 0:
                    took[_model(job)].append(lasted)
                print(f"{time.strftime('%X')} {states[key]} in {lasted:.0f} s: {key}", flush=True)
                del running[key]
    _interrupt([*images.at_work, *(process for process, _, _ in running.values())])
    if with_mps:
        _stop_mps()
    states |= dict.fromkeys(running, "interrupted")
    return states


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
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers"):
        content[key] = []
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _has_finished(job: dict, overrides: list[str]) -> bool:
    """Whether a run has a finished record from an earlier call. It would end at once, and not tell how long others
    take."""
    from dk_bench.sweep.runs import Run, training_values

    record = Run.of(*training_values(["dk-bench", *job["argv"], *overrides])).record()
    return record is not None and record.status == "finished"


def _key(job: dict) -> str:
    return " ".join(part for part in job["argv"][1:] if not part.startswith("output="))


def _model(job: dict) -> str:
    return " ".join(part for part in job["argv"] if not part.startswith("seed="))


def _fits(job: dict, took: dict[str, list[float]], end: float) -> bool:
    """Whether a run would end in time, by how long the slowest like it took, or any where there is none."""
    known = took.get(_model(job)) or [statistics.mean(times) for times in took.values()]
    return not known or time.monotonic() + 1.05 * max(known) < end


def _next(waiting: list[dict], took: dict[str, list[float]], end: float, images: Images) -> dict | None:
    """The first run that would end in time and whose images are prepared."""
    ready = (job for job in waiting if images.are_ready(job))
    return next((job for job in ready if _fits(job, took, end)), None)


class Images:
    """What runs share: decoded images, and their augmented epochs, which are the same for all models of a seed.

    Both are made in processes of their own, in the order in which the jobs come.
    """

    def __init__(self, jobs: list[dict], overrides: list[str]) -> None:
        from dk_bench.data.shifts import held_out_sets

        self.at_work: list[multiprocessing.Process] = []
        self._blocks: dict[str, tuple[str, int]] = {}  # a job's images, by its name, and its seed
        self._decoding: dict[str, list[multiprocessing.Process]] = {}
        self._tasks: list[tuple[tuple[str, int], object, range]] = []
        self._left: dict[tuple[str, int], list[multiprocessing.Process | None]] = {}
        for job in jobs:
            config = _config(job, overrides)
            images = repr(config.data)
            block = self._blocks[_key(job)] = images, config.seed
            if images not in self._decoding:
                splits = ["train", "val", *held_out_sets(config.data)]
                self._decoding[images] = [self._start(_decode, config, split) for split in splits]
            if block not in self._left:
                parts = [range(n, min(n + EPOCHS, config.optim.epochs)) for n in range(0, config.optim.epochs, EPOCHS)]
                self._tasks += [(block, config, part) for part in parts]
                self._left[block] = [None] * len(parts)

    def _start(self, target: object, *arguments: object) -> multiprocessing.Process:
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        process.start()
        self.at_work.append(process)
        return process

    def prepare(self, most: int) -> None:
        """Starts what comes next, so that at most so many processes are at it."""
        self.at_work = [process for process in self.at_work if process.exitcode is None]
        while self._tasks and len(self.at_work) < most:
            block, config, epochs = self._tasks[0]
            if not _have_ended(self._decoding[block[0]]):
                return
            del self._tasks[0]
            self._left[block].remove(None)
            self._left[block].append(self._start(_lay_down, config, epochs))

    def are_ready(self, job: dict) -> bool:
        """Whether the images of a job's run are all there; where making them failed, the run does it by itself."""
        return _have_ended(self._left[self._blocks[_key(job)]])


def _config(job: dict, overrides: list[str]) -> object:
    from dk_bench.config import load_config

    return load_config(job["argv"][1], [*job["argv"][2:], *overrides])


def _have_ended(processes: list[multiprocessing.Process | None]) -> bool:
    return all(process is not None and process.exitcode is not None for process in processes)


def _lay_down(config: object, epochs: range) -> None:
    from dk_bench.data.laid_down import LaidDown
    from dk_bench.data.module import ClassificationData

    images = ClassificationData(config.data, config.seed).augmented
    for epoch in epochs if isinstance(images, LaidDown) else ():  # others are not decoded in files
        images.write(epoch)


def _decode(config: object, split: str) -> None:
    from dk_bench.data.module import ClassificationData

    data = ClassificationData(config.data, config.seed)
    if split in ("train", "val"):
        getattr(data, f"{split}_pixels")
    else:
        data.test_dataloader(split)


def _fork(job: dict, overrides: list[str]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(job, overrides), daemon=False)
    process.start()
    return process


def _child(job: dict, overrides: list[str]) -> None:
    os.setsid()
    log = Path("runs/logs", _key(job).replace("/", "_").replace(" ", "-")[-200:] + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.argv = ["dk-bench", *job["argv"], *overrides]
    from dk_bench.cli import main

    sys.exit(main(sys.argv[1:]))


def _interrupt(processes: list[multiprocessing.Process]) -> None:
    for process in processes:
        process.terminate()
    patience = time.monotonic() + ENDING_SECONDS / 2
    for process in processes:
        process.join(max(0.1, patience - time.monotonic()))
        if process.exitcode is None:
            process.kill()


def _import_everything() -> None:
    """What every run would import for itself; nothing of it may touch the GPU, which no fork could use then."""
    import timm  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import dk_bench.training.run  # noqa: F401


def _start_mps() -> bool:
    """Whether NVIDIA's multi-process service runs, by which kernels of several processes run side by side: where it was
    started and a process can use the GPU through it. Else it is ended, and the processes take turns."""
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
        pack(args.folder, args.sweeps, args.data)
        return 0
    states = run(args.folder, args.seconds, args.workers, args.override, args.goes_on)
    collect(args.output, Path("runs"), args.weights)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    print(json.dumps(counts))
    (args.output / "states.json").write_text(json.dumps(states, indent=1))
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
