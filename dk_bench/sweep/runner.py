"""Runs a sweep's cells as processes of their own: some at a time, each with its GPU or its share of the cores, and its
own log. Training keeps other processes out of a run that it is at, so that any number of runners share a folder."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dk_bench.errors import BusyError
from dk_bench.processes.interrupts import deferred
from dk_bench.processes.launchers import without_launchers
from dk_bench.sweep.deadline import PATIENCE_SECONDS, Deadline
from dk_bench.sweep.runs import Run

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between looking whether a run that another process is at has ended
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Job:
    """One cell on its way: what to run, where its output goes, and how it went."""

    name: str
    argv: list[str]
    log: Path
    run: Run | None = None  # the training run that it is, if it is one
    state: str = "waiting"  # waiting, elsewhere (another process is at it), running, finished, failed, skipped
    reason: str = ""  # why it failed or was skipped
    failures: int = 0
    started: float = 0.0  # time.monotonic()
    seconds: float = 0.0  # how long it took, once it has ended
    process: subprocess.Popen | None = field(default=None, repr=False)
    looked: float = -math.inf  # time.monotonic() when it was last seen to be at another process
    cell: Mapping[str, Any] = field(default_factory=dict)  # the parameters of the sweep that it is for

    @property
    def has_ended(self) -> bool:
        return self.state in ("finished", "failed", "skipped")

    def last_line(self) -> str:
        """Returns the last line of output that says something, without terminal codes; empty before there is one."""
        try:
            with open(self.log, "rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 4096))
                tail = stream.read().decode(errors="replace")
        except OSError:  # not started, or the log could not be made
            return ""
        lines = (TERMINAL_CODES.sub("", line).strip() for line in re.split(r"[\r\n]", tail))
        return next((line for line in reversed([*lines]) if line), "")


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> list[str]:
    """Returns the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(n) for n in range(count)])[:count]


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    on_change: Callable[[Job | None], None] = lambda job: None,
    *,
    retries: int = 0,
    deadline: Deadline | None = None,
    is_ready: Callable[[Job], bool] = lambda job: True,
    starter: Callable[[list[str], IO[bytes], dict[str, str]], Any] | None = None,
) -> None:
    """Runs every waiting job, ``workers`` at a time, and sets state, reason and seconds of each.

    ``on_change`` is called with a job whenever its state changed and with None at every poll. A job that fails, also
    one that cannot be started, spoils itself alone; it is run again up to ``retries`` times, after all others. A job
    that another process is at is waited for: what that makes of it counts, and if it is cut off the job is run here.
    Stopped by an exception (Ctrl-C), the jobs under way are ended with all their processes before it is raised on. So
    are those that ``deadline`` overtakes; they and what would not end before it are left waiting. A job that is not
    ready yet, by ``is_ready``, lets others go first. ``starter`` takes the place of `launch`.
    """
    jobs, deadline, starter = list(jobs), deadline or Deadline(), starter or launch
    running: dict[int, Job] = {}  # by the worker's number
    environments = _environments(workers)

    def settle(job: Job) -> None:
        if job.state == "failed":
            job.failures += 1
            if job.failures <= retries:
                job.state = "waiting"
                if job.run:
                    job.run.know()
        on_change(job)

    try:
        while not (all(job.has_ended for job in jobs) or deadline.is_over()):
            startable = deadline.choose([j for j in jobs if j.state in ("waiting", "elsewhere")], jobs)
            if not startable and not running:
                break
            for job in sorted(filter(is_ready, startable), key=lambda j: j.failures):
                if len(running) == workers:
                    break
                if _take_up(job, running, environments, starter):
                    settle(job)
            time.sleep(POLL_SECONDS)
            for worker, job in [*running.items()]:
                if job.process.poll() is not None:
                    del running[worker]
                    _end(job)
                    settle(job)
            on_change(None)
    finally:
        _stop([*running.values()], deadline.patience)


