"""Signals that ask to stop: the record, the exit status and one sentence say so, and the next start goes on."""

import os
import signal
import time
import types
from pathlib import Path

import pytest
import torch
from training_cases import STEPS, TINY, tiny

from dk_bench.classification.task import Classification
from dk_bench.cli import main
from dk_bench.processes import interrupts
from dk_bench.processes.interrupts import STOPS, Interrupted
from dk_bench.runs.record import find_records, read_record
from dk_bench.training import LitClassifier, run_folder, train
from dk_bench.training import run as training

GOES_ON = "the same command goes on from the run's last checkpoint"


@pytest.fixture(autouse=True)
def handlers():
    """The tests begin as a program in a terminal does, also where they run in the background, under nohup, where some
    signals are ignored; none may leave a handler behind."""
    found = {number: signal.getsignal(number) for number in STOPS}
    before = {number: signal.SIG_DFL for number in STOPS} | {signal.SIGINT: signal.default_int_handler}
    for number, handler in before.items():
        signal.signal(number, handler)
    yield
    after = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in found.items():
        signal.signal(number, handler)
    assert after == before


def send_in(monkeypatch, owner, method, number, call=1, *, at_once=True):
    """Has a method send a signal to this process, when it is called for the so many-th time; ``at_once``: it is not to
    go on then."""
    original, calls = getattr(owner, method), []

    def sending(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            time.sleep(10 if at_once else 0)  # a handler runs before the next statement
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, sending)


def command(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text("{}")
    return ["train", str(folder / "c.yaml"), *TINY, f"output={folder}", "optim.epochs=2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_train_ends_with_the_signals_status_and_a_sentence(tmp_path, monkeypatch, capsys, number):
    send_in(monkeypatch, LitClassifier, "training_step", number, call=STEPS + 2, at_once=False)
    assert main(command(tmp_path)) == 128 + number
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"dk-bench train: interrupted by {number.name}; {GOES_ON}"
    (path,) = find_records([tmp_path])
    record = read_record(path)
    assert (record.status, record.error) == ("failed", f"interrupted by {number.name}")
    assert {p.name for p in path.parent.iterdir()} == {"record.json", "last.ckpt", "run.lock"}
    assert {p.name for p in tmp_path.iterdir()} == {"c.yaml", path.parent.name}


def test_signal_before_training_begins(tmp_path, monkeypatch, capsys):
    send_in(monkeypatch, Classification, "data", signal.SIGTERM)
    assert main(command(tmp_path)) == 143
    assert capsys.readouterr().err == f"dk-bench train: interrupted by SIGTERM; {GOES_ON}\n"
    assert not find_records([tmp_path])  # there is nothing to tell of yet
    assert main(command(tmp_path)) == 0


def test_further_signals_do_not_keep_the_record_from_being_written(tmp_path, monkeypatch, capsys):
    from dk_bench.training import ending

    write = ending.write_record

    def interrupted(record, path):
        if record.status == "failed":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return write(record, path)

    monkeypatch.setattr(ending, "write_record", interrupted)
    send_in(monkeypatch, LitClassifier, "training_step", signal.SIGHUP, call=2, at_once=False)
    assert main(command(tmp_path)) == 128 + signal.SIGHUP
    (path,) = find_records([tmp_path])
    assert read_record(path).error == "interrupted by SIGHUP"


def test_wandb_that_waits_for_a_network_is_ended_by_another_signal(tmp_path, monkeypatch, capsys):
    ended = []

    def end(record):
        ended.append(record.error)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        ended.append("waited on")

    tracking = types.SimpleNamespace(
        logger=None, start=lambda: None, begin=lambda _: os.kill(os.getpid(), signal.SIGTERM), end=end
    )
    monkeypatch.setattr(training, "open_tracking", lambda *_, **__: tracking)
    strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
    trainer = types.SimpleNamespace(is_global_zero=True, world_size=1, strategy=strategy)
    monkeypatch.setattr(training, "make_trainer", lambda *_: trainer)
    assert main(command(tmp_path)) == 130
    assert ended == ["interrupted by SIGTERM"]
    assert capsys.readouterr().err.splitlines()[-1] == f"dk-bench train: interrupted by SIGINT; {GOES_ON}"
    (path,) = find_records([tmp_path])
    assert read_record(path).error == "interrupted by SIGTERM"


def test_eval_that_is_asked_to_stop(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, "optim.epochs=1", "optim.warmup_epochs=0")
    train(config)
    send_in(monkeypatch, LitClassifier, "validation_step", signal.SIGTERM)
    capsys.readouterr()
    path = tmp_path / "eval.json"
    assert main(["eval", str(run_folder(config) / "last.ckpt"), "--record", str(path)]) == 143
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "dk-bench eval: interrupted by SIGTERM\n") and not path.exists()


def test_detector_that_is_asked_to_stop(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mmdet")
    from detection_cases import tiny_file

    from dk_bench.detection.module import LitDetector

    argv = ["train", str(tiny_file(tmp_path)), f"output={tmp_path / 'runs'}", "train_cfg.max_epochs=2"]
    with monkeypatch.context() as patch:
        send_in(patch, LitDetector, "training_step", signal.SIGTERM, call=7, at_once=False)
        assert main(argv) == 143
    assert capsys.readouterr().err.splitlines()[-1] == f"dk-bench train: interrupted by SIGTERM; {GOES_ON}"
    (path,) = find_records([tmp_path])
    record = read_record(path)
    assert (record.status, record.error, len(record.metrics["epochs"])) == ("failed", "interrupted by SIGTERM", 1)
    with monkeypatch.context() as patch:
        send_in(patch, LitDetector, "validation_step", signal.SIGTERM)
        assert main(["eval", str(path.parent / "last.ckpt")]) == 143
    assert main(argv) == 0 and read_record(path).status == "finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_sweep_that_is_asked_to_stop_ends_its_runs(tmp_path, monkeypatch, capsys, number):
    monkeypatch.chdir(tmp_path)
    command = f"echo $$ > pid; kill -{int(number)} $PPID; sleep 60 & wait"
    Path("s.yaml").write_text(f"method: grid\nparameters: {{a: {{value: 1}}}}\ncommand: [sh, -c, '{command}']\n")
    assert main(["sweep", "s.yaml", "--output", "out"]) == 128 + number
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"dk-bench sweep: interrupted by {number.name}; the same command goes on from here"
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)


def test_signal_waits_where_nothing_may_be_half_done():
    done = []
    with interrupts.interrupts(), pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(1)
        done.append(2)
    assert done == [1]


def test_signals_that_are_ignored_or_another_s_are_left_alone(monkeypatch):
    seen = []
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    user = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        with interrupts.interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            interrupts.hold_on()
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGUSR1, user)
    assert seen == [1, 1]
