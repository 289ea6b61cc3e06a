"""Runs a sweep's cells as processes of their own: some at a time, each with its share of the cores and its own log."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.1
# Between asking a process to stop and killing it: training finishes its step, ends its data loaders and writes its
# record, which takes long on cores that are shared. A process that is killed leaves a record that says running.
PATIENCE_SECONDS = 60.0
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Job:
    """One cell on its way: what to run, where its output goes, and how it went."""

    name: str
    argv: list[str]
    log: Path
    state: str = "waiting"  # waiting, running, finished, failed, skipped
    reason: str = ""  # why it failed
    started: float = 0.0  # time.monotonic()
    seconds: float = 0.0  # how long it took, once it has ended
    process: subprocess.Popen | None = field(default=None, repr=False)

    def last_line(self) -> str:
        """The last line of output that says something, without terminal codes; empty before there is one."""
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


def run_jobs(jobs: Iterable[Job], workers: int, on_change: Callable[[Job | None], None] = lambda job: None) -> None:
    """Runs every waiting job, ``workers`` at a time, and sets state, reason and seconds of each.

    ``on_change`` is called with a job whenever its state changed and with None at every poll. A job that fails, also
    one that cannot be started, spoils itself alone. Stopped by an exception (Ctrl-C), the jobs under way are ended with
    all their processes before it is raised on.
    """
    waiting = [job for job in jobs if job.state == "waiting"]
    running: list[Job] = []
    environment = _environment(workers)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                _start(job, environment)
                on_change(job)
                running += [job] if job.state == "running" else []
            time.sleep(POLL_SECONDS)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                _end(job)
                on_change(job)
            on_change(None)
    finally:
        _stop(running)


def _environment(workers: int) -> dict[str, str]:
    """The children find the commands of this interpreter's environment, activated or not, and share the cores."""
    here = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": str(max(1, available_cores() // workers)),
    }


def _start(job: Job, environment: dict[str, str]) -> None:
    job.started = time.monotonic()
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            log.write(f"$ {shlex.join(job.argv)}\n".encode())
            log.flush()
            # A session of its own, so that stopping it reaches its data loaders too, and Ctrl-C reaches only us.
            job.process = subprocess.Popen(
                job.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
    except OSError as error:
        job.state, job.reason = "failed", f"cannot be started: {error}"
    else:
        job.state = "running"


def _end(job: Job) -> None:
    job.seconds = time.monotonic() - job.started
    code = job.process.returncode
    job.state = "finished" if code == 0 else "failed"
    if code:
        job.reason = f"exit status {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"


def _stop(running: list[Job]) -> None:
    """Asks, waits, then kills; whole process groups. Another Ctrl-C while it waits kills at once."""
    left = [job for job in running if job.process.poll() is None]
    if left:
        print(f"stopping {len(left)} cells, up to {PATIENCE_SECONDS:.0f} s; Ctrl-C kills them", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE_SECONDS
        left = [job for job in running if job.process.poll() is None]
        for job in left:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                os.killpg(job.process.pid, number)
        with contextlib.suppress(KeyboardInterrupt):
            for job in left:
                with contextlib.suppress(subprocess.TimeoutExpired):  # the next signal is SIGKILL
                    job.process.wait(max(0.0, deadline - time.monotonic()))
    for job in running:
        job.state, job.reason = "failed", "stopped"
