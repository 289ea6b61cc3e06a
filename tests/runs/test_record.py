"""Run records: what is written is read back, half files never appear, bad files are named."""

import dataclasses
import json
import math
import os
import subprocess

import pytest
import torch

from dk_bench.errors import UserError
from dk_bench.runs import hardware
from dk_bench.runs.environment import collect_git, collect_versions, portable
from dk_bench.runs.hardware import collect_device, collect_hardware
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import RunRecord, find_records, new_record, read_record, write_record

CONFIG = {"seed": 1, "output": "runs", "name": "a", "wandb": {"mode": "offline"}, "optim": {"lr": 0.1, "epochs": 2}}


def make_record(**changes) -> RunRecord:
    record = new_record(
        name="test", config=CONFIG, model={"name": "resnet50dw"}, data={"name": "procedural"}, seed=1, device="cpu"
    )
    return dataclasses.replace(record, **changes)


def test_written_record_is_read_back(tmp_path):
    record = make_record(status="finished", metrics={"epochs": [{"epoch": 0, "val/top1": 12.5}], "final": {}})
    path = write_record(record, tmp_path / "deep" / "record.json")
    assert read_record(path) == record
    assert os.listdir(path.parent) == ["record.json"]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_crash_while_writing_leaves_the_old_record(tmp_path, monkeypatch, broken):
    path = write_record(make_record(), tmp_path / "record.json")
    before = path.read_bytes()

    def crash(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, crash)
    with pytest.raises(OSError, match="No space"):
        write_record(make_record(status="finished"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["record.json"]


def test_non_finite_numbers_become_null(tmp_path):
    metrics = {"epochs": [{"train/loss": math.nan, "lr": 0.1}], "final": {"val/loss": math.inf}}
    path = write_record(make_record(metrics=metrics), tmp_path / "record.json")
    read = read_record(path).metrics
    assert read == {"epochs": [{"train/loss": None, "lr": 0.1}], "final": {"val/loss": None}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("seed"), "missing field seed"),
        (lambda c: c.update(schema_version=99), "schema_version is 99"),
        (lambda c: c.pop("schema_version"), "schema_version is None"),
        (lambda c: c.update(extra=1), "unknown field extra"),
        (lambda c: c.update(status="done"), "status is 'done'"),
        (lambda c: c.update(seed="1"), "seed is str"),
        (lambda c: c.update(error=3), "error is int"),
        (lambda c: c["model"].pop("name"), "missing field model.name"),
        (lambda c: c["metrics"].pop("final"), "missing field metrics.final"),
    ],
)
def test_faulty_record_is_named(tmp_path, change, message):
    path = write_record(make_record(), tmp_path / "record.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"run_id": ', "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[]", "a record is a JSON object, this is a list"),
        (b'{"seed": NaN}', "NaN is no JSON value"),
    ],
)
def test_file_that_is_no_record_is_named(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_record(path)


def test_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file"):
        read_record(tmp_path / "none.json")


def test_hash_names_the_cell():
    cell = config_hash(CONFIG)
    reordered = dict(reversed(CONFIG.items()))
    same = CONFIG | {"seed": 2, "output": "/elsewhere", "name": "b", "wandb": {"mode": "disabled"}}
    assert config_hash(reordered) == config_hash(same) == cell
    assert config_hash(CONFIG | {"optim": {"lr": 0.2, "epochs": 2}}) != cell
    assert len(cell) == 12


def test_records_are_found_below_folders(tmp_path):
    expected = [tmp_path / "a" / "record.json", tmp_path / "b" / "x.record.json", tmp_path / "given.json"]
    for path in [*expected, tmp_path / "a" / ".record.json.1.tmp", tmp_path / "a" / "other.json"]:
        write_record(make_record(), path)
    assert find_records([tmp_path, tmp_path / "given.json"]) == sorted(expected)
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        find_records([tmp_path / "nowhere"])


def test_paths_become_portable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    assert portable(f"{here}/runs/a") == "runs/a"
    assert portable(tmp_path / "runs") == "runs"
    assert portable("/data/sets/imagenet/train") == ".../imagenet/train"
    assert portable("/home/someone") == ".../someone"
    assert portable([f"{here}/.venv/bin/dk-bench", f"output={here}/runs"]) == [".venv/bin/dk-bench", "output=runs"]
    assert portable({"a": ("../data", 3, None)}) == {"a": ["../data", 3, None]}
    assert portable("https://example.org/a/b and images/s") == "https://example.org/a/b and images/s"
    assert portable('File "/opt/x/lib/y.py", line 3') == 'File ".../lib/y.py", line 3'
    one, other = (portable({"checkpoint": f"/data/{name}/w/m.ckpt"}, distinct=True)["checkpoint"] for name in "xy")
    assert one != other and one.startswith(".../") and one.endswith("/w/m.ckpt") and "data" not in one
    assert portable(one, distinct=True) == one and portable(f"{here}/runs/a", distinct=True) == "runs/a"
    spaced = tmp_path.parent / "with space" / "my images"
    spaced.mkdir(parents=True)
    assert portable(str(spaced)) == ".../with space/my images"


def test_record_holds_no_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = new_record(
        name="test",
        config={"output": str(tmp_path), "data": {"train": "/secret/place/of/mine/train.tar"}},
        model={"name": "m"},
        data={"name": "d", "root": "/secret/place/of/mine"},
        seed=0,
        command=[f"{tmp_path}/bin/dk-bench", "train", "data.train=/secret/place/of/mine/train.tar"],
    )
    record.error = "FileNotFoundError: '/secret/place/of/mine/train.tar'"
    text = write_record(record, "record.json").read_text()
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert ".../mine/train.tar" in text


def test_environment_is_known():
    assert {"python", "torch", "timm"} <= collect_versions().keys()
    device = collect_device("cpu")
    assert device["type"] == "cpu" and device["name"] and device["threads"] >= 1


def test_hardware_is_known():
    found = collect_hardware("cpu", devices=2)
    assert found["devices"] == 2 and found["processor"]["name"] == found["name"] and "cuda" not in found
    assert found["instruction_sets"].keys() == {"torch", "dk_bench", "oneDNN", "MKL"}
    assert found["instruction_sets"]["torch"] == torch.backends.cpu.get_cpu_capability()
    json.dumps(found)


def test_hardware_of_a_gpu(monkeypatch, tmp_path):
    """As torch tells of one, which need not be there."""
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27\nGCC 12\n")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hardware, "collect_device", lambda device: {"type": "cuda", "name": "NVIDIA H100"})
    found = collect_hardware("cuda:0")["cuda"]
    assert (found["driver"], found["capability"], found["runtime"]) == ("580.82.07", "9.0", torch.version.cuda)
    assert found["float32_products"] == "float32" and found["deterministic"] is False
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "none")
    found = hardware.cuda_settings("cuda:0")
    assert found["float32_products"] == "tf32" and found["driver"] is None


def test_git_state(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    assert collect_git(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    assert collect_git(tmp_path) == {"commit": None, "dirty": None}  # no commit yet
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.md").write_text("old\n")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "results" / "table.md").write_text("new\n")  # made by runs, not by people
    os.utime(tmp_path / "code.py", (0, 0))  # for which git's own status writes its index anew, under a lock
    index = (tmp_path / ".git" / "index").read_bytes()
    assert collect_git(tmp_path) == {"commit": commit, "dirty": False}
    assert (tmp_path / ".git" / "index").read_bytes() == index
    (tmp_path / "code.py").write_text("a = 2\n")
    assert collect_git(tmp_path) == {"commit": commit, "dirty": True}
