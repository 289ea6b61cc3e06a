"""Fifty cells at W&B's server by four of W&B's agents, runs and an agent killed at random, and how all are trained."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Thread

import forking
import pytest
import wandb as wandb_package
import yaml
from training_cases import ONE_STEP
from wandb_server import ENTITY, serve

from dk_bench.cli import main
from dk_bench.config import load_config, to_dict
from dk_bench.runs import wandb_server
from dk_bench.runs.record import find_records, read_record
from dk_bench.runs.wandb_records import RECORD_FILE
from dk_bench.runs.wandb_server import CLAIM, SweepAtWandb
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.listing import make_jobs
from dk_bench.sweep.wandb_cells import list_cells
from dk_bench.tables.documents import build_documents, write_documents

AGENTS, KILLS, CELLS = 4, 12, 50
SWEEP = {
    "name": "many",
    "program": "dk-bench",
    "method": "grid",
    "metric": {"name": "val/top1", "goal": "maximize"},
    "command": [sys.executable, "-S", forking.__file__, "dk-bench", "train", "config.yaml", "${args_no_hyphens}"],
    "parameters": {
        "model.name": {"values": ["test_resnetdw", "test_resnetdw_dk"]},
        "optim.lr": {"values": [0.01, 0.02, 0.05, 0.1, 0.2]},
        "output": {"value": "runs"},
        "seed": {"values": [0, 1, 2, 3, 4]},
    },
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The server after the agents have ended, the folder in which they ran, and the sweep's path."""
    folder = tmp_path_factory.mktemp("many")
    overrides = [*ONE_STEP, "name=many", "optim.epochs=2"]
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(load_config(None, overrides))))
    with serve() as server, pytest.MonkeyPatch.context() as patch, forking.forker():
        clean = {key: None for key in os.environ if key.startswith("WANDB_")}
        settings = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_CONFIG_DIR": str(folder / "config")}
        settings |= {"WANDB_SILENT": "true", "no_proxy": "127.0.0.1"}
        settings |= {"WANDB_AGENT_DISABLE_FLAPPING": "true", "WANDB_AGENT_MAX_INITIAL_FAILURES": "100"}
        for key, value in (clean | settings).items():
            patch.delenv(key) if value is None else patch.setenv(key, value)
        patch.chdir(folder)
        patch.setattr(wandb_server, "CLAIM_SETTLES_SECONDS", 0.5)
        sweep = server.UpsertSweep(yaml.safe_dump(SWEEP), "bench")["upsertSweep"]["sweep"]["name"]
        path = f"{ENTITY}/bench/{sweep}"
        agents = [start("wandb", "agent", path) for _ in range(AGENTS)]
        assert kill_at_random(server, agents, random.Random(0)) == KILLS
        assert Counter(agent.wait(600) for agent in agents) == {0: AGENTS - 1, -signal.SIGKILL: 1}
        while forking.running():  # a run whose agent was killed lives on
            time.sleep(0.1)
        server.pass_time(3600)
        yield server, folder, path
    wandb_package.teardown()  # else this process's session goes on asking a server that is gone


def start(*argv):
    with open("programs.log", "ab") as log:
        return subprocess.Popen([sys.executable, "-S", forking.__file__, *argv], stdout=log, stderr=log)


def kill_at_random(server, agents, chance):
    """Kills runs at random moments of the sweep, and in its middle an agent with its run, as a machine that goes down;
    returns the number of kills."""
    moments = sorted(chance.sample(range(AGENTS, CELLS - 3 * AGENTS), KILLS))  # by how many runs were handed out
    for number, moment in enumerate(moments):
        while len(server.runs) < moment:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        while not (runs := programs("dk-bench")):
            assert any(agent.poll() is None for agent in agents), "agents ended before the grid did"
            time.sleep(0.02)
        if number == KILLS // 2:
            agent = chance.choice(programs("wandb"))["pid"]
            kill(agent)
            runs = [run for run in runs if parent(run["asker"]) == agent] or runs
        kill(chance.choice(runs)["pid"])
    return len(moments)


def programs(name):
    return [program for program in forking.running() if program["argv"][0] == name]


def kill(pid):
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, signal.SIGKILL)


def parent(pid):
    with suppress(OSError):  # it has just ended
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def key_of(run):
    return tuple(run.values()[key] for key in ("model.name", "optim.lr", "seed"))


def by_cell(runs):
    """States of runs by their cells."""
    cells = {}
    for run in runs:
        cells.setdefault(key_of(run), []).append(run.state)
    return cells


def records_below(*folders):
    return {
        (record.config["model"]["name"], record.config["optim"]["lr"], record.seed): record
        for folder in folders
        for record in map(read_record, find_records([folder]))
        if record.status == "finished"
    }


def test_cells_that_agents_left_are_listed(killed, capsys):
    server, folder, path = killed
    states = by_cell(server.runs.values())
    assert len(states) == CELLS == len(server.runs) and Counter(sum(states.values(), []))["finished"] < CELLS
    assert main(["sweep", "--wandb", path, "--missing"]) == 1
    out, err = capsys.readouterr()
    told = {line.split(": ")[0]: line.split(": ")[1].split(" ")[0] for line in out.splitlines()}
    expected = {f"model.name={m} optim.lr={lr} seed={s}": state for (m, lr, s), [state] in states.items()}
    assert told == {name: "crashed" if state == "pending" else state for name, state in expected.items()}
    finished = Counter(told.values())["finished"]
    assert f"{path}: 50 cells: {finished} finished, {CELLS - finished} crashed" in err


