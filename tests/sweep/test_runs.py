"""Runs that several processes want: one at a time has a run, all of them share the work, none does it twice."""

import dataclasses
import json
import sys
import threading
from pathlib import Path

import pytest
from training_cases import tiny

from dk_bench.cli import main
from dk_bench.errors import BusyError
from dk_bench.runs import lock
from dk_bench.runs.lock import LOCK, hold, is_held
from dk_bench.runs.record import attempts_of, new_record, read_record, write_record
from dk_bench.sweep import runner
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.job import Job, TrainingRun, task_in
from dk_bench.sweep.listing import make_jobs, skip_finished
from dk_bench.sweep.runner import run_jobs
from dk_bench.sweep.wandb_requeue import _AsFarAsWandbKnows
from dk_bench.training import run_folder, train

ROOT = Path(__file__).parents[2]
# A run that behaves as training does, but for what it computes: FOLDER RECORD, the record to leave there. It counts
# how often it was trained.
RUN = """
import fcntl, os, pathlib, sys, time
folder, record = map(pathlib.Path, sys.argv[1:])
folder.mkdir(parents=True, exist_ok=True)
stream = open(folder / "run.lock", "a")
try:
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(75)
if not (folder / "record.json").exists():
    time.sleep(0.1)
    with open(folder / "trained", "a") as trained:
        trained.write("x")
    (folder / "new").write_text(record.read_text())
    os.replace(folder / "new", folder / "record.json")
"""


LEAVE_RECORD = "mkdir -p $0; cp $1 $0/new; mv $0/new $0/record.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("dk_bench.sweep.job.LOOK_SECONDS", 0.0)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)


def make_record(**more):
    record = new_record(name="a", config={}, model={"name": "m"}, data={"name": "d"}, seed=0, device="cpu")
    return dataclasses.replace(record, **more)


def finished_record(folder):
    return write_record(make_record(status="finished"), folder / "finished.json")


def make_job(folder, name="job", argv=None):
    """A job whose process, unless ``argv`` says otherwise, leaves a finished record and no more."""
    argv = argv or ["sh", "-c", LEAVE_RECORD, str(folder / name), str(finished_record(folder))]
    return Job(name, list(argv), folder / f"{name}.log", TrainingRun(folder / name, folder))


def test_run_that_another_process_trains_is_refused(tmp_path, capsys):
    config = tiny(tmp_path)
    with hold(run_folder(config)):
        with pytest.raises(BusyError, match="is training this very run"):
            train(config)
        Path(tmp_path / "c.yaml").write_text("{}")
        overrides = ["name=tiny", f"output={tmp_path}"]
        folder = TrainingRun.of(task_in(["dk-bench", "train", str(tmp_path / "c.yaml"), *overrides])).folder
        with hold(folder):
            assert main(["train", str(tmp_path / "c.yaml"), *overrides]) == 75
    assert [path.name for path in run_folder(config).iterdir()] == [LOCK]
    assert "is training this very run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "error", "state"),
    [
        ("finished", None, "skipped"),
        ("failed", "disk full", "failed"),
        ("failed", "interrupted", "finished"),
        ("failed", "interrupted by SIGTERM", "finished"),  # cut off: run here
        ("running", None, "finished"),
    ],
)
def test_what_another_process_makes_of_a_run_counts(tmp_path, status, error, state):
    job, other, states = make_job(tmp_path), hold(tmp_path / "job"), []
    other.__enter__()

    def watch(changed):
        states.extend([changed.state] if changed else [])
        if changed is None and is_held(job.run.folder):
            write_record(make_record(status=status, error=error), job.run.folder / "record.json")
            other.__exit__(None, None, None)

    run_jobs([job], 1, watch)
    assert job.state == state and states[0] == "elsewhere"
    assert ("running" in states) == (state == "finished")
    assert job.reason == {"skipped": "finished elsewhere", "failed": "elsewhere: disk full"}.get(state, "")


def test_failure_from_before_is_run_again(tmp_path):
    write_record(make_record(status="failed", error="disk full"), tmp_path / "job" / "record.json")
    job = make_job(tmp_path)
    job.run.know()
    run_jobs([job], 1)
    assert job.state == "finished"


