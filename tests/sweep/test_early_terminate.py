"""Key early_terminate: W&B's bands and decisions, and runs that the runner stops by them."""

from __future__ import annotations

import dataclasses
import random
import time
import warnings
from pathlib import Path

import pytest
import yaml
from forked import Forked

with warnings.catch_warnings(action="ignore"):  # pydantic's, of how the package is written
    from sweeps.hyperband_stopping import hyperband_stop_runs
    from sweeps.run import RunState, SweepRun

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.processes.interrupts import Interrupted, interrupts
from dk_bench.runs.attempts import STALE
from dk_bench.runs.record import attempts_of, new_record, read_record, utc_now, write_record
from dk_bench.sweep import early, runner
from dk_bench.sweep.early import EarlyTermination
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.hyperband import Hyperband, history_of
from dk_bench.sweep.job import task_in
from dk_bench.sweep.listing import make_jobs, skip_finished
from dk_bench.sweep.runner import run_jobs
from dk_bench.tables.cells import gather

SETTINGS = [
    {"min_iter": 1},
    {"min_iter": 2, "eta": 2},
    {"min_iter": 3, "eta": 1.5, "strict": False},
    {"max_iter": 27, "s": 3},
    {"max_iter": 20, "s": 2, "eta": 2.5, "strict": True},
    {"max_iter": 10, "s": 99, "eta": 1.6, "strict": False},
    {"min_iter": 4, "max_iter": 9, "s": 1, "eta": 3},
]
NOT_LOGGED = [None, float("nan"), float("inf"), "a"]


@pytest.mark.parametrize("goal", ["minimize", "maximize", None])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_bands_and_decisions_are_wandbs(settings, goal):
    """On random histories, in which epochs without a number of the metric are no iterations."""
    generator, stopped, judged = random.Random(f"{settings} {goal}"), 0, 0
    settings, metric = {"type": "hyperband", **settings}, {"name": "m", **({"goal": goal} if goal else {})}
    ours = Hyperband.read(settings, metric)
    config = {"method": "random", "parameters": {"a": {"value": 1}}, "metric": metric, "early_terminate": settings}
    for _ in range(60):
        runs = []
        for number in range(generator.randint(1, 9)):
            level, length = generator.gauss(0, 3), generator.randint(0, generator.choice([3, 12, 40]))
            values = [round(generator.gauss(level, 1), 1) for _ in range(length)]
            epochs = [{"m": value, "other": 1} for value in values]
            for _ in range(generator.randint(0, 5)):
                epochs.insert(generator.randint(0, len(epochs)), {"m": generator.choice(NOT_LOGGED)})
            state = generator.choice([RunState.running, RunState.running, RunState.finished, RunState.crashed])
            runs.append(SweepRun(name=str(number), state=state, history=epochs))
        theirs = {run.name for run in hyperband_stop_runs(runs, config)}
        histories = [history_of("m", run.history) for run in runs]
        running = [(run, each) for run, each in zip(runs, histories, strict=True) if run.state == "running"]
        assert {run.name for run, each in running if ours.why_stop(each, histories)} == theirs
        stopped, judged = stopped + len(theirs), judged + len(running)
        for run, _ in running:  # the package tells which they are
            assert tuple(run.early_terminate_info["bands"]) == ours.bands
            thresholds = [-t if goal == "maximize" else t for t in run.early_terminate_info["thresholds"]]
            assert thresholds == [ours.threshold(band, histories) for band in ours.bands]
    assert 0 < stopped < judged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("hyperband", "'early_terminate' is 'hyperband', expected type: hyperband with"),
        ({"type": "median", "min_iter": 1}, "'early_terminate.type' is 'median', expected hyperband"),
        ({"min_iter": 1}, "'early_terminate.type' is None, expected hyperband"),
        ({"type": "hyperband"}, "expected min_iter, or max_iter and s"),
        ({"type": "hyperband", "max_iter": 9}, "'early_terminate.s': expected the number of bands, which max_iter"),
        ({"type": "hyperband", "max_iter": 2, "s": 3}, "'early_terminate.max_iter' is 2, expected at least eta, 3"),
        ({"type": "hyperband", "min_iter": 0}, "'early_terminate.min_iter' is 0, expected a positive integer"),
        ({"type": "hyperband", "min_iter": 1.5}, "'early_terminate.min_iter' is 1.5, expected a positive integer"),
        ({"type": "hyperband", "min_iter": 1, "eta": 1}, "'early_terminate.eta' is 1, expected a number above 1"),
        ({"type": "hyperband", "min_iter": 1, "strict": "yes"}, "'early_terminate.strict' is 'yes', expected true or"),
        ({"type": "hyperband", "min_iter": 1, "band": 2}, "unknown key 'early_terminate.band'"),
    ],
)
def test_fault_names_file_and_key(tmp_path, settings, message):
    path = write_sweep(tmp_path, early_terminate=settings)
    with pytest.raises(UserError, match=message) as error:
        read_sweep(path)
    assert str(path) in str(error.value)


