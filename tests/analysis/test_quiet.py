"""When a machine counts as disturbed while something is timed on it."""

from __future__ import annotations

import pytest

from dk_bench.analysis.bench import recording
from dk_bench.analysis.bench.recording import Watch, disturbances


@pytest.mark.parametrize(
    ("watched", "busy", "said"),
    [
        ((0.4, 1.1, 1.0), (1,), []),
        ((None, None, 0.99), (1,), []),
        ((1.9, 1.1, 1.0), (1,), ["the load average at the start was 1.90, with 1 thread(s) in use here"]),
        ((1.9, 2.1, 0.5), (2,), []),
        ((0.4, 2.8, 0.5), (2,), ["the load average at the end was 2.80, with 2 thread(s) in use here"]),
        ((0.4, 1.0, 0.714), (1,), ["this process had a core for 71 % of the time"]),
        ((0.4, 2.0, 0.53), (1, 1), []),  # it waits for its worker
        ((0.4, 2.8, 0.53), (1, 1), ["the load average at the end was 2.80, with 2 thread(s) in use here"]),
    ],
)
def test_disturbances(watched, busy, said):
    assert disturbances(dict(zip(("load_start", "load_end", "cpu_share"), watched, strict=True)), *busy) == said


def test_watch_sees_a_process_that_waits(monkeypatch):
    seconds = iter([10.0, 20.0])
    monkeypatch.setattr(recording.time, "perf_counter", lambda: next(seconds))
    processor = iter([3.0, 7.0])
    monkeypatch.setattr(recording.time, "process_time", lambda: next(processor))
    assert Watch().finish()["cpu_share"] == pytest.approx(0.4)


def test_a_system_without_a_load_average(monkeypatch):
    monkeypatch.delattr(recording.os, "getloadavg")
    watched = Watch().finish()
    assert watched["load_start"] is None and watched["load_end"] is None
