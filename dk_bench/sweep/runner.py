"""Starts a sweep's runs as processes of their own: some at a time, each with its GPU or its share of the cores, and its
own log. Training keeps other processes out of a run that it is at, so that any number of runners share a folder."""

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from dk_bench.processes import requeue
from dk_bench.processes.groups import apart, ask_to_stop, end
from dk_bench.processes.interrupts import deferred
from dk_bench.processes.launchers import without_launchers
from dk_bench.runs.early_stop import leave_reason
from dk_bench.sweep.budget import FailureBudget
from dk_bench.sweep.job import Job, Starter

POLL_SECONDS = 0.1
# Between asking a process to stop and killing it: training finishes its step, ends its data loaders and writes its
# record, which takes long on cores that are shared. A process that is killed leaves a record that says running.
PATIENCE_SECONDS = 60.0


class Deadline:
    """Runs start only where they would end ``seconds`` from now on or earlier; None: there is no end. What still runs
    then is given ``patience`` seconds to stop.

    How long a run takes is told by those of its kind that have finished, now or before, whose commands differ from its
    own in the seed alone, by the longest of them; without one, by the longest of all; before any has finished, all may
    start. A run that goes on from a checkpoint is spared the seconds of its epochs so far.
    """

    def __init__(self, seconds: float | None = None, *, patience: float = PATIENCE_SECONDS) -> None:
        self.end = math.inf if seconds is None else time.monotonic() + seconds
        self.patience = patience

    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def choose(self, candidates: Sequence[Job], jobs: Sequence[Job]) -> list[Job]:
        """Returns those of the candidates that would end in time if they started now."""
        if self.end == math.inf:
            return list(candidates)
        longest: dict[str, float] = {}
        for job in jobs:
            if job.state in ("finished", "skipped") and job.seconds:  # where a record tells how long it took
                longest[job.kind] = max(job.seconds, longest.get(job.kind, 0.0))
        left, of_all = self.end - time.monotonic(), max(longest.values(), default=0.0)
        return [job for job in candidates if longest.get(job.kind, of_all) - (job.run.spared if job.run else 0) < left]


def available_cores() -> int:
    """Counts the cores that this process may use."""
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
    budget: FailureBudget | None = None,
    is_ready: Callable[[Job], bool] = lambda job: True,
    due_to_stop: Callable[[], Iterable[tuple[Job, str]]] = tuple,
    starter: Starter | None = None,
) -> None:
    """Starts every waiting job, ``workers`` at a time, and sets state, reason and seconds of each.

    ``on_change`` is called with a job whenever its state changed and with None at every poll. A job that fails, also
    one that cannot be started, spoils itself alone; it is run again up to ``retries`` times, after all others. A job
    that another process is at is waited for: what that makes of it counts, and if it is cut off the job is run here.
    Stopped by an exception (Ctrl-C), the jobs under way are ended with all their processes before it is raised on. So
    are those that ``deadline`` overtakes, and all once the ``budget`` is spent; they and what would not end before the
    deadline are left waiting. A job that is not ready yet, by ``is_ready``, lets others go first. Running jobs that
    ``due_to_stop`` yields, at every poll, are asked to stop early, for the reason that it gives. ``starter`` takes the
    place of `launch`.
    """
    jobs, deadline, budget = list(jobs), deadline or Deadline(), budget or FailureBudget(0)
    at_work = _Workers(workers, starter or launch)

    def settle(job: Job) -> None:
        if job.state == "failed":
            job.fail(retries)
        on_change(job)

    try:
        while not (all(job.has_ended for job in jobs) or deadline.is_over() or budget.is_spent(jobs)):
            startable = deadline.choose([j for j in jobs if j.state in ("waiting", "elsewhere")], jobs)
            if not startable and not at_work.jobs:
                break
            for job in sorted(filter(is_ready, startable), key=lambda j: j.failures):
                if len(at_work.jobs) == workers:
                    break
                if at_work.take_up(job):
                    settle(job)
            time.sleep(POLL_SECONDS)
            for job, why in due_to_stop():
                at_work.stop_early(job, why)
            for job in at_work.ended():
                settle(job)
            on_change(None)
    finally:
        _stop([*at_work.jobs.values()], deadline.patience)


def launch(argv: list[str], log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a run, apart from us. Raises OSError where there is no such program."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **apart())


class _Workers:
    """A number of workers, each with an environment and at most one job."""

    def __init__(self, count: int, starter: Starter) -> None:
        self.starter, self.environments = starter, _environments(count)
        self.jobs: dict[int, Job] = {}  # by the worker's number

    def take_up(self, job: Job) -> bool:
        """Starts a job on a free worker, unless others are at its run or have ended it; tells whether it changed."""
        before = job.state
        job.look()
        if job.state == "waiting":
            worker = next(n for n in range(len(self.environments)) if n not in self.jobs)
            with deferred():  # a process that nobody knows of could not be stopped
                if job.start(self.starter, self.environments[worker]):
                    self.jobs[worker] = job
        return job.state != before

    def stop_early(self, job: Job, why: str) -> None:
        """Asks a job to stop; it has `PATIENCE_SECONDS`."""
        job.stopping, job.kill_at = why, time.monotonic() + PATIENCE_SECONDS
        if job.run:
            leave_reason(job.run.folder, why)
        ask_to_stop(job.process)

    def ended(self) -> Iterable[Job]:
        """Yields the jobs whose processes have ended, with their new states."""
        for worker, job in [*self.jobs.items()]:
            if time.monotonic() > job.kill_at:
                end(job.process)
            if job.process.poll() is not None:
                del self.jobs[worker]
                job.end()
                yield job


def _environments(workers: int) -> list[dict[str, str]]:
    """Returns the environment of each worker. Its runs find the commands of this interpreter's environment, activated
    or not; they have a share of the cores, or fewer where OMP_NUM_THREADS says so (on a machine with other work a
    thread too many costs a run more than one too few), and one GPU where there are any. A single worker's runs have
    what there is. None of them is a rank of the job that the sweep may be, nor puts that back into the queue."""
    share, asked = max(1, available_cores() // workers), os.environ.get("OMP_NUM_THREADS", "")
    here = str(Path(sys.executable).parent)
    common = {
        **without_launchers(os.environ),
        **requeue.OFF,
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": str(min(share, int(asked)) if asked.isdecimal() and int(asked) else share),
    }
    gpus = available_gpus() if workers > 1 else []
    return [common | ({"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}) for n in range(workers)]


def _stop(running: list[Job], patience: float = PATIENCE_SECONDS) -> None:
    """Asks, waits, then kills; whole process groups. Another Ctrl-C while it waits kills at once."""
    left = [job for job in running if job.process.poll() is None]
    if left:
        with contextlib.suppress(OSError):  # the disk that it goes to may be full
            print(f"stopping {len(left)} runs, up to {patience:.0f} s; Ctrl-C kills them", file=sys.stderr)
    for stop in (ask_to_stop, end):
        deadline = time.monotonic() + patience
        left = [job for job in running if job.process.poll() is None]
        for job in left:
            stop(job.process)
        with contextlib.suppress(KeyboardInterrupt):
            for job in left:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it is ended next
                    job.process.wait(max(0.0, deadline - time.monotonic()))
    for job in running:
        job.release()
        job.state, job.reason = "waiting", "stopped"
