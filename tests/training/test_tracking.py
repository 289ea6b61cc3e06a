"""What W&B is told, without a network: offline runs, and a stand-in for its logger."""

import os
import re
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import Logger
from training_cases import STEPS, TINY, PowerCut, tiny

from dk_bench.cli import main
from dk_bench.processes.interrupts import Interrupted, interrupts
from dk_bench.runs.early_stop import leave_reason
from dk_bench.runs.record import find_records, read_record
from dk_bench.runs.wandb_records import RECORD_FILE
from dk_bench.training import read_checkpoint, run_folder, train
from dk_bench.training.opening import name_run

SHORT = ("optim.epochs=2", "optim.warmup_epochs=1")


class Experiment:
    """Keeps what a W&B run is given."""

    def __init__(self, sweeps, folder):
        self.config, self.summary, self.exit_code = dict(sweeps), {}, None
        self.dir, self.saved, self.preempting = folder / "files", [], False

    def save(self, path, base_path, policy, glob):
        assert (Path(base_path), policy, glob) == (self.dir, "now", False)
        self.saved.append((Path(path).name, read_record(path)))

    def mark_preempting(self):
        assert self.exit_code is None
        self.preempting = True

    def finish(self, exit_code=0):
        self.exit_code = exit_code


class FakeWandb(Logger):
    """In place of Lightning's WandbLogger."""

    made = []
    of_the_sweep = {}

    def __init__(self, **settings):
        super().__init__()
        self.settings, self.metrics = settings, []
        self.experiment = Experiment(self.of_the_sweep, settings["save_dir"])
        self.made.append(self)

    name, version = "fake", "0"

    def log_metrics(self, metrics, step=None):
        self.metrics.append(metrics)

    def log_hyperparams(self, params, *_, **__):
        locked = self.of_the_sweep.keys() & params.keys()
        assert not locked, f"locked by the sweep: {locked}"
        self.experiment.config |= params


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", FakeWandb)
    monkeypatch.setattr(FakeWandb, "made", [])
    return FakeWandb


