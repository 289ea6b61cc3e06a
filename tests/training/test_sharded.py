"""Parameters split among two processes: the same groups, the same checkpoints, the same result. On CPUs, by gloo."""

import os
from inspect import signature
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from new_python import run_new_python
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from training_cases import STEPS, TINY, PowerCut, tiny, weights

from dk_bench.classification.optimizers import OF_SINGLE_NUMBERS, check_split
from dk_bench.config import to_dict
from dk_bench.errors import UserError
from dk_bench.runs.record import read_record
from dk_bench.training import LitClassifier, read_checkpoint, run_folder, train
from dk_bench.training.sharded import Sharded, check_sharded

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


def whole_and_split(name, **kwargs):
    """Tells how far three steps of tensors lie from those of their two parts, as shares of the way."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 8), (4, 3, 3, 3), (96, 64))]
    began = [parameter.detach().clone() for parameter in whole]
    parts = [[torch.nn.Parameter(p.flatten()[part].detach().clone()) for p in whole] for part in PARTS]

    def make(params):
        return create_optimizer_v2([{"params": params, "weight_decay": 0.05}], name, 0.01, **kwargs)

    optimizers = [make(params) for params in (whole, *parts)]
    for _ in range(3):
        for parameter, *split in zip(whole, *parts, strict=True):
            gradient, weight = (
                torch.randn(parameter.shape, generator=generator).flatten(1),
                parameter.detach().flatten(1),
            )
            along = (gradient * weight).sum(1, keepdim=True) / (weight * weight).sum(1, keepdim=True)
            parameter.grad = (gradient - along * weight).view_as(parameter)  # as of what is normalised, for adamp
            for own, part in zip(split, PARTS, strict=True):
                own.grad = parameter.grad.flatten()[part].clone()
        for optimizer in optimizers:
            optimizer.step()
    ends = [(p.detach(), torch.cat([own.detach() for own in split])) for p, *split in zip(whole, *parts, strict=True)]
    far = [(p.flatten() - q).abs().max() / (p - b).abs().max() for (p, q), b in zip(ends, began, strict=True)]
    return max(far).item()


PARTS = slice(0, 29), slice(29, None)  # one device's and another's
# kron compiles itself for minutes; those of other packages are not here; adahessian cannot be asked for.
TRIED = [name for name in list_optimizers() if "kron" not in name and not name.startswith(("bnb", "fused", "adahess"))]


def test_optimisers_that_go_with_split_parameters_step_parts_as_they_step_the_whole():
    assert {name for name in TRIED if whole_and_split(name) < 1e-4} == OF_SINGLE_NUMBERS
    cautious = [name for name in OF_SINGLE_NUMBERS if "caution" in signature(get_optimizer_class(name)).parameters]
    assert cautious and all(whole_and_split(name, caution=True) > 1e-3 for name in cautious)
    assert whole_and_split("lookahead_adamw") == 0


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["optim.optimizer=lamb"], "with key 'optim.optimizer' 'lamb', which goes by whole parameters: a device has a"),
        (["optim.optimizer=lookahead_lars"], "with key 'optim.optimizer' 'lookahead_lars', which goes by whole param"),
        (["optim.optimizer=fusedlamb"], "with key 'optim.optimizer' 'fusedlamb', which goes by whole parameters"),
        (["optim.optimizer=lion", "optim.kwargs.caution=true"], "with key 'optim.kwargs.caution' True, which goes by"),
        (["trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=agc"], "where gradients are clipped: a"),
    ],
)
def test_recipes_that_need_whole_parameters_are_refused(tmp_path, overrides, where):
    with pytest.raises(UserError, match=f"^key 'trainer.strategy' is 'fsdp', expected ddp {where}"):
        check_split(tiny(tmp_path, *overrides))
    for fine in (["optim.optimizer=lookahead_adamw"], ["optim.optimizer=lion", "optim.kwargs.caution=false"]):
        check_split(tiny(tmp_path, *fine))


def test_a_module_under_split_parameters_looks_at_its_recipe(tmp_path):
    config = tiny(tmp_path, "optim.optimizer=lamb")
    module = LitClassifier(to_dict(config), ["a", "b"])
    module._trainer = pl.Trainer(accelerator="cpu", logger=False, max_epochs=config.optim.epochs)
    module._trainer._accelerator_connector.strategy = Sharded()
    with pytest.raises(UserError, match="'optim.optimizer' 'lamb'"):
        module.setup("fit")
