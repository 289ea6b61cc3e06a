"""Sweeps: the grid in W&B's order, the agent's command lines, and runs that fail alone."""

import dataclasses
import datetime
import errno
import io
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dk_bench.cli import main
from dk_bench.config import load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.runs.identity import run_folder
from dk_bench.runs.record import new_record, read_record, write_record
from dk_bench.sweep import runner
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.job import Job, TrainingRun, task_in
from dk_bench.sweep.listing import make_jobs, skip_finished
from dk_bench.sweep.runner import run_jobs

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def write_sweep(folder: Path, **content) -> Path:
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "program": "train.py"} | content, sort_keys=False))
    return path


def write_script(folder: Path, text: str) -> list[str]:
    """A sweep command that runs ``text`` with the run's key=value arguments."""
    script = folder / "run.py"
    script.write_text(text)
    return ["${interpreter}", str(script), "${args_no_hyphens}"]


def test_grid_is_in_order_of_names_the_last_fastest(tmp_path):
    path = write_sweep(
        tmp_path,
        parameters={
            "b": {"values": ["x", "y"]},
            "c": {"value": 4.0},
            "a": {"values": [2, 1, 2]},
            "n": {"parameters": {"q": {"values": [0.5, 1.0]}, "p": {"min": 1, "max": 2}}},
        },
    )
    points = read_sweep(path).points()
    assert len(points) == 2 * 2 * 2 * 2
    assert [list(point) for point in points] == [["a", "b", "c", "n"]] * 16
    assert points[0] == {"a": 2, "b": "x", "c": 4, "n": {"p": 1, "q": 0.5}}
    assert points[1] == {"a": 2, "b": "x", "c": 4, "n": {"p": 1, "q": 1}}
    assert points[2] == {"a": 2, "b": "x", "c": 4, "n": {"p": 2, "q": 0.5}}
    assert points[4]["b"] == "y"
    assert points[8]["a"] == 1
    assert str(points[0]["c"]) == "4"  # as W&B's server sends it


def test_quantized_range_and_cap(tmp_path):
    parameters = {"lr": {"distribution": "q_uniform", "min": 0.0, "max": 2.0, "q": 0.5}}
    assert [c["lr"] for c in read_sweep(write_sweep(tmp_path, parameters=parameters)).points()] == [0, 0.5, 1, 1.5]
    assert len(read_sweep(write_sweep(tmp_path, parameters=parameters, run_cap=3)).points()) == 3


@pytest.mark.parametrize(
    "macro", ["args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals", "args_json", "args_append_hydra"]
)
def test_argv_is_the_wandb_agents(tmp_path, monkeypatch, macro):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    monkeypatch.setenv("DK_TEST", "from-outside")
    command = ["${env}", "${interpreter}", "${program}", "run", "--x=${envvar:DK_TEST}", 7, f"${{{macro}}}"]
    parameters = {"flag": {"value": True}, "off": {"value": False}, "lr": {"value": 1e-5}, "name": {"values": ["a b"]}}
    sweep = read_sweep(write_sweep(tmp_path, command=command, parameters=parameters))
    (point,) = sweep.points()
    expected = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})[macro]
    argv = sweep.argv(point)
    assert argv == ["/usr/bin/env", "python", "train.py", "run", "--x=from-outside", "7", *expected]
    assert argv[6:] and sweep.argv(point) == argv  # the expansion leaves the sweep's own command alone


