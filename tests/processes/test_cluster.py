"""Inside a cluster's job: variables of launchers change no run and open no lock, and signals end runs as elsewhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import pytorch_lightning as pl
from cluster_cases import LAUNCHERS, TORCHRUN, enter
from pytorch_lightning.utilities import rank_zero_only
from training_cases import TINY, tiny

from dk_bench.cli import main
from dk_bench.errors import BusyError, UserError
from dk_bench.processes.launchers import is_launchers, ordinary_environment, without_launchers
from dk_bench.runs import lock
from dk_bench.runs.lock import hold, is_held
from dk_bench.runs.record import find_records, read_record
from dk_bench.sweep.job import Job
from dk_bench.sweep.runner import run_jobs
from dk_bench.training import evaluate, run_folder, train

ROOT = Path(__file__).parents[2]
SHORT = ("optim.epochs=1", "optim.warmup_epochs=0")


def short(output, *overrides):
    return tiny(output, *SHORT, *overrides)


def figures(record):
    return {key: value for key, value in record.metrics["final"].items() if key != "seconds"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The figures of seed 1 without any job, and the checkpoint of seed 0, which another run of the job has left."""
    folder = tmp_path_factory.mktemp("ordinary")
    train(short(folder))
    return figures(train(short(folder, "seed=1"))), run_folder(short(folder)) / "last.ckpt"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_variables_change_no_run(tmp_path, monkeypatch, expected, launcher):
    ranks = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            ranks.append((rank_zero_only.rank, trainer.global_rank, trainer.world_size, "SLURM_NTASKS" in os.environ))

    shutil.copy(expected[1], tmp_path / "hpc_ckpt_1.ckpt")  # what Lightning resumes from inside a job
    enter(monkeypatch, launcher)
    before = dict(os.environ)
    config = short(tmp_path, "seed=1")
    record = train(config, callbacks=[Look()])
    assert figures(record) == expected[0] and len(record.metrics["epochs"]) == 1
    assert set(ranks) == {(0, 0, 1, False)}
    assert read_record(run_folder(config) / "record.json").status == "finished"
    again = evaluate(run_folder(config) / "last.ckpt").metrics["final"]
    assert again == pytest.approx({name: expected[0][name] for name in again})
    assert {path.name for path in tmp_path.iterdir()} == {"hpc_ckpt_1.ckpt", run_folder(config).name}
    assert dict(os.environ) == before and rank_zero_only.rank == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_launchers_hold_the_lock(tmp_path, monkeypatch, launcher):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    enter(monkeypatch, launcher)
    config, sizes = short(tmp_path), {"WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}
    with hold(run_folder(config)), pytest.raises(BusyError) as error:
        train(config)
    announced = next((f"{name}=2" for name in (*sizes, "JSM_NAMESPACE_SIZE") if os.environ.get(name) == "2"), None)
    assert ("expected one process, or ranks that" in str(error.value)) == bool(announced)
    assert announced is None or (announced in str(error.value) and "DK_BENCH_LAUNCHER=" in str(error.value))
    assert [path.name for path in run_folder(config).iterdir()] == [lock.LOCK]

    class Look(pl.Callback):
        held = False

        def on_train_start(self, *_):
            self.held = is_held(run_folder(config))

    look = Look()
    train(config, callbacks=[look])
    assert look.held and not is_held(run_folder(config))


def test_signal_in_a_job_writes_no_file_of_lightnings(tmp_path, monkeypatch):
    """Lightning would take SIGUSR1 for the job's time limit, write hpc_ckpt_1.ckpt and requeue the job."""
    called = []
    monkeypatch.setattr("pytorch_lightning.trainer.connectors.signal_connector.call", called.append)
    enter(monkeypatch, "srun, one task")

    class Warn(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            os.kill(os.getpid(), signal.SIGUSR1)

    config = tiny(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="interrupted by SIGUSR1"):
        train(config, callbacks=[Warn()])
    left = {run_folder(config).name, "record.json", "last.ckpt", lock.LOCK}
    assert {path.name for path in tmp_path.rglob("*")} == left
    assert read_record(run_folder(config) / "record.json").error == "interrupted by SIGUSR1" and not called


def test_detector_in_a_job(tmp_path, monkeypatch):
    pytest.importorskip("mmdet")
    from detection_cases import tiny_detection

    config = tiny_detection(tmp_path, "train_cfg.max_epochs=1", "seed=1")
    right = figures(train(config))
    moved = run_folder(config).rename(tmp_path / "outside")
    train(other := tiny_detection(tmp_path, "train_cfg.max_epochs=1"))
    shutil.copy(run_folder(other) / "last.ckpt", tmp_path / "runs" / "hpc_ckpt_1.ckpt")
    enter(monkeypatch, "srun, one task")
    assert figures(train(config)) == right
    again = evaluate(moved / "last.ckpt").metrics["final"]
    assert again == {name: right[name] for name in again}
    assert len([*(tmp_path / "runs").iterdir()]) == 3


def test_failure_is_told_to_wandbs_sweep_by_any_launchers_process(monkeypatch):
    from dk_bench.training import wandb_tracking

    told = []
    run = types.SimpleNamespace(summary={}, finish=lambda exit_code: told.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda: run))
    monkeypatch.setattr(wandb_tracking, "_logged", False)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    enter(monkeypatch, "srun")
    wandb_tracking.tell_sweep_of_failure(UserError("no such file"))
    assert told == [1] and run.summary["error"] == "no such file"


def test_what_is_a_launchers_variable():
    for variables in LAUNCHERS.values():
        for name in variables:
            of_job = name.startswith(("SLURM_JOB_", "LSB_JOBID", "LSB_MCPU")) or name == "SLURM_NNODES"
            assert is_launchers(name) != of_job, name
    others = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "SLURM_CPUS_PER_TASK": "4", "LORA_RANK": "8", "PL_X": "1"}
    assert without_launchers({**others, **TORCHRUN, "SLURM_PROCID": "0"}) == others


