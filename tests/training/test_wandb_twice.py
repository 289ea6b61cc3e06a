"""Another run of W&B's sweep that is the same: finished, at work, or not known; with a stand-in for the server."""

import time
from datetime import datetime, timedelta, timezone

import pytest
from training_cases import tiny

from dk_bench import tasks
from dk_bench.errors import BusyError, UserError
from dk_bench.runs.attempts import this_process
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import new_record, read_record
from dk_bench.runs.wandb_server import CLAIM, RunAtWandb
from dk_bench.training import wandb_twice
from dk_bench.training.wandb_twice import finished_in_sweep


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """The task of a run of a sweep, and the runs that the server has of its cell and seed."""
    task, runs = tasks.of(tiny(tmp_path)), []

    class Server:
        def __init__(self, path):
            assert path == "me/bench/abc"

        def runs(self, cell, seed):
            assert (cell, seed) == (config_hash(task.values), task.run.seed)
            if runs == ["gone"]:
                raise UserError("me/bench/abc: no answer")
            return runs

    monkeypatch.setattr(wandb_twice, "SweepAtWandb", Server)
    monkeypatch.setattr(wandb_twice, "record_of", lambda raw: raw)
    for key, value in {"ENTITY": "me", "PROJECT": "bench", "SWEEP_ID": "abc", "RUN_ID": "mine"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    return task, runs


def run(name, state, record=None, *, minutes=0.0, **summary):
    then = datetime.now(timezone.utc) - timedelta(minutes=minutes)
    return RunAtWandb(name, state, {}, summary, then, then, record)


def record_of(task, status):
    model, data = {"name": "m"}, {"name": "d"}
    record = new_record(name="tiny", config=task.values, model=model, data=data, seed=task.run.seed)
    record.status = status
    return record


def test_its_own_and_dead_runs_are_no_others(sweep):
    task, runs = sweep
    assert finished_in_sweep(task) is None
    runs += [run("mine", "running"), run("a", "crashed"), run("b", "failed"), run("c", "running", minutes=11)]
    assert finished_in_sweep(task) is None and not task.folder.exists()


def test_one_at_work_is_left_to_it(sweep):
    task, runs = sweep
    runs.append(run("other", "running", minutes=2))
    with pytest.raises(
        BusyError, match=r"me/bench/abc: run other, heard of 1\d\d s ago, is training this cell and seed"
    ):
        finished_in_sweep(task)


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_one_that_finished_comes_with_its_record(sweep, has_checkpoint):
    task, runs = sweep
    if has_checkpoint:  # of an attempt here, which must not be taken for the record's
        task.folder.mkdir(parents=True)
        (task.folder / "last.ckpt").touch()
    # W&B may call finished what its record does not.
    runs += [run("a", "finished", record_of(task, "failed")), run("b", "finished")]
    assert finished_in_sweep(task) is None
    runs.append(run("c", "finished", record_of(task, "finished")))
    runs.append(run("d", "running"))
    assert finished_in_sweep(task) is runs[2].raw
    assert (task.folder / "record.json").exists() != has_checkpoint
    if not has_checkpoint:
        assert read_record(task.folder / "record.json").status == "finished"


def test_server_that_does_not_answer_stops_no_run(sweep, capsys):
    task, runs = sweep
    runs.append("gone")
    assert finished_in_sweep(task) is None
    assert "no answer; whether another run of the sweep is the same is not known" in capsys.readouterr().err


def test_without_a_sweep_nobody_is_asked(sweep, monkeypatch):
    task, runs = sweep
    runs.append(run("other", "running"))
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert finished_in_sweep(task) is None


def test_a_claim_ends_with_its_time_and_its_process():
    here = this_process()
    gone, elsewhere = here | {"began": -1}, here | {"host": "another"}
    cases = [(0, here, "me"), (700, here, None), (0, gone, None), (0, elsewhere, "me"), (700, elsewhere, None)]
    for age, process, by in cases:
        claim = {"by": "me", "at": time.time() - age, "process": process}
        assert run("a", "crashed", **{CLAIM: claim}).claimed_by == by
    assert run("a", "crashed").claimed_by is None
