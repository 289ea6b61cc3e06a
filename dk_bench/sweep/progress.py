"""Shows a running sweep: one line for the whole, one for each run at work with the last line of its log."""

import contextlib
import statistics
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from dk_bench.sweep.job import Job


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
    """Live display of jobs; a context manager. `changed` is what `run_jobs` calls. Without a terminal: plain lines."""

    def __init__(self, jobs: list[Job], workers: int, console: Console) -> None:
        self.jobs, self.workers, self.console = jobs, workers, console
        # What does not fit goes from the log's line; a run's name, cut, would be another's.
        last = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        text = TextColumn("{task.fields[note]}", markup=False, table_column=last)
        name = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
        columns = (SpinnerColumn(), name, BarColumn(bar_width=10), MofNCompleteColumn(), TimeElapsedColumn(), text)
        self.progress = Progress(*columns, console=console, expand=True)
        self.whole = self.progress.add_task("runs", total=len(jobs), note="")
        self.lines: dict[str, int] = {}  # running job -> its line

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
            self.lines[job.name] = self.progress.add_task(job.name, total=None, note="")
        elif job is not None:
            if job.name in self.lines:
                self.progress.remove_task(self.lines.pop(job.name))
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

    def _refresh(self) -> None:
        for job in self.jobs:
            if job.state == "running":
                self.progress.update(self.lines[job.name], note=job.last_line())
        states = [job.state for job in self.jobs]
        ended = sum(job.has_ended for job in self.jobs)
        shown = ("running", "elsewhere", "failed", "stopped", "skipped")
        counts = [f"{states.count(state)} {state}" for state in shown if state in states]
        left = _seconds_left(self.jobs, self.workers)
        if left is not None:
            counts.append(f"about {max(1, round(left / 60))} min left" if left >= 60 else f"about {left:.0f} s left")
        self.progress.update(self.whole, completed=ended, description=", ".join(["runs", *counts]))


def _seconds_left(jobs: list[Job], workers: int) -> float | None:
    """Estimates by the mean time of those that ended; None before one has, and when all have."""
    took = [job.seconds for job in jobs if job.has_ended and job.seconds]
    waiting = sum(job.state in ("waiting", "elsewhere") for job in jobs)
    running = sum(job.state == "running" for job in jobs)
    if not took or not waiting + running:
        return None
    # Those that run are half done on average.
    return statistics.fmean(took) * (waiting + running / 2) / min(workers, waiting + running)
