"""What a resumed run keeps: attempts, epochs, throughput; and a checkpoint that no crash damages."""

import json
import os
import tempfile
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from training_cases import EPOCHS, STEPS, PowerCut, tiny

from dk_bench import tasks
from dk_bench.config import Config
from dk_bench.data import order
from dk_bench.errors import UserError
from dk_bench.runs.attempts import STALE
from dk_bench.runs.record import read_record
from dk_bench.training import callbacks, evaluate, read_checkpoint, run_folder, train
from dk_bench.training.callbacks import RunKeeper
from dk_bench.training.own_trainer import ConfiguredModule


class PowerCutInSetup(pl.Callback):
    """Ends a run before its checkpoint is restored."""

    def setup(self, *_, **__):
        raise RuntimeError("power cut in setup")


class DiskFull(pl.Callback):
    """From a step on, no file can be put in another's place."""

    def __init__(self, step, monkeypatch, path):
        self.step, self.monkeypatch, self.path = step, monkeypatch, path

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            self.before = self.path.read_bytes()
            self.monkeypatch.setattr(os, "replace", self.refuse)

    def refuse(self, *_):
        raise OSError(28, "No space left on device")


def record_of(config):
    return read_record(run_folder(config) / "record.json")


def test_crash_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    config = tiny(tmp_path, "trainer.checkpoint_every_n_steps=2")
    path = run_folder(config) / "last.ckpt"
    full = DiskFull(3, monkeypatch, path)  # the checkpoint of step 4 is the next
    with pytest.raises(OSError, match="No space"):
        train(config, callbacks=[full])
    monkeypatch.undo()
    assert path.read_bytes() == full.before
    assert read_checkpoint(path)["global_step"] == STEPS
    assert not list(path.parent.glob(".*.tmp"))
    leftover = path.with_name(".last.ckpt.123.tmp")
    leftover.write_bytes(b"half a checkpoint")
    assert train(config).status == "finished" and not leftover.exists()


def test_checkpoints_do_not_pass_through_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0")
    assert train(config).status == "finished" and (run_folder(config) / "last.ckpt").exists()


def test_attempts_and_epochs_of_a_resumed_run(tmp_path):
    config = tiny(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(2 * STEPS)])
    first = record_of(config)
    with pytest.raises(RuntimeError, match="in setup"):
        train(config, callbacks=[PowerCutInSetup()])
    second = record_of(config)
    assert second.metrics["epochs"] == first.metrics["epochs"] and len(first.metrics["epochs"]) == 2
    assert second.error == "RuntimeError: power cut in setup"
    record = train(config)
    assert record == record_of(config) and len(record.metrics["epochs"]) == EPOCHS
    assert [(a["status"], a["error"]) for a in record.attempts] == [
        ("failed", "RuntimeError: power cut"),
        ("failed", "RuntimeError: power cut in setup"),
        ("finished", None),
    ]
    assert record.started == first.started and all(a["started"] and a["ended"] for a in record.attempts)


def test_attempts_are_in_the_checkpoint_too(tmp_path):
    config = tiny(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(STEPS)])
    (run_folder(config) / "record.json").unlink()
    record = train(config)
    assert [(a["status"], a["error"]) for a in record.attempts] == [("failed", STALE), ("finished", None)]
    assert len(record.metrics["epochs"]) == EPOCHS


def test_resuming_with_no_steps_left_keeps_the_figures(tmp_path):
    config = tiny(tmp_path, "optim.epochs=2")
    before = train(config)
    path = run_folder(config) / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "running", "ended": None, "throughput": {}}))
    after = train(config, callbacks=[PowerCut(0)])
    assert after.status == "finished" and after.metrics == before.metrics
    assert after.throughput["train_images_per_second"] > 0 and after.throughput["eval_images_per_second"] > 0


def test_throughput_counts_the_attempts_before(tmp_path):
    config = tiny(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(2 * STEPS)])
    train(config)
    state = read_checkpoint(run_folder(config) / "last.ckpt")["callbacks"]["Throughput"]
    assert state["images"]["train"] == EPOCHS * (STEPS - 1) * 8  # all but each epoch's first batch


def test_keeper_reads_states_of_older_checkpoints():
    assert RunKeeper.state_in({"callbacks": {"RunKeeper": {"epochs": []}}}) == {"epochs": []}
    assert RunKeeper.state_in({}) == {}


