"""Sweeps with an end on the clock, in whole blocks, and of several files."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from dk_bench.cli import main
from dk_bench.runs.record import new_record, write_record
from dk_bench.sweep import listing
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.job import Job, task_in
from dk_bench.sweep.listing import make_queue
from dk_bench.sweep.runner import Deadline, run_jobs


def write_sweep(folder: Path, **content) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "program": "train.py"} | content, sort_keys=False))
    return str(path)


def make_jobs(folder: Path, seconds: dict[str, float]) -> list[Job]:
    """Jobs whose kinds are their names without the seed."""
    return [
        Job(name, ["sh", "-c", f"sleep {took}", f"model={name[:-1]}", f"seed={name[-1]}"], folder / f"{name}.log")
        for name, took in seconds.items()
    ]


def test_by_a_parameter_runs_come_in_whole_blocks(tmp_path, capsys):
    """A sweep that is cut off leaves complete seeds; within one the order is the grid's."""
    parameters = {"model": {"values": ["x", "y"]}, "seed": {"values": [2, 10, 1]}}
    path = write_sweep(tmp_path, command=["${program}", "${args_no_hyphens}"], parameters=parameters)
    assert main(["sweep", str(path), "--dry-run", "--by", "seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"train.py model={model} seed={seed}" for seed in (2, 10, 1) for model in "xy"]
    assert main(["sweep", str(path), "--dry-run", "--by", "speed"]) == 2
    assert "--by is 'speed', expected a parameter of" in (said := capsys.readouterr().err) and "model, seed" in said


def test_several_files_are_one_queue(tmp_path, capsys):
    """By seed, a seed of all files comes before the next of any."""
    files = []
    for name, values in ("a", ["x", "y"]), ("b", ["z"]):
        parameters = {"model": {"values": values}, "seed": {"values": [0, 1]}}
        files.append(write_sweep(tmp_path / name, command=["${program}", "${args_no_hyphens}"], parameters=parameters))
    assert main(["sweep", *files, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"train.py model={model} seed={seed}" for model in "xyz" for seed in (0, 1)]
    assert main(["sweep", *files, "--dry-run", "--by", "seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"train.py model={model} seed={seed}" for seed in (0, 1) for model in "xyz"]


def test_files_of_one_name_have_runs_and_logs_of_their_own(tmp_path, monkeypatch, capsys):
    """Whose points are the same, but not their commands; watching finds their logs."""
    monkeypatch.chdir(tmp_path)
    parameters = {"seed": {"values": [0, 1]}, "output": {"value": "out"}}
    command = [sys.executable, "-c", "import sys, time; time.sleep(0.5); print(sys.argv[1:])"]
    both = [
        write_sweep(tmp_path / file, command=[*command, file, "${args_no_hyphens}"], parameters=parameters)
        for file in "ab"
    ]
    assert main(["sweep", *both, "--workers", "4"]) == 0
    shown, logs = capsys.readouterr().err, sorted(path.read_text() for path in Path("out/logs").iterdir())
    assert "4 of 4 runs finished" in shown
    assert all(f"finished {path} seed={seed}: " in shown for path in both for seed in (0, 1))
    printed = [log.splitlines()[1:] for log in logs]
    assert sorted(printed) == [[f"['{file}', 'output=out', 'seed={seed}']"] for file in "ab" for seed in (0, 1)]
    assert main(["sweep", both[0], both[0], "--dry-run"]) == 2
    assert "are one command, " in (said := capsys.readouterr().err) and len(said.splitlines()) == 1
    sweeps = [read_sweep(path) for path in both]
    here, there = (
        {job.name: job.log.name for part in make_queue(*files, output) for job in part}
        for files, output in (((both, sweeps), None), ((both[::-1], sweeps[::-1]), "elsewhere"))
    )
    assert here == there and {*here.values()} == {path.name for path in Path("out/logs").iterdir()}


def test_values_that_differ_in_kind_alone_are_named_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", "import time; time.sleep(0.5)", "${args_json}"]
    parameters = {"seed": {"values": [1, "1", 2]}, "output": {"value": "out"}}
    path = write_sweep(tmp_path, command=command, parameters=parameters)
    assert main(["sweep", path, "--workers", "3"]) == 0
    shown = capsys.readouterr().err
    assert all(f"finished seed={seed}: " in shown for seed in ("1", '"1"', "2"))


def test_no_run_starts_that_would_not_end_in_time(tmp_path):
    """By the longest of its kind; of a kind that none has finished of, by the longest of all."""
    a0, b0, a1, b1, c0 = make_jobs(tmp_path, dict.fromkeys(["a0", "b0", "a1", "b1", "c0"], 0))
    a0.state, a0.seconds, b0.state, b0.seconds = "finished", 20.0, "finished", 4000.0
    jobs = [a0, b0, a1, b1, c0]
    assert Deadline(2000).choose([a1, b1, c0], jobs) == [a1]
    assert Deadline(10000).choose([a1, b1, c0], jobs) == Deadline().choose([a1, b1, c0], jobs) == [a1, b1, c0]
    assert Deadline(2000).choose([c0], [c0]) == [c0]


def test_what_finished_before_tells_how_long_runs_take(tmp_path):
    """A sweep that is started again goes by its records; of a run that was cut off by what is left of it."""
    (tmp_path / "c.yaml").write_text("name: swept\n")
    parameters = {"seed": {"values": [0, 1, 2, 3]}, "output": {"value": str(tmp_path / "out")}}
    command = ["dk-bench", "train", str(tmp_path / "c.yaml"), "${args_no_hyphens}"]
    jobs = listing.make_jobs(read_sweep(write_sweep(tmp_path, command=command, parameters=parameters)), None)
    for job, status, epochs, has_checkpoint in (
        (jobs[0], "finished", 4, True),
        (jobs[1], "failed", 3, True),
        (jobs[2], "failed", 3, False),
    ):
        task = task_in(job.argv)
        named = {"name": "swept", "model": {"name": "m"}, "data": {"name": "d"}}
        record = new_record(**named, config=task.values, seed=task.run.seed, device="cpu")
        record.status, record.started, record.ended = status, "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00"
        record.metrics["epochs"] = [{"epoch": n, "seconds": 850.0} for n in range(epochs)]
        write_record(record, task.folder / "record.json")
        if has_checkpoint:
            (task.folder / "last.ckpt").touch()
    listing.skip_finished(jobs)
    assert [job.state for job in jobs] == ["skipped", "waiting", "waiting", "waiting"]
    assert Deadline(1800).choose(jobs[1:], jobs) == [jobs[1]]
    assert Deadline(4000).choose(jobs[1:], jobs) == jobs[1:]
    elsewhere = listing.make_jobs(read_sweep(tmp_path / "try.yaml"), None)
    listing.find_runs(elsewhere)
    elsewhere[0].look()  # as another runner that saw it finish
    assert (elsewhere[0].state, elsewhere[0].seconds) == ("skipped", 3600.0)
    jobs[0].seconds = 0.0  # not known
    assert Deadline(1).choose(jobs[1:], jobs) == jobs[1:]


def test_runs_of_other_files_are_of_another_kind(tmp_path):
    """Though their parameters have the same values: the files' configurations differ."""
    point = {"model": "rigid", "seed": 0}
    done, other = (Job(n, ["dk-bench", "train", f"{n}.yaml", "seed=0"], tmp_path / n, point=point) for n in "ab")
    long = Job("long", ["dk-bench", "train", "long.yaml", "seed=0"], tmp_path / "long", point={"seed": 0})
    done.state, done.seconds, long.state, long.seconds = "finished", 20.0, "finished", 4000.0
    again = Job("again", ["dk-bench", "train", "a.yaml", "--seed=1"], tmp_path / "again", point=point | {"seed": 1})
    assert Deadline(2000).choose([other, again], [done, long, other, again]) == [again]


def test_what_runs_at_the_deadline_is_stopped_and_waits(tmp_path):
    jobs = make_jobs(tmp_path, {"quick0": 0, "quick1": 0, "slow0": 600, "slow1": 600, "slow2": 600})
    deadline = Deadline(600)

    def time_is_up_with_two_slow_ones(_):
        if [job.state for job in jobs].count("running") == 2 and jobs[1].has_ended:
            deadline.end = 0.0

    run_jobs(jobs, 2, time_is_up_with_two_slow_ones, deadline=deadline)
    assert [(job.state, job.reason) for job in jobs] == [("finished", "")] * 2 + [("waiting", "stopped")] * 2 + [
        ("waiting", "")
    ]
    assert all(job.process.poll() is not None for job in jobs if job.process)


def test_ends_where_nothing_would_end_in_time(tmp_path):
    jobs = make_jobs(tmp_path, {"quick0": 0, "quick1": 0})
    jobs[0].state, jobs[0].seconds = "finished", 4000.0
    run_jobs(jobs, 2, deadline=Deadline(2000))
    assert jobs[1].state == "waiting" and jobs[1].process is None


def test_runs_left_for_want_of_time_are_no_failures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_sweep(tmp_path, command=["sleep", "600"], parameters={"seed": {"value": 0}})
    assert main(["sweep", path, "--workers", "1", "--time-limit", "0.5"]) == 0
    assert "0 of 1 runs finished, 1 left for want of time" in capsys.readouterr().err
    assert main(["sweep", path, "--time-limit", "0"]) == 2
    assert "--time-limit: expected a number above 0, got 0.0" in capsys.readouterr().err