def test_what_no_record_tells_is_refused(tmp_path, capsys):
    path = write_sweep(tmp_path, metric={"name": "val/top2"})
    assert main(["sweep", str(path), "--dry-run"]) == 2
    assert "key 'metric.name' is 'val/top2', which seed=0 has not; expected one of train/loss, val/" in (
        capsys.readouterr().err
    )
    path = write_sweep(tmp_path, command=["python", "mine.py", "${args}"])
    assert main(["sweep", str(path), "--dry-run"]) == 2
    assert (
        "early_terminate goes by the records of `dk-bench train`, and 'python' writes none" in capsys.readouterr().err
    )
    path = write_sweep(tmp_path, metric=None)
    assert main(["sweep", str(path), "--dry-run"]) == 2
    assert "key 'metric' is missing, which early_terminate goes by" in capsys.readouterr().err


def write_sweep(folder: Path, **more) -> Path:
    (folder / "c.yaml").write_text("name: swept\n")
    content = {
        "method": "grid",
        "command": ["dk-bench", "train", str(folder / "c.yaml"), "${args_no_hyphens}"],
        "metric": {"name": "val/top1", "goal": "maximize"},
        "early_terminate": {"type": "hyperband", "min_iter": 2},
        "parameters": {"seed": {"values": [0, 1, 2]}, "output": {"value": str(folder / "out")}},
    }
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump(content | more))
    return path


def train(argv: list[str]) -> int:
    """What training does to its record, but for what it computes: seed 0 finishes, seed 2 fails, and seed 1, worse than
    both, trains until it is asked to stop. Going on, it imports for longer than the runner's poll."""
    task = task_in(argv)
    seed, path = task.run.seed, task.folder / "record.json"
    record = begun(task, [])
    if path.exists():
        time.sleep(3 * runner.POLL_SECONDS)
        record = begun(task, attempts_of(read_record(path)))
    try:
        with interrupts():
            for epoch in range(2):
                record.metrics["epochs"].append({"epoch": epoch, "val/top1": 50.0 - 10 * (seed == 1) + epoch})
                write_record(record, path)
            while seed == 1:
                time.sleep(0.01)
        record.status = "finished" if seed == 0 else "failed"
        record.metrics["final"] = dict(record.metrics["epochs"][-1])
        record.error = None if seed == 0 else "no such luck"
    except Interrupted as error:
        record.status, record.error = "failed", str(error)
    write_record(record, path)
    return record.status == "failed"


def begun(task, earlier):
    seed, named = task.run.seed, {"name": "swept", "model": {"name": "m"}, "data": {"name": "d"}}
    return new_record(**named, config=task.values, seed=seed, device="cpu", earlier=earlier)


def fork(argv, log, environment):
    return Forked(lambda: train(argv), log, environment)


def swept(path: Path) -> dict[str, tuple[str, str]]:
    """Runs what a sweep file has left to run and returns how that stands."""
    jobs = make_jobs(read_sweep(path), None)
    skip_finished(jobs)
    run_jobs(jobs, 1, due_to_stop=EarlyTermination(jobs).due, starter=fork)
    return {job.name: (job.state, job.reason) for job in jobs}


def test_worse_run_is_stopped_and_stays_so(tmp_path, monkeypatch):
    monkeypatch.setattr(early, "LOOK_SECONDS", 0.0)
    path = write_sweep(tmp_path)
    why = "stopped by early_terminate at epoch 2: val/top1 41, expected at least 51 at epoch 2"
    assert swept(path) == {
        "seed=0": ("finished", ""),
        "seed=1": ("stopped", why),
        "seed=2": ("failed", "exit status 1"),
    }
    (record,) = [record for record in map(read_record, tmp_path.glob("out/*/record.json")) if record.seed == 1]
    assert (record.status, record.error, record.metrics["final"]) == ("stopped", why, {})
    assert record.attempts[-1]["status"] == "stopped" and record.ended
    # On the next start it is not run again, as what failed is; tables do not take its figures.
    assert swept(path)["seed=1"] == ("stopped", why)
    assert len(read_record(next(tmp_path.glob("out/*-s1/record.json"))).attempts) == 1
    (cell,) = gather(map(read_record, tmp_path.glob("out/*/record.json")))
    assert str(cell.final("val/top1")).startswith("51.0 (n=1), 1 failed, 1 stopped early")