def launch(argv: list[str], log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a cell. In a session of its own, so that stopping it reaches its data loaders too, and Ctrl-C reaches
    only us. Raises OSError where there is no such program."""
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
    )


def _environments(workers: int) -> list[dict[str, str]]:
    """Each worker's. Its cells find the commands of this interpreter's environment, activated or not; they have a share
    of the cores, or fewer where OMP_NUM_THREADS says so (on a machine with other work a thread too many costs a run
    more than one too few), and one GPU where there are any. A single worker's cells have what there is. None of them
    is a rank of the job that the sweep may be."""
    share, asked = max(1, available_cores() // workers), os.environ.get("OMP_NUM_THREADS", "")
    here = str(Path(sys.executable).parent)
    common = {
        **without_launchers(os.environ),
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": str(min(share, int(asked)) if asked.isdecimal() and int(asked) else share),
    }
    gpus = available_gpus() if workers > 1 else []
    return [common | ({"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}) for n in range(workers)]


def _take_up(job: Job, running: dict[int, Job], environments: list[dict[str, str]], starter: Callable) -> bool:
    """Starts a job on a worker that is free, unless others are at its run or have ended it. Says whether it changed."""
    before = job.state
    _look(job)
    if job.state == "waiting":
        worker = next(n for n in range(len(environments)) if n not in running)
        with deferred():  # a process that nobody knows of could not be stopped
            if _start(job, environments[worker], starter):
                running[worker] = job
    return job.state != before


def _look(job: Job) -> None:
    """Tells what others have made of a job's run: it is theirs, has ended, or is for us to start (``waiting``), and
    then no other runner's until it has ended."""
    if job.run is None or (job.state == "elsewhere" and time.monotonic() < job.looked + LOOK_SECONDS):
        return
    job.looked = time.monotonic()
    try:
        fate, why = job.run.look() if job.run.claim() else ("held", "")
    except OSError as error:
        job.run.release()
        job.state, job.reason = "failed", f"cannot be started: {error}"
        return
    if fate != "free":
        job.run.release()
    job.state = {"held": "elsewhere", "finished": "skipped", "failed": "failed", "free": "waiting"}[fate]
    job.reason = {"finished": "finished elsewhere", "failed": f"elsewhere: {why}"}.get(fate, job.reason)


def _start(job: Job, environment: dict[str, str], starter: Callable) -> bool:
    """Tells whether the job runs now; otherwise it failed."""
    job.started = time.monotonic()
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            log.write(f"$ {shlex.join(job.argv)}\n".encode())
            log.flush()
            job.process = starter(job.argv, log, environment)
    except (OSError, ValueError) as error:  # ValueError: an argument with a zero byte
        if job.run:
            job.run.release()
        job.state, job.reason = "failed", f"cannot be started: {error}"
        return False
    job.state = "running"
    return True


def _end(job: Job) -> None:
    if job.run:
        job.run.release()
    job.seconds = time.monotonic() - job.started
    code = job.process.returncode
    if code == BusyError.status and job.run:  # another process was quicker
        job.state, job.looked = "elsewhere", -math.inf
        return
    ended = f"exit status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    if job.run is None:
        job.state, job.reason = ("failed", ended) if code else ("finished", "")
    elif (record := job.run.record()) and record.status == "finished":
        # That is what tables and the next start go by; what came after it, as telling W&B, may have failed.
        job.state, job.reason = "finished", f"{ended}, but its record is finished" if code else ""
    else:
        error = f": {record.error}" if record and record.error else ""
        says = f"its record says {record.status}{error}" if record else "it left no record"
        job.state, job.reason = "failed", ended if code else f"{ended}, but {says}"


def _stop(running: list[Job], patience: float = PATIENCE_SECONDS) -> None:
    """Asks, waits, then kills; whole process groups. Another Ctrl-C while it waits kills at once."""
    left = [job for job in running if job.process.poll() is None]
    if left:
        with contextlib.suppress(OSError):  # the disk that it goes to may be full
            print(f"stopping {len(left)} cells, up to {patience:.0f} s; Ctrl-C kills them", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        left = [job for job in running if job.process.poll() is None]
        for job in left:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                os.killpg(job.process.pid, number)
        with contextlib.suppress(KeyboardInterrupt):
            for job in left:
                with contextlib.suppress(subprocess.TimeoutExpired):  # the next signal is SIGKILL
                    job.process.wait(max(0.0, deadline - time.monotonic()))
    for job in running:
        if job.run:
            job.run.release()
        job.state, job.reason = "waiting", "stopped"
