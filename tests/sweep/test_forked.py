"""Runs that are forked, and runs that wait until they are ready."""

from __future__ import annotations

import os
import time
from pathlib import Path

from forked import Forked

from dk_bench.processes.interrupts import Interrupted, interrupts
from dk_bench.sweep.job import Job
from dk_bench.sweep.runner import Deadline, run_jobs


def run(name: str) -> int:
    """What a run does: ends with a status, or waits to be asked to stop, and says by what it was."""
    os.write(1, f"run {name}\n".encode())  # past what captures this process's output
    if name.isdecimal():
        return int(name)
    try:
        with interrupts():
            Path(f"{name}.begun").touch()
            time.sleep(600)
    except Interrupted as error:
        os.write(1, f"{error}\n".encode())
    return 0


def fork(argv, log, environment):
    return Forked(lambda: run(argv[-1]), log, environment)


def test_forked_runs_end_and_are_stopped_as_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [Job(name, ["run", name], tmp_path / f"{name}.log") for name in ("0", "3", "long")]
    deadline = Deadline(600, patience=30)

    def time_is_up_with_the_long_one(_):
        if Path("long.begun").exists() and jobs[1].has_ended:
            deadline.end = 0.0

    run_jobs(jobs, 2, time_is_up_with_the_long_one, deadline=deadline, starter=fork)
    assert [(job.state, job.reason) for job in jobs] == [
        ("finished", ""),
        ("failed", "exit status 3"),
        ("waiting", "stopped"),
    ]
    # Though it was forked where signals were deferred.
    assert (tmp_path / "long.log").read_text() == "$ run long\nrun long\ninterrupted by SIGTERM\n"
    assert jobs[2].process.returncode == 0


def test_a_run_that_is_not_ready_lets_others_go_first_and_is_waited_for(tmp_path):
    jobs = [Job(name, ["true"], tmp_path / f"{name}.log") for name in ("first", "second")]
    order = []

    def changed(job):
        if job and job.has_ended:
            order.append(job.name)

    run_jobs(jobs, 1, changed, is_ready=lambda job: job is jobs[1] or "second" in order)
    assert order == ["second", "first"] and all(job.state == "finished" for job in jobs)