def test_process_that_finds_another_at_its_run_is_no_failure(tmp_path):
    code = f"test -e $2 || {{ touch $2; exit 75; }}; {LEAVE_RECORD}"
    argv = ["sh", "-c", code, str(tmp_path / "job"), str(finished_record(tmp_path)), str(tmp_path / "tried")]
    job, states = make_job(tmp_path, argv=argv), []
    run_jobs([job], 1, lambda changed: states.extend([changed.state] if changed else []))
    assert states == ["running", "elsewhere", "running", "finished"] and job.failures == 0


@pytest.mark.parametrize(
    ("kind", "final", "code", "state", "reason"),
    [
        (TrainingRun, {}, 1, "failed", "exit status 1"),
        (TrainingRun, {}, 0, "failed", "exit status 0, but its record says finished, without figures of test"),
        (TrainingRun, {"test/top1": 50.0}, 1, "finished", "exit status 1, but its record is finished"),
        (_AsFarAsWandbKnows, {}, 0, "failed", "exit status 0, but its record says finished, without figures of test"),
        (_AsFarAsWandbKnows, {"test/top1": 50.0}, 1, "failed", "exit status 1"),
        (_AsFarAsWandbKnows, {"test/top1": 50.0}, 0, "finished", ""),
    ],
)
def test_a_finished_record_that_wants_more_is_not_enough(tmp_path, kind, final, code, state, reason):
    """Figures of test images, which the run's process was to add from its checkpoint, or that W&B knows."""
    job = make_job(tmp_path, argv=["sh", "-c", f"exit {code}"])
    job.run = kind(**vars(job.run) | {"tests": ("test",)})
    write_record(make_record(status="finished", metrics={"epochs": [], "final": final}), job.run.folder / "record.json")
    (job.run.folder / "last.ckpt").touch()
    job.look = lambda: None  # what is finished is not started; this run's process began before
    run_jobs([job], 1)
    assert (job.state, job.reason) == (state, reason)


