#!/usr/bin/env python3
"""Kills a sweep at random moments, starts it again, and checks that nothing is lost, doubled or half written.

    python tools/sweep_kills.py [--kills 20] [--seed 0] [--fork]

A small grid is trained twice by `dk-bench sweep` with two workers: once in peace, and once under SIGKILLs to the runner
(its runs live on), to a run, or to both; after every fourth, a run finds its disk full (files may not grow beyond a
limit). Every record is read all the while. In the end every run must have one finished record, trained by one process
at a time, with the metrics and the weights of the run in peace, bit for bit, and the tables made from both must have
the same bytes; but for images per second, which are measured and never the same: those are taken out of the records
first. A grid that is done before all kills are spent begins anew.

``--fork``: processes are forked from this one, which has the imports done, in place of being started; so that kills
hit training in place of imports, and twenty take a minute in place of ten.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from forked import Forked

from dk_bench.cli import main as dk_bench
from dk_bench.errors import UserError
from dk_bench.runs.attempts import is_gone, this_process
from dk_bench.runs.record import RunRecord, find_records, read_record
from dk_bench.sweep import runner
from dk_bench.tables.documents import build_documents, write_documents
from dk_bench.training import read_checkpoint
from dk_bench.training import run as training

CONFIG = """
name: kills
model: {drop_path_rate: 0.2}
wandb: {mode: disabled}
trainer: {accelerator: cpu, checkpoint_every_n_steps: 2}
optim: {lr: 0.05, epochs: 4, warmup_epochs: 1}
data:
  {size: 32, crop_pct: 1, workers: 0, batch_size: 8, procedural: {train_images: 42, val_images: 12, classes: 6}}
"""
SWEEP = {
    "name": "kills",
    "program": "dk-bench",
    "method": "grid",
    "parameters": {"model.name": {"values": ["test_resnetdw", "test_resnetdw_dk"]}, "seed": {"values": [0, 1]}},
}
RUNS = 4
WITNESS = "DK_BENCH_WITNESS"  # environment variable: the folder in which runs say what they do
VICTIMS = ("runner", "run", "runner and runs")
FULL = (1 << 9, 1 << 12, 1 << 16)  # bytes a file may have on a full disk: too few for a log, a record, a checkpoint
MOST_STARTS = 20  # of a sweep that nobody kills any more


def train_witnessed(arguments: list[str]) -> int:
    """``dk-bench train`` under the eyes of a witness that knows of no locks."""
    note("processes", this_process())
    with suppress(FileNotFoundError):  # the first run to start after that has a full disk
        limit = Path(os.environ[WITNESS], "full").rename(Path(os.environ[WITNESS], f"full.{os.getpid()}"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit.read_text()), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    fit = training.fit

    def witnessed(trainer: Any, module: Any, data: Any, keeper: Any, **more: Any) -> RunRecord:
        name = keeper.record_path.parent.name
        with alone(name):
            record = fit(trainer, module, data, keeper, **more)
            note(f"{name}.finished", this_process())
            return record

    training.fit = witnessed
    return dk_bench(arguments)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Says that this process trains a run, and tells of any other that has said so, not the end, and lives."""
    me = this_process()
    note(f"{name}.begun", me)
    ended = notes(f"{name}.ended")
    for other in notes(f"{name}.begun"):
        if other != me and other not in ended and not is_gone(other):
            note("doubles", [name, me, other])
    try:
        yield
    finally:
        note(f"{name}.ended", me)


