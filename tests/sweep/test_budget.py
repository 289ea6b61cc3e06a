"""A sweep whose first runs all fail gives up, and says why once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dk_bench.cli import main
from dk_bench.sweep.budget import FailureBudget, alike_failed
from dk_bench.sweep.job import Job
from dk_bench.sweep.runner import run_jobs


def jobs_of(folder: Path, *commands: str) -> list[Job]:
    return [Job(f"run{n}", ["sh", "-c", each], folder / f"{n}.log") for n, each in enumerate(commands)]


def states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


def test_spent_when_the_first_runs_all_fail(tmp_path):
    jobs = jobs_of(tmp_path, *["exit 3"] * 6)
    run_jobs(jobs, 1, budget=FailureBudget(2))
    assert states(jobs) == ["failed"] * 2 + ["waiting"] * 4 and not any(job.process for job in jobs[2:])


def test_what_runs_meanwhile_is_stopped_and_waits(tmp_path):
    jobs = jobs_of(tmp_path, "exit 3", "sleep 600", "exit 3", "exit 3")
    run_jobs(jobs, 2, budget=FailureBudget(2))
    assert [(job.state, job.reason) for job in jobs] == [
        ("failed", "exit status 3"),
        ("waiting", "stopped"),
        ("failed", "exit status 3"),
        ("waiting", ""),
    ]
    assert jobs[1].process.poll() is not None


@pytest.mark.parametrize("state", ["finished", "skipped", "stopped"])
def test_one_that_finished_now_or_before_shows_that_runs_can(tmp_path, state):
    jobs = jobs_of(tmp_path, "true", *["exit 3"] * 4)
    if state != "finished":
        jobs[0].state = state
    run_jobs(jobs, 1, budget=FailureBudget(2))
    assert states(jobs) == [state] + ["failed"] * 4


def test_none_or_too_few_failures_are_no_reason(tmp_path):
    for most, commands in ((0, ["exit 3"] * 3), (3, ["exit 3"] * 2 + ["true"]), (4, ["exit 3"] * 3)):
        jobs = jobs_of(tmp_path, *commands)
        run_jobs(jobs, 1, budget=FailureBudget(most))
        assert all(job.has_ended for job in jobs)


def test_a_retry_counts_once(tmp_path):
    jobs = jobs_of(tmp_path, "exit 3", *["exit 3"] * 3)
    run_jobs(jobs, 1, retries=3, budget=FailureBudget(4))
    assert [job.failures for job in jobs] == [1] * 4
    jobs = jobs_of(tmp_path, "exit 3", "exit 3")
    run_jobs(jobs, 1, retries=2, budget=FailureBudget(3))
    assert [job.failures for job in jobs] == [3, 3] and states(jobs) == ["failed"] * 2


@pytest.mark.parametrize(("asked", "workers", "most"), [(None, 1, 4), (None, 3, 4), (None, 8, 9), (2, 8, 2), (0, 8, 0)])
def test_by_default_more_than_start_together(asked, workers, most):
    assert FailureBudget.of(asked, workers).most == most


def test_reasons_that_differ_in_numbers_alone_are_one(tmp_path):
    jobs = jobs_of(tmp_path, *[""] * 4)
    said = ["no such thing", "run a1b2c3d4-s0: disk full", "run 99ffee00-s7: disk full", "nothing"]
    for job, line in zip(jobs, said, strict=True):
        job.reason = "exit status 1"
        job.log.write_text(f"x\n{line}\n")
    assert alike_failed(jobs) == jobs[1:3]


def test_sweep_tells_the_common_reason_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "run.py"
    script.write_text("import sys; sys.exit('no images for ' + sys.argv[1])")
    parameters = {"a": {"values": list(range(9))}, "output": {"value": "out"}}
    content = {"method": "grid", "command": ["${interpreter}", str(script), "${args_no_hyphens}"]}
    Path("try.yaml").write_text(yaml.safe_dump(content | {"parameters": parameters}))
    assert main(["sweep", "try.yaml", "--workers", "1", "--failure-budget", "2"]) == 1
    shown = capsys.readouterr().err
    assert "try: 0 of 9 runs finished, 7 left waiting, as all that ended had failed\n" in shown
    assert "failed 2 of 2 alike, a=0 first: exit status 1: no images for a=0\n  out/logs/try-001-0.log\n" in shown
    assert shown.count("no images") == 1
    assert main(["sweep", "try.yaml", "--workers", "1", "--failure-budget", "0"]) == 1
    assert "0 of 9 runs finished\n" in capsys.readouterr().err
    assert main(["sweep", "try.yaml", "--failure-budget", "-1"]) == 2
    assert "--failure-budget: expected at least 0, got -1" in capsys.readouterr().err