def test_default_command_is_wandbs(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path, parameters={"a": {"value": 1}}))
    assert sweep.argv(sweep.points()[0]) == ["/usr/bin/env", "python", "train.py", "--a=1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methd": "grid"}, "unknown key 'methd'"),
        ({"method": "bayes"}, "'method' is 'bayes', which needs W&B's server"),
        ({"method": None}, "'method' is None, expected grid or random"),
        ({"scheduler": {"engine": "wandb"}}, "'scheduler' needs W&B's server"),
        ({"parameters": None}, "'parameters' is None"),
        ({"parameters": {"a": {"valus": [1]}}}, "'parameters.a' has valus"),
        ({"parameters": {"a": 3}}, "'parameters.a' is 3"),
        ({"parameters": {"a": {"values": []}}}, r"'parameters.a.values' is \[\]"),
        ({"parameters": {"a": {"values": [1], "probabilities": [1.0]}}}, "'parameters.a.probabilities' does not go"),
        ({"parameters": {"a": {"distribution": "uniform", "min": 0, "max": 1}}}, "'parameters.a.distribution'"),
        ({"parameters": {"a": {"min": 0.5, "max": 1}}}, "'parameters.a.min' is 0.5"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "'parameters.a': expected min below max"),
        ({"parameters": {"a b": {"value": 1}}}, "'a b' is no name"),
        ({"parameters": {"a": {"values": [datetime.date(2020, 1, 1)]}}}, "2020-01-01 is a date to YAML"),
        ({"parameters": {"a": {"value": {1: 2, "b": 3}}}}, "'parameters.a.value' is .* what JSON can hold"),
        ({"parameters": {"a": {"values": [math.nan]}}}, "'parameters.a.values' is .* what JSON can hold"),
        ({"parameters": {"a": {"min": 0, "max": math.inf, "distribution": "q_uniform"}}}, "'parameters.a'.* finite"),
        ({"parameters": {"n": {"parameters": {"a": {}}}}}, "'parameters.n.parameters.a' has nothing"),
        ({"command": "train.py"}, "'command' is 'train.py'"),
        ({"command": ["${args_json_file}"]}, r"'command' has \$\{args_json_file\}"),
        ({"command": ["${envvar:lower}"]}, r"'command' has \$\{envvar:lower\}"),
        ({"program": None}, "'program' is missing"),
        ({"run_cap": 0}, "'run_cap' is 0"),
        ({"metric": {"goal": "maximize"}}, "'metric' is"),
        ({"metric": {"name": "a", "goal": "up"}}, "'metric.goal' is 'up'"),
        ({"metric": {"name": "a", "target": 90}}, "'metric.target' needs W&B's server"),
    ],
)
def test_fault_names_file_and_key(tmp_path, change, message):
    path = write_sweep(tmp_path, **({"parameters": {"a": {"value": 1}}} | change))
    with pytest.raises(UserError, match=message) as error:
        read_sweep(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", ["a: [", "- 1", "", "\x00"])
def test_no_sweep_file(tmp_path, content):
    (tmp_path / "try.yaml").write_text(content)
    with pytest.raises(UserError, match="try.yaml"):
        read_sweep(tmp_path / "try.yaml")
    with pytest.raises(UserError, match=r"none\.yaml: no sweep can be read"):
        read_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_committed_sweeps_are_sound(path, monkeypatch):
    """Every run's command is one that training accepts, and no two are the same run."""
    monkeypatch.chdir(ROOT)
    jobs = make_jobs(read_sweep(path), None)
    assert all(job.argv[:2] == ["dk-bench", "train"] for job in jobs)
    runs = [TrainingRun.of(task_in(job.argv)) for job in jobs]
    assert all(runs) and len({run.folder for run in runs}) == len(jobs)
    assert path.read_text().startswith("# Claim: ")


def test_demo_is_the_demos_grid(monkeypatch):
    from dk_bench.tables.classification import DEMO_MODELS

    assert {point["model.name"] for point in read_sweep(ROOT / "sweeps" / "demo.yaml").points()} == set(DEMO_MODELS)


def test_dry_run_prints_commands_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = write_script(tmp_path, "open('ran', 'w')")
    path = write_sweep(tmp_path, command=command, parameters={"a": {"values": [1, "b c"]}})
    assert main(["sweep", str(path), "--dry-run", "--output", "out"]) == 0
    script = tmp_path / "run.py"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"python {script} a=1 output=out", f"python {script} 'a=b c' output=out"]
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_runs_of_one_command_are_refused(tmp_path, capsys):
    """They would be one run: the grid would lose runs without a word."""
    both = {"a": {"values": [1, 2]}}
    path = write_sweep(tmp_path, command=["${program}", "--fast"], parameters=both)
    assert main(["sweep", str(path), "--dry-run"]) == 2
    assert "points 'a=1' and 'a=2' are one command, train.py --fast" in capsys.readouterr().err
    path = write_sweep(tmp_path, parameters=both | {"output": {"values": ["x", "y"]}})
    assert main(["sweep", str(path), "--dry-run"]) == 0
    assert main(["sweep", str(path), "--dry-run", "--output", "z"]) == 2


@pytest.mark.parametrize("name", ["/etc/sweep", "../../sweep", "a/b c", "x" * 300])
def test_logs_stay_in_the_output_whatever_the_sweeps_name(tmp_path, name):
    path = write_sweep(tmp_path, name=name, parameters={"a": {"value": 1}})
    (job,) = make_jobs(read_sweep(path), "out")
    assert job.log.parent == Path("out/logs") and len(job.log.name) < 255


class FullDisk(io.StringIO):
    """A stream to a disk on which nothing fits any more."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_sweep_goes_on_where_nothing_can_be_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import pathlib, sys; pathlib.Path('ran-' + sys.argv[1]).touch()"
    path = write_sweep(tmp_path, command=write_script(tmp_path, text), parameters={"a": {"values": [1, 2]}})
    monkeypatch.setattr(sys, "stderr", FullDisk())
    assert main(["sweep", str(path), "--workers", "1"]) == 0
    assert {p.name for p in tmp_path.glob("ran-*")} == {"ran-a=1", "ran-a=2"}
    job = Job("slow", ["train"], tmp_path / "log", state="running", process=SlowToStop(1))
    monkeypatch.setattr(os, "killpg", lambda pid, number: job.process.signals.append(number))
    runner._stop([job])
    assert job.process.returncode == -signal.SIGTERM


def test_failing_run_spoils_itself_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = """
import os, pathlib, sys
pathlib.Path("ran-" + sys.argv[1]).write_text(os.environ["OMP_NUM_THREADS"] + " " + sys.executable)
print("run", *sys.argv[1:])
sys.exit("no such thing" if sys.argv[1] == "a=2" else 0)
"""
    path = write_sweep(tmp_path, command=write_script(tmp_path, text), parameters={"a": {"values": [1, 2, 3]}})
    assert main(["sweep", str(path), "--workers", "2", "--output", "out"]) == 1
    assert {p.name for p in tmp_path.glob("ran-*")} == {"ran-a=1", "ran-a=2", "ran-a=3"}
    threads, executable = (tmp_path / "ran-a=3").read_text().split()
    assert int(threads) >= 1
    assert Path(executable).parent == Path(sys.executable).parent  # this environment's interpreter
    shown = capsys.readouterr().err
    assert "2 of 3 runs finished" in shown
    assert "failed a=2: exit status 1: no such thing" in shown
    assert "out/logs/try-002-2.log" in shown
    assert (tmp_path / "out" / "logs" / "try-003-3.log").read_text().endswith("run a=3 output=out\n")


@pytest.mark.parametrize(("asked", "threads"), [("", 4), ("1", 1), ("3", 3), ("16", 4), ("0", 4), ("many", 4)])
def test_runs_share_the_cores_or_take_fewer(tmp_path, monkeypatch, asked, threads):
    monkeypatch.setattr(runner, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    jobs = [Job("run", ["sh", "-c", "echo $OMP_NUM_THREADS"], tmp_path / "run.log")]
    run_jobs(jobs, 2)
    assert jobs[0].state == "finished" and (tmp_path / "run.log").read_text().endswith(f"\n{threads}\n")


def test_command_that_does_not_exist_fails_its_run(tmp_path):
    jobs = [
        Job("missing", ["no-such-command-anywhere"], tmp_path / "1.log"),
        Job("log", ["true"], tmp_path / "file" / "2.log"),
        Job("zero", ["echo", "\0"], tmp_path / "0.log"),
        Job("sound", ["true"], tmp_path / "3.log"),
    ]
    (tmp_path / "file").write_text("a file where the log's folder should be")
    run_jobs(jobs, 1)
    assert [job.state for job in jobs] == ["failed", "failed", "failed", "finished"]
    assert "no-such-command-anywhere" in jobs[0].reason


def test_no_more_runs_at_a_time_than_workers(tmp_path):
    jobs = [Job(str(n), ["sleep", "0.2"], tmp_path / f"{n}.log") for n in range(5)]
    most = 0

    def watch(job):
        nonlocal most
        most = max(most, sum(job.state == "running" for job in jobs))

    run_jobs(jobs, 2, watch)
    assert most == 2
    assert all(job.state == "finished" for job in jobs)


def test_stopping_ends_the_runs_and_their_children(tmp_path):
    text = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
child.wait()
"""
    command = [part.replace("${interpreter}", "python") for part in write_script(tmp_path, text)[:2]]
    job = Job("long", command, tmp_path / "long.log")

    def interrupt(changed):
        if job.last_line().startswith("child"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], 1, interrupt)
    assert job.process.returncode == -signal.SIGTERM
    assert (job.state, job.reason) == ("waiting", "stopped")
    assert has_ended(int(job.last_line().split()[1]))


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only waits for its new parent to take note."""
    for _ in range(200):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if state.stdout.strip() in ("", "Z"):
            return True
        time.sleep(0.05)
    return False


def test_finished_runs_are_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("name: try\n")
    command = ["dk-bench", "train", "config.yaml", "${args_no_hyphens}"]
    parameters = {"seed": {"values": [0, 1, 2]}, "output": {"value": "out"}, "nonsense": {"value": 1}}
    finished, failed = (load_config("config.yaml", [f"seed={seed}", "output=out"]) for seed in (0, 1))
    for config, status in ((finished, "finished"), (failed, "failed")):
        record = new_record(
            name="try", config=to_dict(config), model={"name": "m"}, data={"name": "d"}, seed=config.seed
        )
        record.status = status
        write_record(record, run_folder(config, to_dict(config)) / "record.json")
    Path("out/broken").mkdir()
    Path("out/broken/record.json").write_text("{")

    def states(parameters):
        jobs = make_jobs(read_sweep(write_sweep(tmp_path, command=command, parameters=parameters)), None)
        skip_finished(jobs)
        return [job.state for job in jobs]

    assert states(parameters) == ["waiting"] * 3  # no such configuration: the runs say so themselves
    del parameters["nonsense"]
    assert states(parameters) == ["skipped", "waiting", "waiting"]
    record.status, record.task = "finished", "evaluation"  # of seed 1's checkpoint
    write_record(record, run_folder(failed, to_dict(failed)) / "eval.record.json")
    assert states(parameters) == ["skipped", "waiting", "waiting"]
    # Test images that its record says nothing of are for training to evaluate, as long as there is a checkpoint.
    tested = parameters | {"data.procedural.test_images": {"value": 5}}
    assert states(tested) == ["skipped", "waiting", "waiting"]
    (run_folder(finished, to_dict(finished)) / "last.ckpt").touch()
    assert states(parameters) == ["skipped", "waiting", "waiting"]
    assert states(tested) == ["waiting"] * 3
    record = read_record(run_folder(finished, to_dict(finished)) / "record.json")
    record.metrics["final"]["test/top1"] = 50.0
    write_record(record, run_folder(finished, to_dict(finished)) / "record.json")
    assert states(tested) == ["skipped", "waiting", "waiting"]


def test_run_of_another_name_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("")
    config = load_config("config.yaml", ["name=first", "output=out"])
    record = new_record(name="first", config=to_dict(config), model={"name": "m"}, data={"name": "d"}, seed=0)
    write_record(dataclasses.replace(record, status="finished"), run_folder(config, to_dict(config)) / "record.json")
    command = ["dk-bench", "train", "config.yaml", "${args_no_hyphens}"]
    parameters = {"name": {"values": ["first", "second"]}, "output": {"value": "out"}}
    jobs = make_jobs(read_sweep(write_sweep(tmp_path, command=command, parameters=parameters)), None)
    skip_finished(jobs)
    assert [job.state for job in jobs] == ["skipped", "waiting"]


def test_run_whose_process_is_gone_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = new_record(name="try", config={}, model={"name": "m"}, data={"name": "d"}, seed=0, device="cpu")
    write_record(record, "out/alive/record.json")
    record.attempts[-1]["process"] |= {"boot": "before the power cut"}
    write_record(record, "out/dead/record.json")
    Path("config.yaml").write_text("name: try\n")
    command = ["dk-bench", "train", "config.yaml", "${args_no_hyphens}"]
    path = write_sweep(tmp_path, command=command, parameters={"output": {"value": "out"}})
    monkeypatch.setattr("dk_bench.cli.sweep.run_jobs", lambda *_, **__: None)
    main(["sweep", str(path)])
    shown = capsys.readouterr().err
    assert "cut off out/dead: stale" in shown and "alive" not in shown


class SlowToStop:
    """A process that ends when it is killed, or once it was waited for long enough."""

    pid, returncode = 1 << 22, None

    def __init__(self, needs, interrupted=False):
        self.needs, self.interrupted, self.signals = needs, interrupted, []

    def poll(self):
        return self.returncode

    def wait(self, timeout):
        if self.interrupted and self.signals[-1] == signal.SIGTERM:
            raise KeyboardInterrupt
        if timeout < self.needs and self.signals[-1] != signal.SIGKILL:
            raise subprocess.TimeoutExpired("train", timeout)
        self.returncode = -self.signals[-1]


@pytest.mark.parametrize(
    ("needs", "interrupted", "last"),
    [(50, False, signal.SIGTERM), (90, False, signal.SIGKILL), (1, True, signal.SIGKILL)],
)
def test_runs_have_a_minute_to_write_their_records(tmp_path, monkeypatch, needs, interrupted, last):
    job = Job("slow", ["train"], tmp_path / "log", state="running", process=SlowToStop(needs, interrupted))
    monkeypatch.setattr(os, "killpg", lambda pid, number: job.process.signals.append(number))
    runner._stop([job])
    assert job.process.returncode == -last and (job.state, job.reason) == ("waiting", "stopped")


def test_bad_use_is_one_line(tmp_path, capsys):
    path = write_sweep(tmp_path, parameters={"a": {"value": 1}})
    assert main(["sweep", str(path), "--workers", "0"]) == 2
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not os.path.exists("runs/logs/try-001-run.log")