def run_together(*runners, workers):
    """Runs the jobs of several runners, which start at the same moment: each is finished, by one or by another."""
    together = threading.Barrier(len(runners))
    threads = [
        threading.Thread(target=lambda jobs=jobs: (together.wait(), run_jobs(jobs, workers))) for jobs in runners
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {job.state for jobs in runners for job in jobs} <= {"finished", "skipped"}


def test_two_runners_share_a_folder(tmp_path):
    """Each run is trained once, whoever takes it, also where a grid names one run twice."""
    (tmp_path / "run.py").write_text(RUN)
    template = write_record(make_record(status="finished"), tmp_path / "template.json")

    def jobs():
        names = [*(str(n) for n in range(6)), "5"]
        command = [sys.executable, "-S", str(tmp_path / "run.py")]
        return [make_job(tmp_path, name, [*command, str(tmp_path / name), str(template)]) for name in names]

    run_together(jobs(), jobs(), workers=2)
    assert [(tmp_path / str(n) / "trained").read_text() for n in range(6)] == ["x"] * 6


def test_runners_that_start_together_take_different_runs(tmp_path):
    """Before a run holds its folder it imports for seconds: meanwhile no other runner starts it too."""
    record = write_record(make_record(status="finished"), tmp_path / "template.json")
    code = "echo x >> $0/started; sleep 0.1; cp $1 $0/new; mv $0/new $0/record.json"

    def jobs():
        names = [str(n) for n in range(5)]
        return [make_job(tmp_path, name, ["sh", "-c", code, str(tmp_path / name), str(record)]) for name in names]

    run_together(jobs(), jobs(), workers=1)
    assert [(tmp_path / str(n) / "started").read_text() for n in range(5)] == ["x\n"] * 5


def test_claim_goes_back_when_the_run_has_ended_or_could_not_start(tmp_path):
    jobs = [make_job(tmp_path, "ok"), make_job(tmp_path, "bad", ["false"]), make_job(tmp_path, "none", ["no-such-cmd"])]
    run_jobs(jobs, 1)
    assert [job.state for job in jobs] == ["finished", "failed", "failed"]
    for job in jobs:
        taken = lock.claim(job.run.folder)
        assert taken and lock.claim(job.run.folder) is None
        taken.release()


@pytest.mark.parametrize("command", ["dk-bench", "/opt/bin/dk-bench", "python -m dk_bench", "torchrun -m dk_bench"])
def test_command_is_known_as_training(tmp_path, command):
    (tmp_path / "c.yaml").write_text("{}")
    run = TrainingRun.of(task_in([*command.split(), "train", str(tmp_path / "c.yaml"), "seed=3"]))
    assert run and run.folder.name.endswith("-s3")
    assert task_in([*command.split(), "eval", str(tmp_path / "c.yaml"), "seed=3"]) is None
    assert task_in(["dk_bench", "train", str(tmp_path / "c.yaml")]) is None


@pytest.mark.parametrize(("retries", "state"), [(0, "failed"), (1, "failed"), (2, "finished")])
def test_failed_runs_are_run_again_after_the_others(tmp_path, retries, state):
    code = f"echo >> $2; test $(wc -l < $2) -ge 3 || exit 1; {LEAVE_RECORD}"
    argv = ["sh", "-c", code, str(tmp_path / "bad"), str(finished_record(tmp_path)), str(tmp_path / "tries")]
    jobs = [make_job(tmp_path, "bad", argv), make_job(tmp_path, "ok")]
    order = []
    run_jobs(jobs, 1, lambda job: order.extend([job.name] if job and job.state == "running" else []), retries=retries)
    assert [job.state for job in jobs] == [state, "finished"]
    assert order == ["bad", "ok"] + ["bad"] * retries and jobs[0].failures == min(retries, 1) + 1


def test_retries_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("try.yaml").write_text(json.dumps({"method": "grid", "parameters": {"a": {"value": 1}}, "command": ["false"]}))
    assert main(["sweep", "try.yaml", "--retries", "1", "--output", "out"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("failed try: exit status 1, see out/logs/try-001-run.log") == 2
    assert shown.count("will be run again") == 1 and "0 of 1 runs finished" in shown
    assert main(["sweep", "try.yaml", "--retries", "-1"]) == 2
    assert "--retries: expected at least 0, got -1" in capsys.readouterr().err


def test_workers_have_a_gpu_each(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert runner.available_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,MIG-a")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in runner._environments(3)] == ["5", "MIG-a", "5"]
    assert runner._environments(1)[0]["CUDA_VISIBLE_DEVICES"] == "5,MIG-a"
    jobs = [make_job(tmp_path, str(n), ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 0.3"]) for n in range(4)]
    run_jobs(jobs, 2)
    assert [job.last_line() for job in jobs[:2]] == ["5", "MIG-a"]
    assert sorted(job.last_line() for job in jobs[2:]) == ["5", "MIG-a"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert all(e.get("CUDA_VISIBLE_DEVICES") == "5,MIG-a" for e in runner._environments(2))


def test_finished_detectors_are_skipped(tmp_path, monkeypatch):
    detection = pytest.importorskip("dk_bench.detection.mmengine_config")
    monkeypatch.chdir(ROOT)
    config = detection.load_detection_config("configs/det/tiny_procedural.py", ["seed=1", f"output={tmp_path}"])
    content = {
        "method": "grid",
        "command": ["dk-bench", "train", "configs/det/tiny_procedural.py", "${args_no_hyphens}"],
        "parameters": {"seed": {"values": [0, 1]}, "output": {"value": str(tmp_path)}},
    }
    (tmp_path / "det.yaml").write_text(json.dumps(content))
    jobs = make_jobs(read_sweep(tmp_path / "det.yaml"), None)
    record = new_record(
        name="d",
        config=json.loads(json.dumps(config.to_dict())),
        model={"name": "m"},
        data={"name": "d"},
        seed=1,
        task="detection",
        device="cpu",
    )
    write_record(dataclasses.replace(record, status="finished"), run_folder(config) / "record.json")
    skip_finished(jobs)
    assert [job.state for job in jobs] == ["waiting", "skipped"]


@pytest.mark.parametrize("override", ["randomness.seed=5", "optim_wrapper.type=AmpOptimWrapper", "sync_bn=torch"])
def test_run_of_a_detectors_cell_is_the_one_that_is_trained(override):
    detection = pytest.importorskip("dk_bench.detection.mmengine_config")
    path = str(ROOT / "configs/det/tiny_procedural.py")
    trained = run_folder(detection.load_detection_config(path, [override]))
    assert TrainingRun.of(task_in(["dk-bench", "train", path, override])).folder == trained


def test_run_cut_before_its_first_checkpoint_keeps_its_name(tmp_path):
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0")
    train(config)
    path = run_folder(config) / "record.json"
    before = read_record(path)
    write_record(dataclasses.replace(before, status="running"), path)
    (run_folder(config) / "last.ckpt").unlink()
    after = train(config)
    assert after.run_id == before.run_id and len(attempts_of(after)) == 2
