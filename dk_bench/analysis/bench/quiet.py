"""Watches how quiet a machine is while something is timed on it."""

from __future__ import annotations

import os
import time

LOAD_MARGIN = 0.25  # of the load average, what a system does beside any program
LEAST_CPU_SHARE = 0.97


class Watch:
    """How quiet the machine is from here to `finish`: the load average, and the share of the time that this process
    had a core. A machine without a load average has None."""

    def __init__(self) -> None:
        self.load, self.wall, self.cpu = _load(), time.perf_counter(), time.process_time()

    def finish(self) -> dict[str, float | None]:
        """Returns load averages over a minute at start and end, and this process's processor seconds by the clock's."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"load_start": self.load, "load_end": _load(), "cpu_share": cpu / wall}


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def disturbances(watched: dict[str, float | None], threads: int) -> list[str]:
    """Tells, a sentence each, what in the answer of `Watch.finish` says that others were at work on the machine."""
    said = []
    for moment in ("start", "end"):
        load = watched[f"load_{moment}"]
        if load is not None and load > threads + LOAD_MARGIN:
            said.append(f"the load average at the {moment} was {load:.2f}, with {threads} thread(s) in use here")
    share = watched["cpu_share"]
    if threads == 1 and share < LEAST_CPU_SHARE:
        said.append(f"this process had a core for {100 * share:.0f} % of the time")
    return said
