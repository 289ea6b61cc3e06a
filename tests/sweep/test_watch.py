"""One view of runs on any machines, from locks, records, heartbeats and logs."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from dk_bench.cli import main
from dk_bench.config import load_config, to_dict
from dk_bench.runs import lock
from dk_bench.runs.heartbeat import Beat, write_beat
from dk_bench.runs.identity import run_folder
from dk_bench.runs.lock import CLAIM, LOCK, claim, hold
from dk_bench.runs.record import new_record, write_record
from dk_bench.sweep import progress, view
from dk_bench.sweep.job import Job, TrainingRun
from dk_bench.sweep.onlooker import Onlooker
from dk_bench.sweep.progress import SweepProgress
from dk_bench.sweep.view import Row, seconds_left, summary, table, watch

EPOCHS = [{"epoch": n, "train/loss": 2.0, "val/top1": 40.0 + n, "seconds": 50.0} for n in range(3)]


GONE = {"boot": "before the power cut"}  # of a process of this machine
ELSEWHERE = {"host": "another machine"}


def leave(folder: Path, seed: int = 0, process: dict[str, str] = ELSEWHERE, **more) -> Path:
    """Leaves a record in the folder of a run of three epochs of five. ``process``: what its process has otherwise than
    this one, which lives."""
    config = {"optim": {"epochs": 5}}
    record = new_record(name="a", config=config, model={"name": "m"}, data={"name": "d"}, seed=seed, device="cpu")
    record.metrics["epochs"] = EPOCHS
    record.attempts[-1]["process"] |= process
    write_record(dataclasses.replace(record, **more), folder / "record.json")
    return folder


def beat(folder: Path, ago: float, **more) -> None:
    now = time.time() - ago
    done = Beat(now, 3, 5, 60, 100, now - 300.0, 10, "node7", 1)
    write_beat(folder, dataclasses.replace(done, **more))


def rows_of(*folders: Path, **more) -> dict[str, Row]:
    return {row.name: row for row in Onlooker(folders, stalled_after=600.0, **more).rows()}


@pytest.fixture
def runs(tmp_path):
    """Runs in every state, below two folders."""
    one, two = tmp_path / "one", tmp_path / "deeper" / "two"
    leave(one / "a-1-s0", status="finished", started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:05:00+00:00")
    leave(one / "a-1-s1", status="failed", error="training loss is nan")
    leave(one / "a-1-s2", status="failed", error="interrupted by SIGTERM")
    leave(one / "a-1-s3", status="stopped", error="stopped by early_terminate at epoch 3")
    leave(two / "a-2-s0", process=GONE)  # says running, and nobody is at it
    leave(two / "a-2-s3", process=ELSEWHERE)
    (two / "a-2-s1" / "wandb" / "a-9-s9").mkdir(parents=True)  # what lies in a run's folder is no run
    (two / "a-2-s1" / LOCK).touch()
    leave(two / "a-2-s1" / "wandb" / "a-9-s9")
    leave(two / "a-2-s2", task="evaluation")
    leave(one / "a-1-s4")
    beat(one / "a-1-s4", 2.0)
    leave(one / "a-1-s5")
    for seed in (4, 5, 6):
        (one / f"a-1-s{seed}").mkdir(exist_ok=True)
    with hold(one / "a-1-s4"), hold(one / "a-1-s5"), hold(one / "a-1-s6"):
        for seed, ago in ((4, 900.0), (5, 2000.0)):
            os.utime(one / f"a-1-s{seed}" / LOCK, (time.time() - ago,) * 2)
        beat(one / "a-1-s5", 1200.0)
        yield one, two.parent


def test_every_state_is_told(runs):
    rows = rows_of(*runs)
    assert {name: row.state for name, row in rows.items()} == {
        "a-1-s0": "finished",
        "a-1-s1": "failed",
        "a-1-s2": "cut off",
        "a-1-s3": "stopped",
        "a-1-s4": "running",
        "a-1-s5": "stalled",
        "a-1-s6": "starting",
        "a-2-s0": "cut off",
        "a-2-s1": "failed",
        "a-2-s3": "cut off",
    }
    at_work = rows["a-1-s4"]
    assert (at_work.where, at_work.epoch, at_work.epochs, at_work.figure) == (os.uname().nodename, 3, 5, "val/top1 42")
    assert 2.0 <= at_work.idle < 60 and 180.0 < at_work.left <= 240.0 - 2.0  # 50 steps in 300 s, and 40 to go
    assert (rows["a-1-s5"].reason, rows["a-1-s5"].left) == ("no step in 20 min", None)
    assert (rows["a-1-s1"].reason, rows["a-2-s1"].reason) == ("training loss is nan", "it left no record")
    assert rows["a-1-s0"].took == 300.0 and rows["a-1-s0"].kind == rows["a-1-s6"].kind == "a-1"
    assert {row.figure for row in rows_of(*runs, metric="train/loss").values() if row.epoch} == {"train/loss 2"}


def test_stalled_is_a_matter_of_minutes(runs, capsys):
    states = {row.name: row.state for row in Onlooker(runs, stalled_after=1e5).rows()}
    assert states["a-1-s5"] == "running"
    folders = [str(folder) for folder in runs]
    assert main(["watch", *folders, "--once", "--stalled-after", "15"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("stalled a-1-s5: on ") and shown[0].endswith(", no step in 20 min")
    counts = "1 finished, 1 stopped, 1 starting, 1 running, 3 cut off, 2 failed, 1 stalled"
    assert shown[-1].startswith(f"10 runs: {counts}; about ")


@pytest.mark.parametrize("process", [GONE, ELSEWHERE])
def test_killed_run_is_to_be_gone_on_with_on_every_machine(tmp_path, capsys, process):
    leave(tmp_path / "a-1-s0", process=process)
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:05:00+00:00"}
    leave(tmp_path / "a-1-s1", status="finished", **times)
    (tmp_path / "a-1-s2").mkdir()
    with hold(tmp_path / "a-1-s2"):
        assert main(["watch", str(tmp_path), "--once"]) == 0
        left = seconds_left(list(rows_of(tmp_path).values()))
    cut, *_, whole = capsys.readouterr().out.splitlines()
    assert cut == "cut off a-1-s0: epoch 3 of 5, val/top1 42"
    assert whole.startswith("3 runs: 1 finished, 1 starting, 1 cut off; about 10 min") and 590 < left <= 600


def test_beat_of_an_earlier_attempt_does_not_count(tmp_path):
    leave(tmp_path / "a-1-s0")
    beat(tmp_path / "a-1-s0", 5000.0)
    with hold(tmp_path / "a-1-s0"):
        (row,) = rows_of(tmp_path).values()
    assert row.state == "running" and row.idle < 600 and row.left is None


def test_folder_that_may_only_be_read_tells_by_heartbeats(runs, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(lock, "_take", refuse)
    states = {name: row.state for name, row in rows_of(*runs).items()}
    assert (states["a-1-s4"], states["a-1-s5"], states["a-1-s0"]) == ("running", "stalled", "finished")


def write_sweep(folder: Path, **more) -> str:
    (folder / "c.yaml").write_text("name: swept\n")
    content = {
        "method": "grid",
        "command": ["dk-bench", "train", str(folder / "c.yaml"), "${args_no_hyphens}"],
        "metric": {"name": "train/loss"},
        "parameters": {"seed": {"values": [0, 1, 2, 3, "one"]}, "output": {"value": str(folder / "out")}},
    }
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump(content | more))
    return str(path)


def test_rows_of_a_sweep_include_those_to_come(tmp_path, capsys, monkeypatch):
    """Of --output too, in whose folder the runs have the same names."""
    monkeypatch.chdir(tmp_path)
    path = write_sweep(tmp_path)
    assert main(["watch", "--sweep", path, "--once"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("failed seed=one: seed=one: key 'seed' is 'one'")
    assert shown[1:] == [*(f"waiting seed={n}" for n in range(4)), "5 runs: 4 waiting, 1 failed"]
    folders = []
    for seed in range(4):
        config = load_config(str(tmp_path / "c.yaml"), [f"seed={seed}", "output=other"])
        folders.append(run_folder(config, to_dict(config)))
    leave(folders[0], status="finished", started="2026-01-01T00:00:00+00:00", ended="2026-01-01T01:00:00+00:00")
    leave(folders[0].parent / "not-of-it-s0")
    (folders[3] / "x").mkdir(parents=True)
    (folders[3] / CLAIM).touch()
    (Path("other") / "logs").mkdir()
    (Path("other") / "logs" / "try-004-3.log").write_text("$ dk-bench train\ndk-bench train: no such images\n")
    taken = claim(folders[1])
    try:
        assert main(["watch", "other", "--sweep", path, "--once"]) == 1
    finally:
        taken.release()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "failed seed=3: it left no record: dk-bench train: no such images"
    assert [line.split(":")[0] for line in shown[1:-1]] == [
        "failed seed=one",
        "starting seed=1",
        "waiting seed=2",
        "finished seed=0",
    ]
    assert "finished seed=0: epoch 3 of 5, train/loss 2, took 60 min" in shown
    assert shown[-1] == "5 runs: 1 finished, 1 waiting, 1 starting, 2 failed; about 2.0 h left"


def test_bad_use_is_one_line(tmp_path, capsys):
    assert main(["watch"]) == 2
    assert main(["watch", str(tmp_path / "none"), "--once"]) == 2
    assert main(["watch", "--sweep", write_sweep(tmp_path, command=["python", "${args}"]), "--once"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "dk-bench watch: expected a FOLDER of runs, --sweep FILE or --wandb ENTITY/PROJECT/SWEEP"
    assert said[1] == f"dk-bench watch: {tmp_path / 'none'}: no such folder"
    assert said[2] == "dk-bench watch: run 'seed=0': only those of `dk-bench train` leave what can be watched"


def test_time_left_is_of_kinds_and_of_as_many_as_run():
    finished = [Row("a", "finished", "x", took=100.0), Row("b", "finished", "y", took=1000.0)]
    running = [Row("c", "running", "x", took=40.0), Row("d", "running", "y", left=30.0, took=5.0)]
    waiting = [Row("e", "waiting", "x"), Row("f", "cut off", "y"), Row("g", "failed", "y")]
    assert seconds_left([*finished, *running]) == 60.0
    assert seconds_left([*finished, *running, *waiting]) == 60.0 + 1000.0
    assert seconds_left([*finished, *waiting]) is None  # nobody is at it
    assert seconds_left([*finished, *running, Row("i", "stalled", "y")]) == 60.0  # when that ends nobody knows
    assert seconds_left([*running, *waiting]) is None and seconds_left(finished) is None
    # Before any has finished, by what those say that run.
    assert seconds_left([running[1], Row("h", "waiting", "z")]) == 30.0 + 35.0


def test_terminal_shows_one_table_whatever_its_size(monkeypatch):
    console = Console(file=io.StringIO(), width=200, height=20, force_terminal=True, color_system=None)
    rows = [Row(f"[b] run {n}", "waiting") for n in range(40)]
    rows += [Row("slow", "stalled", where="node7", epoch=3, epochs=9, figure="val/top1 41", idle=900, reason="no step")]
    later, slept = [[Row("slow", "finished", took=60.0)]], []
    monkeypatch.setattr(view.time, "sleep", slept.append)
    assert watch(lambda: rows if not slept else later[0], console, every=7.0) == later[0] and slept == [7.0]
    shown = console.file.getvalue()
    assert "41 runs: 40 waiting, 1 stalled" in shown and "and 29 more" in shown
    assert "[b] run 0" in shown and "3/9" in shown and "15 min" in shown and "1 run: 1 finished" in shown
    assert table(rows).row_count == 41 and table(rows, 5).row_count == 5


def test_without_a_terminal_only_what_has_changed_is_said(monkeypatch):
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    looks = iter([[Row("a", "running"), Row("b", "waiting")]] * 2 + [[Row("a", "finished"), Row("b", "finished")]])
    monkeypatch.setattr(view.time, "sleep", lambda seconds: None)
    watch(lambda: next(looks), console)
    assert console.file.getvalue().splitlines() == [
        "running a",
        "waiting b",
        "2 runs: 1 waiting, 1 running",
        "finished a",
        "finished b",
        "2 runs: 2 finished",
    ]


def test_of_rows_of_one_name_too_only_what_has_changed_is_said(monkeypatch):
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    before = [Row("a", "running"), Row("a", "finished"), Row("a", "running")]
    looks = iter([before, before[::-1], [*before[:2], Row("a", "finished")], [before[1]] * 3])
    monkeypatch.setattr(view.time, "sleep", lambda seconds: None)
    watch(lambda: next(looks), console)
    lines = [line for line in console.file.getvalue().splitlines() if line.endswith(" a")]
    assert lines == ["running a", "running a", "finished a", "finished a", "finished a"]


def test_runs_of_one_name_are_told_with_their_folders(tmp_path, capsys, monkeypatch):
    """Of a sweep over the output, each once."""
    monkeypatch.chdir(tmp_path)
    for place, state in ("one", "finished"), ("two", "failed"):
        leave(Path(place, "a-1-s0"), status=state)
    assert main(["watch", "one", "two", "--once"]) == 1
    shown = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["failed a-1-s0 in two", "finished a-1-s0 in one", "2 runs"]
    path = write_sweep(tmp_path, parameters={"output": {"values": ["x", "y"]}})
    for output in ("x", "y"):
        config = load_config(str(tmp_path / "c.yaml"), [f"output={output}"])
        leave(run_folder(config, to_dict(config)), status="finished")
    assert main(["watch", "--sweep", path, "--once"]) == 0
    shown = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["finished output=x", "finished output=y", "2 runs"]


def test_sweep_names_its_stalled_runs_once(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.0)
    log = tmp_path / "a.log"
    job = Job("a", ["x"], log, TrainingRun(tmp_path / "run", tmp_path), started=time.monotonic() - 1000)
    console = Console(record=True, width=100, force_terminal=False)
    with SweepProgress([job], 1, console, stalled_after=600) as shown:
        job.state = "running"
        beat(tmp_path / "run", 5.0)
        shown.changed(job)
        assert not shown.stalled
        beat(tmp_path / "run", 700.0)
        shown.changed(None)
        shown.changed(None)
        assert [*shown.stalled.values()] == ["no step in 12 min: "]
        assert "1 stalled" in shown.progress.tasks[0].description
        beat(tmp_path / "run", 5.0)
        shown.changed(None)
        assert not shown.stalled
        (tmp_path / "run" / "progress.json").unlink()  # before its first step
        shown.changed(None)
        job.state = "finished"
        shown.changed(job)
    lines = console.export_text().splitlines()
    assert [line for line in lines if "stalled a" in line] == [
        f"stalled a: no step in 12 min, see {log}",
        f"stalled a: no step in 17 min, see {log}",
    ]
    assert summary([]) == "no runs yet"