def test_older_checkpoints_of_detectors_call_states_otherwise():
    older = {"state_dict": {}, "callbacks": {"DetectionKeeper": {"epochs": [1]}, "DetectionThroughput": {}, "Else": {}}}
    assert RunKeeper.state_in(older) == {"epochs": [1]}
    ConfiguredModule().on_load_checkpoint(older)
    assert older["callbacks"] == {"RunKeeper": {"epochs": [1]}, "Throughput": {}, "Else": {}}


def test_resuming_needs_no_checkpoint_that_training_began_with(tmp_path):
    base = tiny(tmp_path, "name=base", "optim.epochs=1", "optim.warmup_epochs=0")
    train(base)
    start = run_folder(base) / "last.ckpt"
    config = tiny(tmp_path, f"model.checkpoint={start}")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(STEPS)])
    start.unlink()
    assert train(config).status == "finished"
    held = read_checkpoint(run_folder(config) / "last.ckpt")["hyper_parameters"]
    assert held["config"]["model"]["checkpoint"] == str(start) and "initial_weights" not in held
    with pytest.raises(UserError, match="no checkpoint can be read there"):  # a run from its beginning does
        train(tiny(tmp_path, f"model.checkpoint={start}", "seed=1"))


def test_evaluating_a_model_that_is_not_finite(tmp_path):
    import torch

    config = tiny(tmp_path, "model.name=test_resnetdw", "optim.epochs=1", "optim.warmup_epochs=0")
    train(config)
    path = run_folder(config) / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["conv1.0.weight"].fill_(float("nan"))
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"last\.ckpt: its model gives no finite loss .*validation loss is nan"):
        evaluate(path)


def test_evaluation_is_no_training_run(tmp_path):
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0")
    assert train(config).task == "classification"
    assert evaluate(run_folder(config) / "last.ckpt").task == "evaluation"


def test_model_whose_cost_cannot_be_counted_trains(tmp_path, capsys):
    import timm
    import torch

    class Spectral(torch.nn.Module):
        """A Fourier transform has no formula for its multiply-adds."""

        def __init__(self, classes):
            super().__init__()
            self.head = torch.nn.Linear(3, classes)

        def forward(self, images):
            return self.head(torch.fft.rfft2(images.contiguous()).abs().mean((2, 3)))

    def test_spectral(pretrained=False, num_classes=10, **kwargs):
        return Spectral(num_classes)

    test_spectral.__module__ = __name__
    timm.models.register_model(test_spectral)
    record = train(tiny(tmp_path, "model.name=test_spectral", "model.drop_path_rate=0", "optim.epochs=2"))
    assert record.status == "finished" and record.cost["params"] == 4 * 6
    assert record.cost["macs"] is None and record.cost["sampling_macs"] is None
    assert "no formula for its multiply-adds" in record.cost["error"]
    assert "not known" in capsys.readouterr().err


def test_cost_that_fails_without_a_word_is_unknown():
    import torch

    class Wordless(torch.nn.Linear):
        def forward(self, images):
            raise AssertionError  # as an assert without a text does

    cost = tasks.of(Config()).cost(Wordless(3, 5), [3, 8, 8])
    assert cost["params"] == 4 * 5 and cost["macs"] is None and cost["error"] == "AssertionError"


class Clock:
    """In place of the module ``time``: it goes on when it is told."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_loading_share_is_of_the_seconds_of_training(monkeypatch):
    clock = Clock()
    for module in (order, callbacks):
        monkeypatch.setattr(module, "time", clock)

    class Slow(list):
        def __getitem__(self, index):
            clock.now += 3
            return super().__getitem__(index)

    def epoch(throughput):
        loader = order.ResumingLoader(Slow(range(5)), batch_size=None)
        trainer = SimpleNamespace(train_dataloader=loader, world_size=1)
        throughput.on_train_epoch_start(trainer)
        for _ in loader:
            clock.now += 2
            throughput.on_train_batch_end(trainer, None, None, ([0] * 7, [0] * 7))

    throughput = callbacks.Throughput(lambda batch: len(batch[1]))
    epoch(throughput)
    epoch(throughput)
    expected = {"train_images_per_second": 1.4, "eval_images_per_second": None, "loading_share": 0.6}
    assert throughput.rates() == expected
    resumed = callbacks.Throughput(lambda batch: len(batch[1]))
    resumed.load_state_dict(throughput.state_dict())
    epoch(resumed)
    assert resumed.rates() == expected and resumed.state_dict()["waited"] == 3 * 4 * 3
    older = callbacks.Throughput(lambda batch: len(batch[1]))
    older.load_state_dict({"seconds": {"train": 1.0, "eval": 1.0}, "images": {"train": 5, "eval": 5}})
    assert older.rates() == {"train_images_per_second": 5, "eval_images_per_second": 5, "loading_share": None}
