"""Shows a running sweep: one line for the whole, one for each run at work with the last line of its log."""

import contextlib
import math
import time
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from dk_bench.runs.heartbeat import read_beat, seconds_idle
from dk_bench.sweep.job import Job
from dk_bench.sweep.time_left import expected_seconds, seconds_of_all, words

STALLED_AFTER_SECONDS = 600.0  # of a run that has done no step; the longest that is usual is before the first one
LOOK_SECONDS = 5.0  # between looking how far runs are


class Shown:
    """A stream for display: a full disk, a closed terminal or a reader that is gone stops no run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class SweepProgress:
    """Live display of jobs; a context manager. `changed` is what `run_jobs` calls. Without a terminal: plain lines.

    A training run that has done no step for ``stalled_after`` seconds is named.
    """

    def __init__(
        self, jobs: list[Job], workers: int, console: Console, *, stalled_after: float = STALLED_AFTER_SECONDS
    ) -> None:
        self.jobs, self.workers, self.console, self.stalled_after = jobs, workers, console, stalled_after
        self.stalled: dict[int, str] = {}  # id of a running job, for names may be equal -> since when, in words
        self.looked = -math.inf
        # What does not fit goes from the log's line; a run's name, cut, would be another's.
        last = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        text = TextColumn("{task.fields[note]}", markup=False, table_column=last)
        name = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
        columns = (SpinnerColumn(), name, BarColumn(bar_width=10), MofNCompleteColumn(), TimeElapsedColumn(), text)
        self.progress = Progress(*columns, console=console, expand=True)
        self.whole = self.progress.add_task("runs", total=len(jobs), note="")
        self.lines: dict[int, int] = {}  # id of a running job -> its line

    def __enter__(self) -> Self:
        self.progress.__enter__()
        for job in self.jobs:
            if job.state in ("skipped", "stopped"):
                self._say(job, job.reason)
        self._refresh()
        return self

    def __exit__(self, *exception) -> None:
        self._refresh()
        self.progress.__exit__(*exception)

    def changed(self, job: Job | None) -> None:
        """Shows that a job has started or ended, or (None) that time went by."""
        if job is not None and job.state == "running":
            self.lines[id(job)] = self.progress.add_task(job.name, total=None, note="")
        elif job is not None:
            if id(job) in self.lines:
                self.progress.remove_task(self.lines.pop(id(job)))
                self.stalled.pop(id(job), None)
            self._tell(job)
        self._refresh()

    def _tell(self, job: Job) -> None:
        told = {"finished": f"{job.seconds:.0f} s", "elsewhere": "another process is at it"}
        told |= dict.fromkeys(("skipped", "stopped"), job.reason)
        if job.state in told:
            self._say(job, told[job.state])
        elif job.failures:  # failed, for good or to be run again
            again = ", will be run again" if job.state == "waiting" else ""
            self._say(job, f"{job.reason}, see {job.log}{again}", word="failed", style="red")

    def _say(self, job: Job, what: str, *, word: str | None = None, style: str | None = None) -> None:
        line = f"{word or job.state} {job.name}: {what}"
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def _look(self) -> None:
        """Finds running jobs that have done no step for long, and says so of each, once until it does one."""
        if time.monotonic() < self.looked + LOOK_SECONDS:
            return
        self.looked, now = time.monotonic(), time.time()
        for job in (job for job in self.jobs if job.state == "running" and job.run):
            idle = seconds_idle(read_beat(job.run.folder), now - (time.monotonic() - job.started), now)
            if idle <= self.stalled_after:
                self.stalled.pop(id(job), None)
                continue
            if id(job) not in self.stalled:
                self._say(job, f"no step in {words(idle)}, see {job.log}", word="stalled", style="yellow")
            self.stalled[id(job)] = f"no step in {words(idle)}: "

    def _refresh(self) -> None:
        self._look()
        for job in self.jobs:
            if job.state == "running":
                self.progress.update(self.lines[id(job)], note=self.stalled.get(id(job), "") + job.last_line())
        states = [job.state for job in self.jobs]
        ended = sum(job.has_ended for job in self.jobs)
        shown = ("running", "elsewhere", "failed", "stopped", "skipped")
        counts = [f"{states.count(state)} {state}" for state in shown if state in states]
        counts += [f"{len(self.stalled)} stalled"] if self.stalled else []
        left = _seconds_left(self.jobs, self.workers)
        if left is not None:
            counts.append(f"about {words(left)} left")
        self.progress.update(self.whole, completed=ended, description=", ".join(["runs", *counts]))


def _seconds_left(jobs: list[Job], workers: int) -> float | None:
    """Estimates by what runs of the same kind took, those that finished before too; None before one has finished, and
    when all have."""
    expected = expected_seconds((j.kind, j.seconds) for j in jobs if j.state in ("finished", "skipped") and j.seconds)
    here, elsewhere = ([job for job in jobs if job.state == state] for state in ("running", "elsewhere"))
    waiting = [expected(job.kind) for job in jobs if job.state == "waiting"]
    left = [(expected(job.kind), time.monotonic() - job.started) for job in here]
    left += [(whole, (whole or 0.0) / 2) for whole in (expected(job.kind) for job in elsewhere)]  # half done on average
    if not left + waiting or None in (*waiting, *(whole for whole, _ in left)):
        return None
    return seconds_of_all([whole - gone for whole, gone in left], waiting, workers + len(elsewhere))
