"""When a sweep gives up: the first of its runs all failed, so that the rest would too."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Self

from dk_bench.sweep.job import Job

LEAST = 4  # runs that fail before a sweep gives up, unless it says how many


class FailureBudget:
    """Is spent once ``most`` runs have failed and none has finished, now or before, here or elsewhere; 0: never. A run
    that failed several times, by retries, counts once."""

    def __init__(self, most: int) -> None:
        self.most = most

    @classmethod
    def of(cls, asked: int | None, workers: int) -> Self:
        """Returns what was asked for, or by default one more than run at a time, and no less than `LEAST`: as many as
        start together may fail together by what will be gone in a moment."""
        return cls(max(LEAST, workers + 1) if asked is None else asked)

    def is_spent(self, jobs: Sequence[Job]) -> bool:
        """Tells whether that is so now."""
        if not self.most or any(job.state in ("finished", "skipped", "stopped") for job in jobs):
            return False
        return sum(job.failures > 0 for job in jobs) >= self.most


def alike_failed(jobs: Sequence[Job]) -> list[Job]:
    """Returns those of some failed jobs that failed for the commonest reason. Reasons that differ in numbers alone are
    one."""
    reasons = [_without_numbers(why(job)) for job in jobs]
    commonest = Counter(reasons).most_common(1)[0][0]
    return [job for job, reason in zip(jobs, reasons, strict=True) if reason == commonest]


def why(job: Job) -> str:
    """Tells why a job failed: its reason, and the last line of its log."""
    said = f": {line}" if (line := job.last_line()) else ""
    return f"{job.reason}{said}"


def _without_numbers(text: str) -> str:
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", text)
