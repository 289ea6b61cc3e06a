"""dk-bench replay: a record's making then and now, and the same run again with the same metrics."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml
from training_cases import EPOCHS, TINY

import dk_bench
from dk_bench.cli import main
from dk_bench.cli import replay as command_line
from dk_bench.runs.record import find_records, read_record, write_record
from dk_bench.sweep import replay
from dk_bench.sweep.replay import compare_metrics

CLEAN = {"commit": "a" * 40, "dirty": False}
OUTPUT = Path("runs/replay")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a configuration file and the record of a run, as if of clean code."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "tiny.yaml").write_text("name: tiny\noptim: {weight_decay: 0.001}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", *TINY, "output=runs", "data.procedural.bend=0.5"]) == 0
        (path,) = find_records([folder])
        write_record(of_clean_code(read_record(path)), "record.json")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder without the run's own, as the working folder, and clean code now."""
    for name in ("tiny.yaml", "record.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replay, "collect_git", lambda: CLEAN)
    return tmp_path


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the command here, without half a minute of imports for each; in the job of a cluster, of which the replay is
    no rank."""
    monkeypatch.setenv("SLURM_PROCID", "1")

    class Here:
        def __init__(self, argv, env):
            assert argv[:3] == [sys.executable, "-m", "dk_bench"] and "SLURM_PROCID" not in env
            self.status = main(argv[3:])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def wait(self):
            return self.status

    monkeypatch.setattr(command_line, "subprocess", types.SimpleNamespace(Popen=Here))


def of_clean_code(record):
    return dataclasses.replace(record, git=CLEAN, attempts=[attempt | {"git": CLEAN} for attempt in record.attempts])


def change(**changes):
    """Changes fields of the record."""
    path = Path("record.json")
    write_record(dataclasses.replace(read_record(path), **changes), path)


def test_record_is_shown(here, capsys):
    record = read_record("record.json")
    others = {"torch": "1.0", "dk_bench": "0.0"}
    change(command=[*record.command, "name=two words"], versions=record.versions | others)
    assert main(["replay", "record.json"]) == 0
    shown = capsys.readouterr().out
    assert f"command: {shlex.join(record.command)} 'name=two words'\n" in shown
    configuration = shown.partition("configuration:\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(configuration) == record.config
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert rows["commit"].split() == ["commit", "a" * 40, "a" * 40]
    assert rows["uncommitted changes"].split()[2:] == ["no", "no"]
    assert rows["torch"].split()[1] == "1.0" and rows["torch"].endswith("  differs")
    assert rows["dk_bench"].split()[1:] == ["0.0", dk_bench.__version__, "differs"]
    assert rows["timm"].split() == ["timm", record.versions["timm"], record.versions["timm"]]
    again = [argument for argument in record.command if not argument.startswith("output=")]
    assert shown.endswith(f"again: {shlex.join(again)} 'name=two words' output={OUTPUT / record.run_id}\n")
    assert not OUTPUT.exists()


def test_replay_gives_the_same_metrics(here, capfd):
    record = read_record("record.json")
    change(versions=record.versions | {"dk_bench": "0.0"})
    before = Path("record.json").read_bytes()
    assert main(["replay", "record.json", "--run"]) == 0
    printed = capfd.readouterr()
    compared = 6 * EPOCHS + 6  # epoch, two losses, top-1, top-5 and learning rate
    (path,) = find_records(["runs"])
    again, record_line, _, *said = printed.out.splitlines()[-5:]
    assert again.startswith("again: ") and record_line == f"record: {path}"  # what it says, then what the run says
    assert said == ["finished then, finished now", f"{compared} of {compared} metrics are equal to the last bit"]
    assert f"epoch {EPOCHS}/{EPOCHS}" in printed.err
    assert path.is_relative_to(OUTPUT / record.run_id) and Path("record.json").read_bytes() == before
    replayed = read_record(path)
    assert replayed.run_id != record.run_id and replayed.config_hash == record.config_hash
    assert replayed.command[-1] == f"output={OUTPUT / record.run_id}" and replayed.versions == record.versions


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"git": {"commit": "b" * 40, "dirty": False}}, f"commit: {'b' * 40} then, {'a' * 40} now"),
        ({"git": CLEAN | {"dirty": True}}, "its code had changes that no commit holds"),
        ({"git": {"commit": None, "dirty": None}}, "nobody knows the commit of its code"),
        ({"versions": {"torch": "1.0"}}, "torch: 1.0 then, "),
        ({"versions": {"mmcv-lite": "1.0"}}, "mmcv-lite: 1.0 then, none now"),
    ],
)
def test_other_code_is_refused(here, capsys, fault, words):
    change(attempts=[], **fault)
    assert main(["replay", "record.json", "--run"]) == 2
    assert words in (error := capsys.readouterr().err) and "--force runs it all the same" in error
    assert not OUTPUT.exists()


def test_changes_now_are_refused(here, capsys, monkeypatch):
    monkeypatch.setattr(replay, "collect_git", lambda: CLEAN | {"dirty": True})
    assert main(["replay", "record.json", "--run"]) == 2
    assert "uncommitted changes: no then, yes now" in capsys.readouterr().err


def test_attempts_of_several_commits_are_refused(here, capsys):
    attempts = read_record("record.json").attempts
    change(attempts=[attempts[0] | {"git": CLEAN | {"commit": "c" * 40}, "status": "failed"}, *attempts])
    assert main(["replay", "record.json", "--run"]) == 2
    assert "it was resumed under another commit" in capsys.readouterr().err


def test_configuration_that_has_changed_is_refused(here, capsys):
    Path("tiny.yaml").write_text("name: tiny\noptim: {weight_decay: 0.002}\ndata: {workers: 3}\n")
    assert main(["replay", "record.json", "--run"]) == 2
    printed = capsys.readouterr()
    assert "would not be the same run: optim.weight_decay: 0.001 then, 0.002 now. --force" in printed.err
    assert any(line.split() == ["optim.weight_decay", "0.001", "0.002", "differs"] for line in printed.out.splitlines())
    assert main(["replay", "record.json", "seed=1", "optim.weight_decay=0.001", "--run"]) == 2
    assert "would not be the same run: seed: 0 then, 1 now. --force" in capsys.readouterr().err


def test_forced_replay_tells_what_came_out_otherwise(here, capsys, in_this_process):
    Path("tiny.yaml").write_text("name: tiny\noptim: {weight_decay: 0.002}\n")
    assert main(["replay", "record.json", "--run", "--force"]) == 1
    shown = capsys.readouterr().out
    final = read_record("record.json").metrics["final"]
    assert f"  final: val/loss {final['val/loss']} then, " in shown and "finished then, finished now" in shown


def test_record_elsewhere(here, capsys, in_this_process):
    """Of another machine: the record holds the ends of paths alone."""
    record = read_record("record.json")
    _, _, _, *arguments = record.command
    change(command=["dk-bench", "train", ".../of/tiny.yaml", *arguments, "data.root=.../mine/images"])
    assert main(["replay", "record.json"]) == 0
    shortened = "the record holds the end of that path alone; give"
    assert f"cannot be run here: data.root=.../mine/images: {shortened} it as KEY=VALUE" in capsys.readouterr().out
    assert main(["replay", "record.json", "--run", "--force"]) == 2
    assert main(["replay", "record.json", "data.root=here", "--run"]) == 2
    assert f".../of/tiny.yaml: {shortened} --config FILE" in capsys.readouterr().err
    again = ["replay", "record.json", "data.root=here", "--config", "tiny.yaml", "--output", "again"]
    assert main([*again, "--run"]) == 0
    assert "metrics are equal to the last bit" in capsys.readouterr().out
    (path,) = find_records(["again"])
    assert read_record(path).command == [
        "dk-bench",
        "train",
        "tiny.yaml",
        *arguments[:-2],
        arguments[-1],
        "data.root=here",
        "output=again",
    ]
    before = path.read_bytes()
    assert main([*again, "--run"]) == 2
    assert "was replayed there already" in capsys.readouterr().err
    assert main(["replay", str(path), "--output", "again", "--run", "--force"]) == 2
    assert "the run itself, which a replay leaves alone" in capsys.readouterr().err
    assert main(["replay", "record.json", "data.root=here", "seed=5", *again[3:], "--run", "--force"]) == 2
    assert "another run; expected an --output without runs" in capsys.readouterr().err
    assert path.read_bytes() == before and len(find_records(["again"])) == 1


def test_other_instruction_sets_are_named(here, capsys, in_this_process):
    record = read_record("record.json")
    sets = record.device["instruction_sets"]
    metrics = record.metrics | {"final": record.metrics["final"] | {"val/loss": 0.0}}
    change(device=record.device | {"instruction_sets": sets | {"oneDNN": "SSE"}}, metrics=metrics)
    assert main(["replay", "record.json", "--run"]) == 1  # it does not keep the run from being the same
    shown = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert rows["instruction set of oneDNN"].split()[4] == "SSE"
    assert rows["instruction set of oneDNN"].endswith("  differs")
    assert not rows["instruction set of torch"].endswith("differs")
    words = f"another draw of the run: instruction set of oneDNN: SSE then, {sets['oneDNN']} now"
    assert words in shown and "instruction set of MKL: " not in shown


def test_metrics_that_differ_fail(here, capsys, in_this_process):
    metrics = read_record("record.json").metrics
    metrics["epochs"][1]["val/loss"] *= 1 + 1e-15
    metrics["epochs"][2]["seconds"] += 1
    change(metrics=metrics)
    assert main(["replay", "record.json", "--run"]) == 1
    shown = capsys.readouterr().out
    assert f"  epoch 1: val/loss {metrics['epochs'][1]['val/loss']} then, " in shown
    assert f"{6 * EPOCHS + 5} of {6 * EPOCHS + 6} metrics are equal to the last bit" in shown


def test_cut_replay_goes_on(here, capsys, in_this_process, monkeypatch):
    run_id = read_record("record.json").run_id
    from training_cases import PowerCut

    from dk_bench.config import load_config
    from dk_bench.training import train

    config = load_config("tiny.yaml", [*TINY, f"output={OUTPUT / run_id}", "data.procedural.bend=0.5"])
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(7)])
    assert main(["replay", "record.json", "--run"]) == 0
    (path,) = find_records([OUTPUT])
    assert [attempt["status"] for attempt in read_record(path).attempts] == ["failed", "finished"]


def test_replay_that_fails(here, capsys, in_this_process):
    change(command=[*read_record("record.json").command, "trainer.accelerator=abacus"])
    assert main(["replay", "record.json", "--run"]) == 1
    assert "the replay left no record: exit status 2" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["dk-bench", "eval", "last.ckpt"], ["my.py"], [], ["dk-bench", "train"]])
def test_record_of_another_command_is_shown_only(here, capsys, command):
    change(command=command)
    assert main(["replay", "record.json"]) == 0
    assert "expected `dk-bench train CONFIG`" in capsys.readouterr().out
    assert main(["replay", "record.json", "--run", "--force"]) == 2


def test_bad_input_is_named(here, capsys):
    assert main(["replay", "none.json"]) == 2
    assert main(["replay", "record.json", "output=elsewhere", "--run"]) == 2
    assert "output=elsewhere: a replay goes to another folder, which --output names" in capsys.readouterr().err
    Path("tiny.yaml").unlink()
    assert main(["replay", "record.json", "--run"]) == 2
    assert "tiny.yaml: no configuration can be read there" in capsys.readouterr().err


def test_nothing_of_the_record_is_compared_with_nothing():
    record = read_record_of({"epochs": [{"epoch": 0, "val/top1": 1.0, "seconds": 2.0}], "final": {}})
    assert compare_metrics(record, read_record_of({"epochs": [], "final": {}})) == (
        2,
        ["epoch 0: epoch 0 then, None now", "epoch 0: val/top1 1.0 then, None now"],
    )
    assert compare_metrics(read_record_of({"epochs": [], "final": {}}), record) == (0, [])


def read_record_of(metrics):
    from table_cases import make_record

    return dataclasses.replace(make_record("a"), metrics=json.loads(json.dumps(metrics)))


def test_detector_comes_out_the_same(tmp_path, monkeypatch, capsys, in_this_process):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from detection_cases import tiny_file

    monkeypatch.chdir(tmp_path)
    config = tiny_file(tmp_path)
    monkeypatch.setattr(replay, "collect_git", lambda: CLEAN)
    assert main(["train", config.name, "train_cfg.max_epochs=1", "param_scheduler=[]", "output=runs"]) == 0
    (path,) = find_records(["runs"])
    write_record(of_clean_code(read_record(path)), path)
    assert main(["replay", str(path), "--run", "--output", "again"]) == 0
    shown = capsys.readouterr().out
    assert "again: dk-bench train tiny.py train_cfg.max_epochs=1 'param_scheduler=[]' output=again" in shown
    assert "finished then, finished now" in shown
    config.write_text(config.read_text().replace("lr=0.05", "lr=0.06"))
    assert main(["replay", str(path), "--run", "--output", "more"]) == 2
    assert "same run: optim_wrapper.optimizer.lr: 0.05 then, 0.06 now. --force" in capsys.readouterr().err


def test_override_takes_the_place_of_its_key_however_that_is_written(here):
    record = read_record("record.json")
    record.command += ["data.mean.1=0.5", "name=try #1", "data.val=.../val"]
    command = replay.replay_command(record, "out", overrides=["data.mean[1]=0.25", "data.val=/data #2"])
    assert command[-4:] == ["name=try #1", "data.mean[1]=0.25", "data.val=/data #2", "output=out"]
    assert replay.resolve([*command, "data.source=procedural"])["data"]["mean"][1] == 0.25
    assert not any(word.startswith("data.mean.1") for word in command)