def test_agent_of_a_sweep_gets_an_online_run_of_its_own(wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    monkeypatch.setattr(wandb, "of_the_sweep", {"optim.epochs": 2})
    config = tiny(tmp_path, *SHORT)
    assert config.wandb.mode == "disabled"
    record = train(config)
    (logger,) = wandb.made
    assert logger.settings == {"save_dir": run_folder(config), "offline": False}  # no id, name or project
    assert logger.experiment.config["optim.lr"] == 0.05 and logger.experiment.exit_code == 0
    assert logger.experiment.summary["val/top1"] == record.metrics["final"]["val/top1"]
    # The same cell once more: nothing is trained, and the agent's new run has its metric all the same.
    train(config, callbacks=[PowerCut(0)])
    again = wandb.made[1]
    assert [metrics["val/top1"] for metrics in again.metrics] == [e["val/top1"] for e in record.metrics["epochs"]]
    assert again.experiment.summary == logger.experiment.summary and again.experiment.exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_sweep_learns_of_a_run_that_its_job_had_to_stop(wandb, monkeypatch, tmp_path, number):
    class Warn(pl.Callback):
        def on_train_batch_start(self, *_):
            os.kill(os.getpid(), number)

    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    with pytest.raises(KeyboardInterrupt, match=f"interrupted by {number.name}"):
        train(tiny(tmp_path, *SHORT), callbacks=[Warn()])
    (logger,) = wandb.made
    assert logger.experiment.preempting == (number == signal.SIGUSR1) and logger.experiment.exit_code == 1
    assert logger.experiment.summary == {"error": f"interrupted by {number.name}"}


@pytest.mark.parametrize("asked", [True, False])
def test_wandbs_process_that_a_signal_has_ended_keeps_no_step_from_its_checkpoint(wandb, monkeypatch, tmp_path, asked):
    """The last step of an epoch, after which there are metrics to log before the checkpoint."""

    class Gone(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == STEPS - 1:
                refuses.append(True)
                if asked:
                    os.kill(os.getpid(), signal.SIGTERM)

    def refuse(*_, **__):
        raise ConnectionResetError("Connection lost")

    log = FakeWandb.log_metrics
    monkeypatch.setattr(wandb, "log_metrics", lambda self, *args, **kwargs: (refuse if refuses else log)(self, *args))
    refuses = []
    config = tiny(tmp_path, *SHORT, "wandb.mode=offline")
    with pytest.raises(KeyboardInterrupt if asked else ConnectionResetError):
        train(config, callbacks=[Gone()])
    left = run_folder(config) / "last.ckpt"
    assert left.exists() == asked and (not asked or read_checkpoint(left)["global_step"] == STEPS)


def test_without_an_agent_the_configuration_decides(wandb, tmp_path):
    train(tiny(tmp_path, *SHORT))
    assert not wandb.made
    config = tiny(tmp_path, *SHORT, "seed=1", "wandb.mode=online", "wandb.project=mine")
    record = train(config)
    settings = wandb.made[0].settings
    assert (settings["id"], settings["project"], settings["offline"]) == (record.run_id, "mine", False)


def test_metrics_rates_and_figures(wandb, tmp_path):
    config = tiny(tmp_path, *SHORT, "wandb.mode=offline")
    record = train(config)
    (logger,) = wandb.made
    values = logger.experiment.config
    assert values["optim.epochs"] == 2 and values["model.name"] == "test_resnetdw_dk" and "config" not in values
    rates = [metrics for metrics in logger.metrics if any(name.startswith("lr-") for name in metrics)]
    base = [rate["lr-SGD/base"] for rate in rates]
    offsets = [rate["lr-SGD/offset"] for rate in rates]
    assert len(rates) == 2 and max(base) > 0 and offsets == pytest.approx([rate / 100 for rate in base])
    summary = logger.experiment.summary
    assert {key: summary[key] for key in ("val/top1", "val/loss")} == {
        key: record.metrics["final"][key] for key in ("val/top1", "val/loss")
    }
    assert summary["macs"] == record.cost["macs"] and summary["train_images_per_second"] > 0
    saved = logger.experiment.saved
    assert [(name, record.status) for name, record in saved] == [(RECORD_FILE, "running"), (RECORD_FILE, "finished")]
    assert saved[-1][1] == read_record(run_folder(config) / "record.json")


def test_failed_run_has_no_figures_in_its_summary(wandb, tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(tmp_path, *SHORT, "wandb.mode=offline"), callbacks=[PowerCut(4)])
    (logger,) = wandb.made
    assert logger.experiment.summary == {"error": "RuntimeError: power cut"} and logger.experiment.exit_code == 1


class Asked(pl.Callback):
    """Asks the run to stop ahead of a step, as a sweep's runner does, which may leave a reason first."""

    def __init__(self, folder, why=None):
        self.folder, self.why = folder, why

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == STEPS + 1:
            if self.why:
                leave_reason(self.folder, self.why)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("why", ["stopped by early_terminate at epoch 1", None])
def test_record_of_a_run_that_is_stopped_early_is_the_folders_at_wandb_too(wandb, tmp_path, why):
    config = tiny(tmp_path, *SHORT, "wandb.mode=offline")
    folder = run_folder(config)
    folder.mkdir()
    leave_reason(folder, "of an attempt before")
    with interrupts(), pytest.raises(Interrupted):
        train(config, callbacks=[Asked(folder, why)])
    record = read_record(folder / "record.json")
    assert (record.status, record.error) == (("stopped", why) if why else ("failed", "interrupted by SIGTERM"))
    experiment = wandb.made[0].experiment
    assert experiment.saved[-1] == (RECORD_FILE, record)
    assert (experiment.summary, experiment.exit_code) == ({"error": record.error}, 1)


class Unreachable(FakeWandb):
    """Says, when its run is to be started, that it cannot be."""

    experiment = property(lambda self: self.tried(), lambda self, value: None)
    tries = 0

    def tried(self):
        type(self).tries += 1
        raise RuntimeError(f"no server, try {self.tries}")


def test_wandb_that_does_not_start_fails_the_run_once(monkeypatch, tmp_path):
    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", Unreachable)
    config = tiny(tmp_path, *SHORT, "wandb.mode=offline")
    with pytest.raises(RuntimeError, match="no server, try 1"):
        train(config)
    assert read_record(run_folder(config) / "record.json").error == "RuntimeError: no server, try 1"


def test_wandb_that_does_not_end_hides_no_failure(wandb, monkeypatch, tmp_path, capsys):
    def finish(self, exit_code=0):
        raise OSError("connection lost")

    monkeypatch.setattr(Experiment, "finish", finish)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(tmp_path, *SHORT, "wandb.mode=offline"), callbacks=[PowerCut(4)])
    assert "W&B's run could not be ended: OSError: connection lost" in capsys.readouterr().err


def test_failure_before_there_is_a_logger_ends_the_agents_run(wandb, monkeypatch, tmp_path, capsys):
    made = []

    def init():
        made.append(Experiment({}, tmp_path))
        return made[-1]

    monkeypatch.setattr("wandb.init", init)
    command = ["train", str(tmp_path / "none.yaml"), f"output={tmp_path}"]
    assert main(command) == 2 and not made  # no sweep waits for it
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    monkeypatch.setattr("dk_bench.training.wandb_tracking._logged", False)
    assert main(command) == 2
    (run,) = made
    assert "none.yaml" in run.summary["error"] and run.exit_code == 1
    # One that fails later has told by its logger.
    (tmp_path / "config.yaml").write_text("")
    late = ["train", str(tmp_path / "config.yaml"), *TINY, *SHORT, f"output={tmp_path}"]
    monkeypatch.setattr("dk_bench.training.run.fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(late)
    assert len(wandb.made) == len(made) == 1


def test_wandb_itself_takes_it(tmp_path, monkeypatch):
    """Not the stand-in: an offline run of W&B's client."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen = {}

    class Look(pl.Callback):
        def on_train_end(self, trainer, *_):
            seen.update(dict(trainer.logger.experiment.config), summary=trainer.logger.experiment.summary)

    config = tiny(tmp_path, *SHORT, "wandb.mode=offline")
    record = train(config, callbacks=[Look()])
    assert seen["optim.lr"] == 0.05 and seen["data.augment.flip"] == 0.5 and "config" not in seen
    assert read_record(run_folder(config) / "record.json").status == record.status == "finished"
    assert len(find_records([tmp_path])) == 1  # the one that W&B keeps is no other run's
    assert list(tmp_path.rglob(RECORD_FILE))


@pytest.mark.parametrize("name", ["a/b", "a/b:%20&", "x-s1/"])
def test_run_is_called_what_wandb_takes_whatever_its_name(tmp_path, name):
    folder = run_folder(tiny(tmp_path, f"name={name}", "seed=3"))
    assert re.fullmatch("[0-9a-f]{12}-s3-[0-9a-f]{8}", name_run(folder, None, None))