def test_two_machines_train_each_of_them_once(killed):
    server, folder, path = killed
    before = {name: run.state for name, run in server.runs.items()}
    again = ("dk-bench", "sweep", "--wandb", path, "--requeue", "--workers", "2", "--output")
    machines = [start(*again, output) for output in ("runs", "elsewhere")]  # the second one sees other disks
    assert [machine.wait(600) for machine in machines] == [0, 0], Path("programs.log").read_text()[-5000:]
    assert server.runs.keys() == before.keys()  # the same runs went on
    assert all(states == ["finished"] for states in by_cell(server.runs.values()).values())
    assert not any({CLAIM, "error"} & run.summary.keys() for run in server.runs.values())
    records = [read_record(path) for path in find_records(["runs", "elsewhere"])]
    finished = Counter((r.config_hash, r.seed) for r in records for a in r.attempts if a["status"] == "finished")
    assert len(finished) == CELLS and set(finished.values()) == {1}


def test_then_nothing_is_left(killed, capsys):
    server, folder, path = killed
    assert main(["sweep", "--wandb", path, "--missing"]) == 0 and main(["sweep", "--wandb", path, "--requeue"]) == 0
    assert "50 of 50 runs finished" in capsys.readouterr().err and len(server.runs) == CELLS
    assert main(["watch", "--wandb", path]) == 0
    assert "50 runs: 50 finished" in capsys.readouterr().out


def test_tables_from_the_server_are_those_of_the_folders(killed):
    server, folder, path = killed
    assert main(["tables", "--wandb", path, "--output", "from_server"]) == 0
    assert main(["tables", "runs", "elsewhere", "--output", "from_folders"]) == 0
    ours, theirs = ({f.name: f.read_bytes() for f in Path(name).iterdir()} for name in ("from_server", "from_folders"))
    assert ours and ours == theirs


def test_tables_are_those_of_the_sweep_run_here_without_agents(killed):
    server, folder, path = killed
    Path("local.yaml").write_text(yaml.safe_dump(SWEEP))
    for job in make_jobs(read_sweep("local.yaml"), "local"):  # in this process: a process each takes twice as long
        assert main(job.argv[job.argv.index("train") :]) == 0
    for place, found in (("agents", records_below("runs", "elsewhere")), ("here", records_below("local"))):
        assert len(found) == CELLS
        timeless = [dataclasses.replace(record, throughput={}) for _, record in sorted(found.items())]
        write_documents(build_documents(timeless).values(), Path("timeless", place))
    ours, theirs = ({f.name: f.read_bytes() for f in Path("timeless", name).iterdir()} for name in ("agents", "here"))
    assert ours and ours == theirs
    assert b"test_resnetdw_dk" in ours["demo.md"]


def test_run_that_was_killed_before_its_last_words_says_them(killed):
    server, folder, path = killed
    trained = records_below("runs")
    run = next(run for run in server.runs.values() if key_of(run) in trained)
    figures, run.state, run.summary = run.summary, "crashed", {}
    assert start("dk-bench", "sweep", "--wandb", path, "--requeue", "--workers", "1").wait(600) == 0
    assert run.state == "finished" and run.summary["val/top1"] == figures["val/top1"]
    assert records_below("runs") == trained


def test_a_cell_that_is_handed_out_again_is_not_trained_again(killed, monkeypatch):
    server, folder, path = killed
    first, *_ = server.runs.values()
    again = server.runs["again"] = dataclasses.replace(first, name="again", state="pending", summary={}, files={})
    entity, project, sweep = path.split("/")
    names = {"ENTITY": entity, "PROJECT": project, "SWEEP_ID": sweep, "RUN_ID": "again"}
    for key, value in names.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    overrides = [f"{key}={value}" for key, value in first.values().items() if key in ("model.name", "optim.lr", "seed")]
    train = ("dk-bench", "train", "config.yaml", *overrides, "output=third")
    try:
        first.state, first.heard = "running", time.time()
        assert start(*train).wait(600) == 75
        assert f"run {first.name}, heard of " in again.summary["error"] and not find_records(["third"])
        first.state = "finished"
        assert start(*train).wait(600) == 0
        assert again.state == "finished" and again.summary["val/top1"] == first.summary["val/top1"]
        assert again.files[RECORD_FILE] == first.files[RECORD_FILE] == find_records(["third"])[0].read_bytes()
    finally:
        first.state = "finished"
        del server.runs["again"]


def test_of_several_that_claim_a_run_at_once_one_gets_it(killed):
    server, folder, path = killed
    run, chance = next(iter(server.runs.values())), random.Random(1)
    for _ in range(3):
        run.state, got = "crashed", []

        def claim(name, wait, run_id=run.name, got=got):
            sweep = SweepAtWandb(path)
            time.sleep(wait)
            got.append((name, sweep.claim(run_id, name)))

        threads = [Thread(target=claim, args=(f"machine {n}", chance.uniform(0, 0.1))) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won for _, won in got) == 1
        run.summary.pop(CLAIM)
    run.state = "finished"
    assert not SweepAtWandb(path).claim(run.name, "late")


def test_of_two_runs_of_one_cell_that_finished_both_are_named(killed, capsys):
    server, folder, path = killed
    first, *_ = server.runs.values()
    twin = dataclasses.replace(first, name="twin", files=dict(first.files))
    server.runs["twin"] = twin
    try:
        record, told = first.files[RECORD_FILE], []
        for content in (record.replace(b'"started": "', b'"started": "3', 1), record):  # another run; the same one
            twin.files[RECORD_FILE] = content
            assert main(["tables", "--wandb", path, "--output", "twins"]) == 0
            told.append(f"runs {first.name} and twin both finished" in capsys.readouterr().err)
        assert told == [True, False]
        cells, _ = list_cells(SweepAtWandb(path))
        assert cells[0].told() == f"finished twice or more (runs {first.name}, twin)"
    finally:
        del server.runs["twin"]