@pytest.mark.parametrize(("status", "error"), [("failed", "disk full"), ("failed", STALE), ("running", None)])
def test_run_that_ended_by_itself_is_judged_once_it_has_begun_again(tmp_path, monkeypatch, status, error):
    """By its epochs it would be stopped while it imports, on every start, and its record would not say so."""
    monkeypatch.setattr(early, "LOOK_SECONDS", 0.0)
    path = write_sweep(tmp_path)
    jobs = make_jobs(read_sweep(path), None)
    for seed, (status_of, error_of) in enumerate([("finished", None), (status, error), ("finished", None)]):
        record = begun(task := task_in(jobs[seed].argv), [])
        record.metrics["epochs"] = [{"epoch": n, "val/top1": 50.0 - 10 * (seed == 1)} for n in range(2)]
        record.status, record.error, record.ended = status_of, error_of, utc_now()
        write_record(record, task.folder / "record.json")
    assert swept(path)["seed=1"][0] == "stopped"
    record = read_record(next(tmp_path.glob("out/*-s1/record.json")))
    before = STALE if status == "running" else error
    assert [attempt["error"] for attempt in record.attempts] == [before, record.error]
    assert record.status == "stopped" and record.error.startswith("stopped by early_terminate at epoch 2: val/top1 4")


def test_run_that_finished_before_is_not_stopped_over_its_tests(tmp_path):
    """Others may have become better since; it lacks figures of test images alone."""
    one_goes_on = {"type": "hyperband", "min_iter": 2, "eta": 4}
    jobs = make_jobs(read_sweep(write_sweep(tmp_path, early_terminate=one_goes_on)), None)
    skip_finished(jobs)
    for job, status, figure in zip(jobs, ("finished", "finished", "failed"), (50.0, 40.0, 40.0), strict=True):
        task, path = task_in(job.argv), job.run.folder / "record.json"
        record = begun(task, [])
        record.status, record.metrics["epochs"] = status, [{"epoch": n, "val/top1": figure} for n in range(2)]
        write_record(record, path)
        if job is not jobs[0]:
            again, job.state = begun(task, attempts_of(read_record(path))), "running"
            write_record(dataclasses.replace(again, metrics=record.metrics), path)
    assert [job.name for job, _ in EarlyTermination(jobs).due()] == ["seed=2"]


def test_without_the_key_a_stopped_run_goes_on(tmp_path):
    record = stopped_record(write_sweep(tmp_path), 1)
    jobs = make_jobs(read_sweep(write_sweep(tmp_path, early_terminate=None)), None)
    skip_finished(jobs)
    assert [job.state for job in jobs] == ["waiting"] * 3 and jobs[1].run.record() == record
    assert jobs[1].run.look() == ("free", "")


def test_run_that_another_runner_stopped_is_left_alone(tmp_path):
    path = write_sweep(tmp_path, parameters={"seed": {"value": 1}, "output": {"value": str(tmp_path / "out")}})
    jobs = make_jobs(read_sweep(path), None)
    skip_finished(jobs)
    record = stopped_record(path, 0)
    run_jobs(jobs, 1, starter=fork)
    assert [(job.state, job.reason, job.process) for job in jobs] == [("stopped", record.error, None)]


def test_run_that_failed_by_itself_is_not_called_stopped(tmp_path):
    run = make_jobs(read_sweep(write_sweep(tmp_path)), None)
    skip_finished(run)
    run = run[0].run
    for status, error, noted in (("failed", "disk full", False), ("finished", None, False), ("running", None, True)):
        record = new_record(name="a", config={}, model={"name": "m"}, data={"name": "d"}, seed=0, device="cpu")
        record.status, record.error = status, error
        write_record(record, run.folder / "record.json")
        assert run.note_stop("why") == noted
        assert read_record(run.folder / "record.json").status == ("stopped" if noted else status)


def stopped_record(path: Path, number: int):
    """Leaves the record of a run, by its number, that was stopped early."""
    jobs = make_jobs(read_sweep(path), None)
    task = task_in(jobs[number].argv)
    record = new_record(name="a", config=task.values, model={"name": "m"}, data={"name": "d"}, seed=1, device="cpu")
    record.status, record.error = "stopped", "stopped by early_terminate at epoch 2"
    write_record(record, task.folder / "record.json")
    return read_record(task.folder / "record.json")
