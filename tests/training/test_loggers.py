"""Loggers beside W&B's: what they write in a run's folder, also of a run that was cut off, and checkpoints at W&B."""

import csv
import importlib
import json
import os

import pytest
import yaml
from detection_cases import tiny_detection
from new_python import run_new_python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_tracking import wandb  # noqa: F401  (a fixture)
from training_cases import PowerCut, tiny
from wandb_server import serve

from dk_bench.cli import main
from dk_bench.config import to_dict
from dk_bench.errors import UserError
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import final_figures, read_record
from dk_bench.training import run_folder, train

SHORT = ("optim.epochs=2", "optim.warmup_epochs=1", "trainer.checkpoint_every_n_steps=1")
CLOCKS = "seconds images_per_second loading_share".split()


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Two runs of each logger, one of them cut off at a step: logger -> [(run's folder, record)]."""
    runs = {}
    for kind in ("csv", "tensorboard"):
        runs[kind] = []
        for name, cuts in (("whole", []), ("cut", [4])):
            config = tiny(tmp_path_factory.mktemp(kind), *SHORT, f"logger={kind}", f"name={name}")
            for step in cuts:
                with pytest.raises(RuntimeError, match="power cut"):
                    train(config, callbacks=[PowerCut(step)])
            runs[kind].append((run_folder(config), train(config)))
    return runs


def rows(folder):
    """The table's rows without what the clock says, a row as its names and texts; no field is empty."""
    with open(folder / "csv" / "metrics.csv", newline="") as stream:
        found = list(csv.DictReader(stream))
    return [{name: t for name, t in row.items() if t and not name.endswith(tuple(CLOCKS))} for row in found]


def scalars(folder):
    """What TensorBoard shows of a run, without what the clock says: name -> [(step, value)]."""
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    names = [name for name in shown.Tags()["scalars"] if not name.endswith(tuple(CLOCKS))]
    return {name: [(event.step, event.value) for event in shown.Scalars(name)] for name in names}


def test_a_table_holds_every_epoch_and_the_figures_of_the_end(logged):
    folder, record = logged["csv"][0]
    table = rows(folder)
    top1 = [float(row["val/top1"]) for row in table if "val/top1" in row]
    assert top1 == [epoch["val/top1"] for epoch in record.metrics["epochs"]] and len(top1) == 2
    assert [int(row["step"]) for row in table] == sorted(int(row["step"]) for row in table)
    last = {name: float(text) for name, text in table[-1].items()}
    figures = {f"final/{name}": value for name, value in final_figures(record).items()}
    assert last == {name: figures[name] for name in figures if not name.endswith(tuple(CLOCKS))} | {"step": 6}


def test_a_run_that_was_cut_off_goes_on_in_its_log(logged):
    (whole, _), (cut, record) = logged["csv"]
    assert len(record.attempts) == 2 and rows(cut) == rows(whole)
    assert [path.name for path in sorted((cut / "csv").iterdir())] == ["hparams.yaml", "metrics.csv"]
    (whole, _), (cut, record) = logged["tensorboard"]
    assert len(record.attempts) == 2 and scalars(cut) == scalars(whole)


def test_tensorboard_shows_what_the_table_holds(logged):
    table, shown = rows(logged["csv"][0][0]), scalars(logged["tensorboard"][0][0])
    assert shown.keys() == {name for row in table for name in row} - {"step"}
    for name, points in shown.items():
        pairs = [(int(row["step"]), float(row[name])) for row in table if name in row]
        assert [step for step, _ in points] == [step for step, _ in pairs]
        assert [value for _, value in points] == pytest.approx([value for _, value in pairs])


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_hyperparameters_have_their_dotted_keys(logged, kind):
    for folder, _ in logged[kind]:
        values = yaml.safe_load((folder / kind / "hparams.yaml").read_text())
        assert (values["optim.epochs"], values["model.name"]) == (2, "test_resnetdw_dk") and "config" not in values
    pages = EventAccumulator(str(logged["tensorboard"][0][0] / "tensorboard")).Reload().summary_metadata
    assert "_hparams_/session_start_info" in pages


def test_a_table_that_is_being_written_again_is_not_lost(logged, tmp_path):
    """A process that is killed as it goes on leaves the rows under another name."""
    config = tiny(tmp_path, *SHORT, "logger=csv", "name=whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(4)])
    table = run_folder(config) / "csv" / "metrics.csv"
    half = table.read_text() + "0,0.1"
    table.with_name("metrics.before.csv").write_text(half)
    table.write_text("step\n")
    train(config)
    assert rows(run_folder(config)) == rows(logged["csv"][0][0])


def test_detectors_have_the_same_loggers(tmp_path):
    config = tiny_detection(tmp_path, "train_cfg.max_epochs=1", "logger=csv")
    record = train(config)
    (table,) = tmp_path.rglob("metrics.csv")
    last = rows(table.parents[1])[-1]
    assert float(last["final/val/mAP"]) == record.metrics["final"]["val/mAP"]
    other = tiny_detection(tmp_path, "train_cfg.max_epochs=1", "logger=none")
    assert config_hash(config.to_dict()) == config_hash(other.to_dict()) == record.config_hash


def test_no_logger_leaves_the_record_alone(tmp_path, wandb):  # noqa: F811
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0", "logger=none", "wandb.mode=offline")
    assert train(config).status == "finished" and not wandb.made
    assert sorted(path.name for path in run_folder(config).iterdir()) == ["last.ckpt", "record.json", "run.lock"]


def test_the_agent_of_a_sweep_has_wandb_whatever_the_configuration_says(tmp_path, wandb, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0", "logger=csv")
    record = train(config)
    (logger,) = wandb.made
    assert logger.experiment.summary["val/top1"] == record.metrics["final"]["val/top1"]
    assert not list(tmp_path.rglob("metrics.csv"))
    said = "logger=csv does not count here: W&B's agent waits for the metric at W&B"
    assert capsys.readouterr().err.splitlines().count(said) == 1


def test_tensorboard_that_is_not_there(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("tensorb") else find(name))
    (tmp_path / "config.yaml").write_text("")
    assert main(["train", str(tmp_path / "config.yaml"), "logger=tensorboard", f"output={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "dk-bench train: key 'logger' is 'tensorboard', which needs the package tensorboard: "
        "pip install 'dk_bench[loggers]'"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=tb"], "logger=tb: key 'logger' is 'tb', expected one of wandb, tensorboard, csv, none"),
        (["wandb.log_model=al"], "key 'wandb.log_model' is 'al', expected true or false or all"),
        (["wandb.log_model=all"], "key 'wandb.log_model' is 'all', expected false, or wandb.mode=online"),
        (["wandb.mode=online", "wandb.log_model=true", "logger=csv"], "key 'logger' is 'csv', expected wandb where"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        tiny(tmp_path, *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(("setting", "versions"), [("true", 1), ("all", 2)])
def test_checkpoints_are_artifacts_of_wandb(tmp_path, setting, versions):
    """W&B's own client sends last.ckpt, at the end or each time, to a server on this machine; in a process of its own,
    as the client keeps to the settings that it began with."""
    online = ("wandb.mode=online", f"wandb.log_model={setting}")
    config = tiny(tmp_path, "optim.epochs=2", "optim.warmup_epochs=1", *online)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    with serve() as server:
        settings = {"BASE_URL": server.url, "API_KEY": "a" * 40, "CONFIG_DIR": str(tmp_path / "config")}
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        env |= {f"WANDB_{key}": value for key, value in settings.items()} | {"no_proxy": "127.0.0.1"}
        done = run_new_python(["-m", "dk_bench", "train", tmp_path / "config.yaml"], env=env)
        assert done.returncode == 0, done.stderr
    record = read_record(run_folder(config) / "record.json")
    *_, last = kept = list(server.artifacts.values())
    assert len(kept) == versions and all(artifact.is_committed for artifact in kept)
    assert (last.name, last.kind, last.aliases) == (f"model-{record.run_id}", "model", ["latest"])
    assert last.files["model.ckpt"] == (run_folder(config) / "last.ckpt").read_bytes()
    assert "model.ckpt" in json.loads(last.files["wandb_manifest.json"])["contents"]
    assert last.metadata["original_filename"] == "last.ckpt"
    assert server.runs[record.run_id].state == "finished"
