"""A sweep's end on the clock: what may still start, by how long runs like it took."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

from dk_bench.sweep.job import Job

# Between asking a process to stop and killing it: training finishes its step, ends its data loaders and writes its
# record, which takes long on cores that are shared. A process that is killed leaves a record that says running.
PATIENCE_SECONDS = 60.0
SEED = re.compile(r"-*seed=")  # how the argument begins that a run's seed is given by


class Deadline:
    """Runs start only where they would end ``seconds`` from now on or earlier; None: there is no end. What still runs
    then is given ``patience`` seconds to stop.

    How long a run takes is told by those of its kind that have finished, whose commands differ from its own in the
    seed alone, by the longest of them; without one, by the longest of all; before any has finished, all may start.
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
            if job.state == "finished":
                longest[_kind(job)] = max(job.seconds, longest.get(_kind(job), 0.0))
        left, of_all = self.end - time.monotonic(), max(longest.values(), default=0.0)
        return [job for job in candidates if longest.get(_kind(job), of_all) < left]


def _kind(job: Job) -> str:
    return " ".join(part for part in job.argv if not SEED.match(part))
