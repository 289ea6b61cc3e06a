"""What a run's folder holds at every moment at which it can be killed, and on a full disk, leads to the same end."""

import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from training_cases import STEPS, timeless, tiny

from dk_bench.runs import heartbeat
from dk_bench.runs.record import read_record
from dk_bench.training import read_checkpoint, run_folder, train

SHORT = ("optim.epochs=2", "trainer.checkpoint_every_n_steps=2")


def outcome(config):
    """What a run computed: metrics without times, and everything of its checkpoint that training goes on from."""
    record = read_record(run_folder(config) / "record.json")
    assert record.status == "finished" and record.metrics["final"] == record.metrics["epochs"][-1]
    checkpoint = read_checkpoint(run_folder(config) / "last.ckpt")
    momenta = checkpoint["optimizer_states"][0]["state"]
    tensors = checkpoint["state_dict"] | {f"momentum {n}": momenta[n]["momentum_buffer"] for n in momenta}
    return timeless(record), (checkpoint["global_step"], checkpoint["lr_schedulers"]), tensors


def assert_same(config, expected):
    *plain, tensors = outcome(config)
    assert plain == list(expected[:-1])
    assert tensors.keys() == expected[-1].keys()
    assert all(torch.equal(tensors[name], expected[-1][name]) for name in tensors)


def test_killed_at_any_moment_it_ends_the_same(tmp_path, monkeypatch):
    """A folder changes when a file is put in its place. Before each time the folder is copied, as a kill would leave
    it: with the file that is to come half written beside the old one. A run that goes on from any copy ends the same.
    """
    config, replace, copies = tiny(tmp_path / "whole", *SHORT), os.replace, []

    def copying(source, target):
        if Path(target).parent == run_folder(config) and Path(target).name != heartbeat.FILE:
            copies.append((Path(target).name, tmp_path / f"cut{len(copies)}"))
            copy = copies[-1][1] / run_folder(config).name
            shutil.copytree(run_folder(config), copy)
            half = copy / Path(source).name
            os.truncate(half, half.stat().st_size // 2)
        replace(source, target)

    monkeypatch.setattr(os, "replace", copying)
    train(config)
    monkeypatch.undo()
    expected = outcome(config)
    # Begun; the checkpoint of step 2; the epoch's record, then its checkpoint; step 4, the same; finished.
    record, checkpoint = "record.json", "last.ckpt"
    epoch = [checkpoint, record, checkpoint]
    assert [name for name, _ in copies] == [record, *epoch, *epoch, record]
    for _, copy in copies:
        cut = tiny(copy, *SHORT)
        before = run_folder(cut) / checkpoint
        held = read_checkpoint(before)["global_step"] if before.exists() else 0
        count = Steps()
        train(cut, callbacks=[count])
        assert_same(cut, expected)
        assert count.steps == 2 * STEPS - held  # nothing that a checkpoint holds is done again
        assert not list(run_folder(cut).glob(".*.tmp"))


class Steps(pl.Callback):
    """Counts the steps of a run."""

    steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1


class FullDisk(pl.Callback):
    """From a step on, the kernel lets files grow to so many bytes and no further."""

    def __init__(self, step, limit):
        self.step, self.limit = step, limit

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


@pytest.fixture
def give_space(monkeypatch):
    """Lets files grow as they like again."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python keeps what it could write of a module's, a part
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY, reason="limited already")
def test_disk_that_is_full_spoils_nothing(tmp_path, give_space):
    """Room for the record, which then says why; and for nothing, so that it says running until the next start."""
    train(tiny(tmp_path / "whole", *SHORT))
    expected = outcome(tiny(tmp_path / "whole", *SHORT))
    for limit, status in ((1 << 16, "failed"), (100, "running")):
        config = tiny(tmp_path / str(limit), *SHORT)
        with pytest.raises(OSError):
            train(config, callbacks=[FullDisk(STEPS, limit)])
        give_space()
        record = read_record(run_folder(config) / "record.json")
        assert record.status == status and ("too large" in (record.error or "")) == (status == "failed")
        assert read_checkpoint(run_folder(config) / "last.ckpt")["global_step"] == STEPS
        train(config)
        assert_same(config, expected)
        assert not list(run_folder(config).glob(".*.tmp"))
