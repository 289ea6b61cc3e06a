"""A sweep with W&B's own clients, from `wandb sweep` to the table, against a server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb as wandb_package
import yaml
from training_cases import TINY
from wandb_server import ENTITY, serve

from dk_bench.cli import main
from dk_bench.config import load_config, to_dict
from dk_bench.runs.record import find_records, read_record
from dk_bench.runs.wandb_records import RECORD_FILE

HUGE = 1.0e30  # a learning rate that makes the loss NaN


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The server after `wandb sweep` and `wandb agent`, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("swept")
    config = load_config(None, [*TINY, "optim.epochs=1", "optim.warmup_epochs=0"])
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    sweep = {
        "program": "dk-bench",
        "command": ["dk-bench", "train", "config.yaml", "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "val/top1", "goal": "maximize"},
        "parameters": {"optim.lr": {"values": [0.05, HUGE]}, "seed": {"value": 3}, "output": {"value": "runs/try"}},
    }
    (folder / "try.yaml").write_text(yaml.safe_dump(sweep))
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        clean = {key: None for key in os.environ if key.startswith("WANDB_")}
        settings = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_CONFIG_DIR": str(folder / "config")}
        for key, value in (clean | settings | {"WANDB_SILENT": "true", "no_proxy": "127.0.0.1"}).items():
            patch.delenv(key) if value is None else patch.setenv(key, value)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        wandb = [sys.executable, "-m", "wandb"]
        run_client([*wandb, "sweep", "--project", "bench", "try.yaml"], folder)
        run_client([*wandb, "agent", f"{ENTITY}/bench/{next(iter(server.sweeps))}"], folder)
        yield server, folder
    wandb_package.teardown()  # else this process's session goes on asking a server that is gone


def run_client(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_runs_run_in_the_grids_order_and_land_with_config_and_summary(swept):
    server, folder = swept
    (sweep,) = server.sweeps.values()
    good, bad = sweep.runs
    assert [run.values()["optim.lr"] for run in sweep.runs] == [0.05, HUGE] and sweep.next_run() is None
    assert (good.state, bad.state) == ("finished", "failed")
    assert good.values()["model.name"] == "test_resnetdw_dk" and good.values()["seed"] == 3
    records = {record.config["optim"]["lr"]: record for record in map(read_record, find_records([folder / "runs"]))}
    final = records[0.05].metrics["final"]
    assert {key: good.summary[key] for key in ("val/top1", "val/loss", "params")} == {
        "val/top1": final["val/top1"],
        "val/loss": final["val/loss"],
        "params": records[0.05].cost["params"],
    }
    assert any("val/top1" in line for line in good.history)  # what the sweep's page draws
    assert "val/top1" not in bad.summary and bad.summary["error"] == records[HUGE].error
    assert "NaN" in bad.summary["error"]


def test_records_are_among_the_runs_files(swept):
    server, folder = swept
    local = sorted(path.read_bytes() for path in find_records([folder / "runs"]))
    assert sorted(run.files[RECORD_FILE] for run in server.runs.values()) == local and len(local) == 2


@pytest.mark.parametrize("path", [f"{ENTITY}/bench/sweep0", f"{ENTITY}/bench"])
def test_tables_from_the_server_are_those_of_the_local_records(swept, path, monkeypatch, tmp_path, capsys):
    server, folder = swept
    monkeypatch.chdir(tmp_path)
    assert main(["tables", str(folder / "runs"), "--output", "local"]) == 0
    assert main(["tables", "--wandb", path]) == 0
    assert "failed" in capsys.readouterr().out
    tables = {file.name: file.read_bytes() for file in Path("local").iterdir()}
    fetched = Path("runs/wandb", path)
    assert tables and {file.name: file.read_bytes() for file in fetched.glob("*.*")} == tables
    assert b"failed" in tables["demo.md"]
    # A run that was deleted on the server does not stay in the table.
    deleted = server.runs.pop(next(iter(server.runs)))
    try:
        assert main(["tables", "--wandb", path]) == 0
        assert len(find_records([fetched])) == 1
    finally:
        server.runs[deleted.name] = deleted


def test_killed_run_counts_as_failed_and_one_without_a_record_is_named(swept, monkeypatch, tmp_path, capsys):
    server, _ = swept
    monkeypatch.chdir(tmp_path)
    good, bad = next(iter(server.sweeps.values())).runs
    record = json.loads(good.files[RECORD_FILE])
    record |= {"status": "running", "ended": None}
    record["attempts"][-1] |= {"status": "running", "ended": None, "process": {"host": "another machine's"}}
    monkeypatch.setitem(good.files, RECORD_FILE, json.dumps(record).encode())
    monkeypatch.delitem(bad.files, RECORD_FILE)
    seen = {}
    for state in ("running", "crashed"):
        monkeypatch.setattr(good, "state", state)
        assert main(["tables", "--wandb", f"{ENTITY}/bench/sweep0"]) == 0
        (path,) = find_records(["runs/wandb"])
        seen[state] = read_record(path)
    assert (seen["running"].status, seen["crashed"].status) == ("running", "failed")
    assert "crashed" in seen["crashed"].error and seen["crashed"].attempts[-1]["status"] == "failed"
    assert f"{bad.name} (failed) has no record" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [("sweep0", "expected ENTITY/PROJECT/SWEEP"), (f"{ENTITY}/bench/none", f"{ENTITY}/bench/none: W&B does not")],
)
def test_what_is_no_sweep_is_one_line(swept, path, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "--wandb", path]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("runs").exists()


def test_server_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["tables", "--wandb", "a/b/c"]) == 2
    assert "a/b/c: W&B does not give it" in capsys.readouterr().err


def test_nothing_but_telemetry_was_asked_that_the_server_does_not_know(swept):
    server, _ = swept
    assert set(server.unknown) <= {"OrganizationCoreWeaveOrganizationID"}
