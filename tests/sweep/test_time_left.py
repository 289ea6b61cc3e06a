"""Time left, from runs of the same kind that have finished."""

import dataclasses

import pytest
from rich.console import Console

from dk_bench.runs.record import new_record
from dk_bench.sweep import progress
from dk_bench.sweep.job import Job
from dk_bench.sweep.time_left import expected_seconds, seconds_of_all, seconds_taken, words


def test_kinds_take_their_own_mean_and_others_that_of_all():
    expected = expected_seconds([("a", 10.0), ("a", 20.0), ("b", 105.0)])
    assert [expected(kind) for kind in "abc"] == [15.0, 105.0, 60.0]
    assert expected_seconds([])("a") is None


@pytest.mark.parametrize(
    ("running", "waiting", "workers", "seconds"),
    [
        ([5.0], [], 1, 5.0),
        ([5.0], [10.0, 10.0], 1, 25.0),
        ([5.0, 20.0], [10.0, 10.0], 2, 25.0),
        ([], [10.0, 10.0, 10.0], 2, 20.0),
        ([-3.0], [10.0], 1, 10.0),  # longer than expected
        ([100.0, 1.0, 1.0], [1.0], 2, 100.0),  # another runner's too
    ],
)
def test_rest_is_laid_out_on_the_workers(running, waiting, workers, seconds):
    assert seconds_of_all(running, waiting, workers) == seconds


def test_sweep_goes_by_the_kinds_of_what_is_left(tmp_path, monkeypatch):
    """Not by the mean of those that ended, which is that of short runs here."""

    def job(model, seed, **more):
        return Job(f"{model}{seed}", ["train", f"model={model}", f"seed={seed}"], tmp_path / "log", **more)

    clock = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    jobs = [job("small", n, state="finished", seconds=10.0) for n in range(8)]
    jobs += [job("large", 0, state="skipped", seconds=500.0), job("large", 1, state="running", started=clock - 100)]
    assert progress._seconds_left(jobs, 1) == 400.0
    assert progress._seconds_left([*jobs, job("large", 2), job("small", 9)], 1) == 910.0
    assert progress._seconds_left([*jobs, job("large", 2), job("small", 9)], 2) == 500.0
    assert progress._seconds_left([*jobs, job("large", 2, state="elsewhere")], 1) == 400.0
    assert progress._seconds_left([job("new", 0), job("failed", 0, state="failed", seconds=1.0)], 1) is None
    assert progress._seconds_left(jobs[:9], 1) is None


def test_record_tells_what_its_run_took():
    record = new_record(name="a", config={}, model={"name": "m"}, data={"name": "d"}, seed=0, device="cpu")
    assert seconds_taken(record) is None
    record.metrics["epochs"] = [{"seconds": 2.5}, {"seconds": None}, {"seconds": 3.0}]
    assert seconds_taken(record) == 5.5
    record.started, record.ended = "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:05+00:00"
    assert seconds_taken(record) == 3605.0
    # What lies between attempts is no work.
    assert seconds_taken(dataclasses.replace(record, attempts=record.attempts * 2)) == 5.5


@pytest.mark.parametrize(("seconds", "text"), [(9.6, "10 s"), (90, "2 min"), (7000, "117 min"), (9000, "2.5 h")])
def test_durations_in_words(seconds, text):
    assert words(seconds) == text


def test_sweep_shows_it(tmp_path):
    """What is shown of a sweep names the time left."""
    jobs = [
        Job("a", ["x", "seed=0"], tmp_path / "a.log", state="finished", seconds=90.0),
        Job("b", ["x", "seed=1"], tmp_path / "b.log"),
    ]
    console = Console(record=True, width=100, force_terminal=False)
    with progress.SweepProgress(jobs, 1, console):
        pass
    assert "runs, about 2 min left" in console.export_text()
