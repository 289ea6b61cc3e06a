"""Stops a sweep's runs early: reads the records of all of them, whoever trains them, and names those of ours that
hyperband.py says are to stop. Several runners of one folder each stop their own."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from dk_bench.sweep.hyperband import history_of
from dk_bench.sweep.job import Job
from dk_bench.sweep.record_cache import RecordCache

LOOK_SECONDS = 2.0  # between looking into the records


class EarlyTermination:
    """Goes by the key ``early_terminate`` of each sweep file on its own: its jobs are compared with one another."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.records, self.looked = RecordCache(), float("-inf")
        self.sweeps: dict[int, list[Job]] = defaultdict(list)  # by the object that is a file's
        for job in jobs:
            if job.early and job.run:
                self.sweeps[id(job.early)].append(job)

    def due(self) -> Iterator[tuple[Job, str]]:
        """Yields the running jobs that are to stop now, each with the reason; nothing where it looked just before."""
        if not self.sweeps or time.monotonic() < self.looked + LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        for jobs in self.sweeps.values():
            if any(job.state == "running" for job in jobs):
                yield from self._due(jobs)

    def _due(self, jobs: list[Job]) -> Iterator[tuple[Job, str]]:
        early, histories, judged = jobs[0].early, {}, []
        for job in jobs:
            record = self.records.read(job.run.folder / "record.json")
            if record is not None and record.task == job.run.task:
                histories[id(job)] = history_of(early.metric, record.metrics["epochs"])
                if job.state == "running" and not job.stopping and job.run.is_judged(record):
                    judged.append(job)
        for job in judged:
            if why := early.why_stop(histories[id(job)], list(histories.values())):
                yield job, why
