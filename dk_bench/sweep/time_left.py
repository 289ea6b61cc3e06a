"""How long the rest of a sweep takes, as what of it has finished took."""

import heapq
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime

from dk_bench.runs.record import RunRecord


def expected_seconds(finished: Iterable[tuple[str, float]]) -> Callable[[str], float | None]:
    """Returns what tells how long a run of a kind takes, from the (kind, seconds) of those that have finished: the mean
    of its kind; of a kind that none has finished of, the mean of all kinds'; None before any has finished."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in finished:
        by_kind[kind].append(seconds)
    means = {kind: statistics.fmean(several) for kind, several in by_kind.items()}
    of_all = statistics.fmean(means.values()) if means else None
    return lambda kind: means.get(kind, of_all)


def seconds_of_all(running: Iterable[float], waiting: Iterable[float], workers: int) -> float:
    """Estimates when the last run ends, in seconds from now, if ``workers`` at a time go on: those that run have so
    many seconds to go, those that wait take so many each, in their order, as soon as one is free."""
    free_in = [max(0.0, left) for left in running]
    free_in += [0.0] * (max(workers, 1) - len(free_in))
    heapq.heapify(free_in)
    for seconds in waiting:
        heapq.heappush(free_in, heapq.heappop(free_in) + seconds)
    return max(free_in)


def seconds_taken(record: RunRecord) -> float | None:
    """Tells how long the run of a record worked, all attempts together, as far as the record tells."""
    if len(record.attempts) == 1 and record.ended:
        return _moment(record.ended) - _moment(record.started)
    return seconds_trained(record) or None


def seconds_trained(record: RunRecord) -> float:
    """Adds up the seconds of a record's epochs, as far as they are known."""
    seconds = [epoch.get("seconds") for epoch in record.metrics["epochs"]]
    return sum(each for each in seconds if each)


def words(seconds: float) -> str:
    """Puts a duration into words: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