def note(name: str, content: Any) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))  # the witness's disk is not full
    with open(Path(os.environ[WITNESS]) / name, "a") as stream:
        stream.write(json.dumps(content) + "\n")  # one write, which appending keeps whole
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def notes(name: str) -> list[Any]:
    path = Path(os.environ[WITNESS]) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Drill:
    """A grid in a folder of its own, and the processes that train it."""

    def __init__(self, folder: Path, *, fork: bool) -> None:
        self.output, self.fork = folder / "runs", fork
        self.output.mkdir(parents=True)
        (folder / "witness").mkdir()
        os.environ[WITNESS] = str(folder / "witness")
        (folder / "kills.yaml").write_text(CONFIG)
        run = [sys.executable, __file__, "run", "dk-bench", "train", str(folder / "kills.yaml")]
        content = SWEEP | {"command": [*run, f"output={self.output}", "${args_no_hyphens}"]}
        self.sweep = folder / "sweep.yaml"
        self.sweep.write_text(json.dumps(content))  # JSON is YAML
        self.log = folder / "runner.log"

    def start(self) -> Forked | subprocess.Popen:
        arguments = ["sweep", str(self.sweep), "--workers", "2", "--output", str(self.output)]
        with open(self.log, "ab") as log:
            if not self.fork:
                command = [sys.executable, "-m", "dk_bench", *arguments]
                return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            return Forked(lambda: forking_sweep(arguments), log, {})

    def live_runs(self) -> list[int]:
        if self.fork:
            return [process["pid"] for process in notes("processes") if not is_gone(process)]
        commands = Path("/proc").glob("[0-9]*/cmdline")  # also those that still import
        return [int(path.parent.name) for path in commands if self.is_run(path)]

    def is_run(self, path: Path) -> bool:
        try:
            return path.read_bytes().split(b"\0")[1:3] == [__file__.encode(), b"run"]
        except OSError:  # it has ended
            return False

    def records(self) -> dict[str, RunRecord]:
        """By the folder's name, which does not depend on the place of the output."""
        found = find_records([self.output])
        records = {path.parent.name: read_record(path) for path in found}
        assert len(records) == len(found), found
        return records

    def is_done(self) -> bool:
        return [record.status for record in self.records().values()] == ["finished"] * RUNS

    def finish(self) -> None:
        """Starts it until it is done: what was killed is for the next start."""
        for _ in range(MOST_STARTS):
            code = self.start().wait()
            if code == 0:
                return
            print(f"  a start ended with exit status {code}", flush=True)
        raise AssertionError(f"not done after {MOST_STARTS} starts, see {self.log}")

    def kill(self, most: int, chance: random.Random, pause: float) -> int:
        """Kills until it is done or ``most`` is reached, and returns how many kills there were."""
        process, kills = self.start(), 0
        while kills < most:
            wait = chance.uniform(0, pause)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                kills += 1
                victim = self.strike(process, chance)
                print(f"  kill {kills}: {victim} after {wait:.2f} s", flush=True)
                if kills % 4 == 0:
                    Path(os.environ[WITNESS], "full").write_text(str(chance.choice(FULL)))
                self.check_checkpoints()
            if process.poll() is not None:
                if self.is_done():
                    break
                process = self.start()
        else:
            process.wait()
        return kills

    def strike(self, process: Forked | subprocess.Popen, chance: random.Random) -> str:
        victim, runs = chance.choice(VICTIMS), self.live_runs()
        victim = victim if runs else "runner"
        struck = chance.sample(runs, min(1, len(runs))) if victim == "run" else runs
        for pid in struck if "run" in victim else []:
            with suppress(ProcessLookupError):  # it ended by itself just now
                os.kill(pid, signal.SIGKILL)
        if "runner" in victim:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        return f"{victim} ({len(runs)} runs alive)"

    def check_checkpoints(self) -> None:
        for path in self.output.glob("*/last.ckpt"):
            read_checkpoint(path)

    @contextmanager
    def read_all_the_while(self) -> Iterator[None]:
        """Another process reads every record, over and over; raises AssertionError if one could not be read."""
        stop, faults = self.output.with_name("stop"), self.output.with_name("faults")

        def read() -> int:
            rounds = 0
            while not stop.exists():
                for path in find_records([self.output]):
                    try:
                        read_record(path)
                    except UserError as error:
                        with open(faults, "a") as stream:
                            stream.write(f"{error}\n")
                rounds += 1
                time.sleep(0.01)
            print(f"records were read {rounds} times")
            return 0

        with open(self.log, "ab") as log:
            reader = Forked(read, log, {})
        try:
            yield
        finally:
            stop.touch()
            assert reader.wait() == 0, f"the reader failed, see {self.log}"
        assert not faults.exists(), faults.read_text()


def forking_sweep(arguments: list[str]) -> int:
    """`dk-bench sweep` whose runs are forked."""

    def launch(argv: list[str], log: IO[bytes], environment: dict[str, str]) -> Forked:
        return Forked(lambda: train_witnessed(argv[argv.index("dk-bench") + 1 :]), log, environment)

    runner.launch = launch
    return dk_bench(arguments)


def check(drill: Drill, whole: Drill, folder: Path) -> None:
    """Raises AssertionError unless a drill's grid ended as the one in peace."""
    assert not (double := notes("doubles")), f"trained twice at a time: {double}"
    assert not (left := [*drill.output.rglob("*.tmp")]), f"left over: {left}"
    records, expected = drill.records(), whole.records()
    assert drill.is_done() and records.keys() == expected.keys() and len(expected) == RUNS
    for name, record in records.items():
        assert len(notes(f"{name}.finished")) <= 1, f"{name} was trained to its end twice"
        assert figures(record) == figures(expected[name]), name
        ours, theirs = (read_checkpoint(d.output / name / "last.ckpt") for d in (drill, whole))
        assert ours["global_step"] == theirs["global_step"]
        weights, others = ours["state_dict"], theirs["state_dict"]
        assert weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights), name
    for part, some in (("killed", records), ("whole", expected)):
        timeless = [dataclasses.replace(record, throughput={}) for record in some.values()]
        write_documents(build_documents(timeless).values(), folder / part)
    tables = sorted(path.name for path in (folder / "whole").iterdir())
    assert tables and all((folder / "killed" / t).read_bytes() == (folder / "whole" / t).read_bytes() for t in tables)
    full = len([*drill.output.parent.glob("witness/full.*")])
    attempts = sum(len(record.attempts) for record in records.values())
    print(f"{RUNS} runs in {attempts} attempts, {full} on a full disk; {len(tables)} tables: all as in peace")


def figures(record: RunRecord) -> Any:
    """Reads what a run computed, without times."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in record.metrics["epochs"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fork", action="store_true")
    args = parser.parse_args()
    import wandb.sdk.launch.sweeps.utils  # noqa: F401  # once, in place of in every runner that is forked

    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = Drill(folder / "peace", fork=args.fork)
        began = time.monotonic()
        whole.finish()
        took = time.monotonic() - began
        print(f"in peace: {took:.1f} s", flush=True)
        left, number = args.kills, 0
        while left:
            number += 1
            drill = Drill(folder / f"kills{number}", fork=args.fork)
            with drill.read_all_the_while():
                left -= drill.kill(left, chance, pause=took / 4)
                drill.finish()
            check(drill, whole, folder / f"tables{number}")
    print(f"{args.kills} kills in {number} grids: nothing lost, nothing double, nothing half written")
    return 0


if __name__ == "__main__":
    sys.exit(train_witnessed(sys.argv[3:]) if sys.argv[1:2] == ["run"] else main())
