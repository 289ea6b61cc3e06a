"""Parameters split among two processes: the same groups, the same checkpoints, the same result. On CPUs, by gloo."""

import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from new_python import run_new_python
from training_cases import STEPS, TINY, PowerCut, tiny, weights

from dk_bench.errors import UserError
from dk_bench.runs.record import read_record
from dk_bench.training import read_checkpoint, run_folder, train
from dk_bench.training.sharded import check_sharded

ROOT = Path(__file__).parents[2]
# A small rate: float32's rounding, which differs between numbers of processes, shall not grow to much.
ALIKE = ("optim.lr=0.002", "model.drop_path_rate=0", "trainer.sync_batchnorm=true", "trainer.accelerator=cpu")


def groups_of(config):
    """The optimiser's state in a run's checkpoint: groups, and tensors by their numbers."""
    (state,) = read_checkpoint(run_folder(config) / "last.ckpt")["optimizer_states"]
    return state["param_groups"], {number: held["momentum_buffer"] for number, held in state["state"].items()}


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_go_on_with_a_whole_checkpoint_and_leave_one(tmp_path):
    whole = tiny(tmp_path / "whole", *ALIKE, "trainer.devices=1")
    right = train(whole)
    config = tiny(tmp_path / "split", *ALIKE, "trainer.checkpoint_every_n_steps=1", "trainer.devices=1")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(STEPS + 2)])
    (tmp_path / "c.yaml").write_text("{}")
    overrides = [*TINY, *ALIKE, f"output={tmp_path / 'split'}", "trainer.devices=2", "trainer.strategy=fsdp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [ROOT / "tests" / "cases" / "sharded_two.py", "train", tmp_path / "c.yaml", *overrides]
    done = run_new_python(script, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    record = read_record(run_folder(config) / "record.json")
    assert record.status == "finished" and [attempt["device"]["devices"] for attempt in record.attempts] == [1, 2]
    losses, losses_of_one = ([epoch["train/loss"] for epoch in r.metrics["epochs"]] for r in (record, right))
    assert losses == pytest.approx(losses_of_one, rel=1e-3)
    (groups, state), (groups_of_one, state_of_one) = groups_of(config), groups_of(whole)
    assert len(groups) == 4 and groups == groups_of_one  # offsets or not, decayed or not, as one device has them
    torch.testing.assert_close(state, state_of_one, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights(config), weights(whole), rtol=1e-3, atol=1e-4)


def test_on_cpus_lightnings_reason_is_given(tmp_path):
    with pytest.raises(UserError, match="^section 'trainer': The strategy `fsdp` requires a GPU accelerator"):
        train(tiny(tmp_path, "trainer.strategy=fsdp", "trainer.accelerator=cpu"))
    assert not [*tmp_path.rglob("record.json")]


def test_what_is_of_whole_parameters_is_refused():
    trainer = pl.Trainer(accelerator="cpu", logger=False, gradient_clip_val=1.0)
    with pytest.raises(UserError, match="^key 'trainer.strategy' is 'fsdp', expected ddp where gradients are clipped"):
        check_sharded(trainer)
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[pl.callbacks.EMAWeightAveraging(0.9)])
    with pytest.raises(UserError, match="^key 'trainer.strategy' is 'fsdp', expected ddp where weights are averaged"):
        check_sharded(trainer)