def test_what_a_library_sets_may_be_taken_away_twice(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    with ordinary_environment():
        os.environ["PL_GLOBAL_SEED"] = "2"
        with ordinary_environment():
            assert "PL_GLOBAL_SEED" not in os.environ
        assert os.environ["PL_GLOBAL_SEED"] == "2"
    assert os.environ["PL_GLOBAL_SEED"] == "1"


def test_environment_is_ordinary_in_a_block_and_comes_back(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with ordinary_environment(), ordinary_environment():
        assert "SLURM_PROCID" not in os.environ
        os.environ["MASTER_PORT"] = "1"  # Lightning
    assert os.environ["SLURM_PROCID"] == "1" and "MASTER_PORT" not in os.environ


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_runs_of_a_sweep_are_nobodys_ranks(tmp_path, monkeypatch, launcher):
    enter(monkeypatch, launcher)
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    job = Job("env", [sys.executable, "-S", "-c", "import os; print(*os.environ, sep='\\n')"], tmp_path / "log")
    run_jobs([job], 1)
    seen = job.log.read_text().splitlines()
    assert job.state == "finished" and "SLURM_JOB_ID" in seen and not [*filter(is_launchers, seen)]


LEAVES = """
import json, pathlib, sys
folder, status, code = sys.argv[1:]
if status != "none":
    record = json.loads(pathlib.Path("template.json").read_text()) | {"status": status}
    record["error"] = "interrupted by SIGTERM" if status == "failed" else None
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    pathlib.Path(folder, "record.json").write_text(json.dumps(record))
sys.exit(int(code))
"""


@pytest.mark.parametrize(
    ("status", "code", "state", "reason"),
    [
        ("finished", 0, "finished", ""),
        ("finished", 1, "finished", "exit status 1, but its record is finished"),
        ("failed", 0, "failed", "exit status 0, but its record says failed: interrupted by SIGTERM"),
        ("failed", 143, "failed", "exit status 143"),
        ("running", 0, "failed", "exit status 0, but its record says running"),
        ("none", 0, "failed", "exit status 0, but it left no record"),
        ("none", 2, "failed", "exit status 2"),
    ],
)
def test_a_sweep_believes_the_record(tmp_path, monkeypatch, status, code, state, reason):
    from table_cases import make_record

    from dk_bench.runs.record import write_record
    from dk_bench.sweep.job import TrainingRun

    monkeypatch.chdir(tmp_path)
    write_record(make_record("a", 50.0), "template.json")
    argv = [sys.executable, "-S", "-c", LEAVES, str(tmp_path / "run"), status, str(code)]
    job = Job("run", argv, tmp_path / "log", TrainingRun(tmp_path / "run", tmp_path))
    run_jobs([job], 1)
    assert (job.state, job.reason) == (state, reason)


def run_folder_in(folder):
    (path,) = folder.iterdir()
    return path


# The commands, in a job


def test_commands_in_a_job(tmp_path, monkeypatch, expected, capsys):
    """A run that is stopped twice; then a sweep and an evaluation, its checkpoint where Lightning would take it."""
    environment = {**os.environ, **LAUNCHERS["srun, one task"], "SLURM_PROCID": "1", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "dk_bench"]
    (tmp_path / "c.yaml").write_text("{}")
    overrides = [*TINY, "optim.epochs=400", f"output={tmp_path / 'out'}"]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        command = [*run, "train", str(tmp_path / "c.yaml"), *overrides]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
            for line in process.stderr:
                if line.startswith("epoch") and (run_folder_in(tmp_path / "out") / "last.ckpt").exists():
                    break
            process.send_signal(number)
            said = process.stderr.read().splitlines()
        assert process.returncode == 128 + number
        if number == signal.SIGUSR1:
            assert said.pop().startswith("dk-bench train: job 1234 could not be put back into the queue (scontrol ")
        assert said[-1].startswith(f"dk-bench train: interrupted by {number.name}; the same command goes on from ")
        (path,) = find_records([tmp_path])
        record = read_record(path)
        assert (record.status, record.error) == ("failed", f"interrupted by {number.name}")
    assert len(record.attempts) == 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {path.parent.name}
    path.parent.rename(tmp_path / "stopped")
    shutil.copy(tmp_path / "stopped" / "last.ckpt", tmp_path / "out" / "hpc_ckpt_1.ckpt")
    enter(monkeypatch, "srun, one task")
    command = [*run, "train", str(tmp_path / "c.yaml"), *TINY, *SHORT, "${args_no_hyphens}"]
    content = {"method": "grid", "parameters": {"seed": {"value": 1}}, "command": command}
    (tmp_path / "s.yaml").write_text(json.dumps(content))
    assert main(["sweep", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "out")]) == 0
    (path,) = find_records([tmp_path / "out"])
    assert figures(read_record(path)) == pytest.approx(expected[0])
    capsys.readouterr()
    assert main(["eval", str(path.parent / "last.ckpt")]) == 0
    assert f"top-1 {expected[0]['val/top1']:.2f} %" in capsys.readouterr().out
