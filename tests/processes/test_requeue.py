"""Jobs of SLURM that are stopped ahead of their end: who puts them back into the queue, and when."""

import contextlib
import os
import re
import signal
import sys
import types

import pytest
from fake_slurm import REFUSES, FakeSlurm

from dk_bench.cli import main, train
from dk_bench.processes.interrupts import Interrupted, heed
from dk_bench.processes.requeue import requeue

WARNED = Interrupted(signal.SIGUSR1)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """This process is in a job of its own SLURM."""
    slurm = FakeSlurm(tmp_path / "slurm")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "WANDB_SWEEP"))]:
        monkeypatch.delenv(name)
    for name, value in slurm.environment({"SLURM_JOB_ID": "77"}).items():
        monkeypatch.setenv(name, value)
    return slurm


def test_job_is_put_back_by_its_name(slurm, monkeypatch):
    assert requeue(WARNED) == "job 77 was put back into the queue"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert requeue(WARNED) == "job 70_7 was put back into the queue"
    assert slurm.requeued() == ["77", "70_7"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGXCPU])
def test_other_signals_put_nothing_back(slurm, number):
    assert requeue(Interrupted(number)) is None and slurm.requeued() == []


@pytest.mark.parametrize("name, value", [("DK_BENCH_REQUEUE", "0"), ("WANDB_SWEEP_ID", "s"), ("SLURM_JOB_ID", None)])
def test_whose_job_it_is_not_leaves_it_alone(slurm, monkeypatch, name, value):
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    assert requeue(WARNED) is None and slurm.requeued() == []


def test_job_that_cannot_be_put_back_is_told_of(slurm, monkeypatch):
    cannot = "job 77 could not be put back into the queue ({}): submit it again"
    monkeypatch.setenv(REFUSES, "1")
    assert requeue(WARNED) == cannot.format("Requested operation is presently disabled for job 77")
    (slurm.path / "scontrol").write_text("#!/bin/sh\nexit 4\n")
    assert requeue(WARNED) == cannot.format("exit status 4")
    (slurm.path / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(slurm.path))
    assert requeue(WARNED) == cannot.format("scontrol cannot be started: No such file or directory")


@pytest.mark.parametrize("further", [False, True])
def test_first_process_alone_puts_the_job_back(slurm, monkeypatch, capsys, further):
    from dk_bench import cli
    from dk_bench.processes.ranks import Rank

    monkeypatch.setattr(train, "run", lambda args: heed(signal.SIGUSR1))
    monkeypatch.setattr(cli, "this_rank", lambda: Rank(int(further), 2))
    status, said = main(["train", "c.yaml"]), capsys.readouterr().err.splitlines()
    if further:  # stopped in good order, it is no failure for a launcher to end the first process for
        assert (status, said, slurm.requeued()) == (0, [], [])
    else:
        assert status == 138 and slurm.requeued() == ["77"]
        assert said == [
            "dk-bench train: interrupted by SIGUSR1; the same command goes on from the run's last checkpoint",
            "dk-bench train: job 77 was put back into the queue",
        ]


@pytest.mark.parametrize("trains", [True, False])
def test_process_that_waits_for_others_who_were_stopped_puts_the_job_back(slurm, monkeypatch, capsys, trains):
    """It exits from a thread, so that no exception reaches the command."""
    from dk_bench.training import ending

    @contextlib.contextmanager
    def others_are_stopped(size, tell):
        tell(WARNED)
        yield

    world, done, keeper = types.SimpleNamespace(together=others_are_stopped), [], object() if trains else None
    monkeypatch.setattr(ending, "own_world", lambda: world)
    monkeypatch.setattr(ending, "end", lambda *of: done.append((of[1:], slurm.requeued())))
    with ending.together(types.SimpleNamespace(world_size=2), keeper):
        said = capsys.readouterr().err.splitlines()
    back = ["job 77 was put back into the queue"] if trains else []
    assert said == ["interrupted by SIGUSR1; the same command goes on", *back]
    assert slurm.requeued() == (["77"] if trains else [])
    assert done == ([((keeper, WARNED), [])] if trains else [])  # the record is written before


RUN = """
import sys, time
from dk_bench.cli import main, train
from dk_bench.processes import interrupts

def run(args):
    with interrupts.noting():
        interrupts.note()
        print("ready", flush=True)
        while not interrupts.noted():
            time.sleep(0.1)
        time.sleep(0.5)
        interrupts.heed()

train.run = run
sys.exit(main(["train", "c.yaml"]))
"""


def test_sweep_puts_its_job_back_once(slurm, tmp_path, monkeypatch, capsys):
    """SLURM signals all processes of a step: the sweep and its runs."""
    from dk_bench.sweep import runner

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.py").write_text(RUN)
    command = f"[{sys.executable}, run.py, '${{args}}']"
    (tmp_path / "s.yaml").write_text(f"method: grid\nparameters: {{a: {{values: [1, 2]}}}}\ncommand: {command}\n")
    run_jobs, logs = runner.run_jobs, tmp_path / "out" / "logs"

    def signalled(jobs, workers, on_change, **more):
        def changed(job):
            on_change(job)
            if sum("\nready" in path.read_text() for path in logs.glob("*.log")) == 2:
                for job in jobs:
                    job.process.send_signal(signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR1)

        run_jobs(jobs, workers, changed, **more)

    monkeypatch.setattr("dk_bench.cli.sweep.run_jobs", signalled)
    assert main(["sweep", "s.yaml", "--output", "out", "--workers", "2"]) == 138
    assert slurm.requeued() == ["77"]
    # The sweep asks its runs to stop, too, and may be quicker than they are.
    assert all(re.search("interrupted by SIG(USR1|TERM)", path.read_text()) for path in logs.glob("*.log"))
    assert capsys.readouterr().err.splitlines()[-1] == "dk-bench sweep: job 77 was put back into the queue"
