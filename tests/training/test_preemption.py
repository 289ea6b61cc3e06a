"""A run that a signal asks to stop: it ends its step, writes its checkpoint, and goes on to the same bits."""

import contextlib
import errno
import multiprocessing
import os
import random
import signal
import threading
import time
import types

import pytest
import pytorch_lightning as pl
import torch
from new_python import run_new_python
from training_cases import EPOCHS, STEPS, TINY, timeless, tiny, weights

from dk_bench.classification.module import LitClassifier
from dk_bench.config import to_dict
from dk_bench.processes import interrupts
from dk_bench.processes.interrupts import Interrupted
from dk_bench.processes.meeting import ProcessLost
from dk_bench.runs.lock import is_held
from dk_bench.runs.record import find_records, read_record
from dk_bench.training import callbacks, read_checkpoint, run_folder, train
from dk_bench.training.own_trainer import Diverged, _of_process

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
EMA = "ema.decay=0.9"


class Signal(pl.Callback):
    """Sends this process a signal in a step, or in the validation of an epoch."""

    def __init__(self, number=signal.SIGTERM, *, step=None, validation=None, times=1):
        self.number, self.step, self.validation, self.times = number, step, validation, times

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            self.send()

    def on_validation_batch_start(self, trainer, *_):
        if trainer.current_epoch == self.validation:
            self.send()

    def send(self):
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers():
    """As a program in a terminal begins, also where the tests run under nohup."""
    found = {number: signal.getsignal(number) for number in interrupts.STOPS}
    for number in found:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in found.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Epochs and weights of a run that nobody stops, with the weights' average."""
    config = tiny(tmp_path_factory.mktemp("whole"), EMA)
    return timeless(train(config)), weights(config)


def record_of(config):
    return read_record(run_folder(config) / "record.json")


def step_of(config):
    return read_checkpoint(run_folder(config) / "last.ckpt")["global_step"]


def stop(config, callback, why="SIGTERM"):
    """Trains until a signal ends it, and returns the record that it leaves."""
    with pytest.raises(Interrupted, match=f"^interrupted by {why}$") as error:
        train(config, callbacks=[callback])
    assert error.value.status == 128 + signal.Signals[why]
    record = record_of(config)
    assert (record.status, record.error) == ("failed", f"interrupted by {why}")
    assert record.ended and not is_held(run_folder(config))
    return record


def check_same(config, record, expected):
    epochs, held = expected
    assert record.status == "finished" and timeless(record) == epochs
    again = weights(config)
    assert again.keys() == held.keys() and all(torch.equal(again[name], held[name]) for name in held)


@pytest.mark.parametrize("number", SIGNALS)
def test_step_is_ended_and_its_checkpoint_written(tmp_path, number):
    config = tiny(tmp_path)
    record = stop(config, Signal(number, step=STEPS + 1), number.name)
    assert len(record.metrics["epochs"]) == 1 and record.attempts[-1]["steps"] == STEPS + 2
    assert step_of(config) == STEPS + 2
    assert {path.name for path in run_folder(config).iterdir()} == {"record.json", "last.ckpt", "run.lock"}


def test_run_that_is_stopped_again_and_again_is_the_uninterrupted_one(tmp_path, expected):
    draw, config = random.Random(0), tiny(tmp_path, EMA)
    steps = sorted(draw.sample(range(EPOCHS * STEPS), 6))
    for step in steps:
        number = draw.choice(SIGNALS)
        record = stop(config, Signal(number, step=step), number.name)
        assert step_of(config) == step + 1 and len(record.metrics["epochs"]) == step // STEPS
    record = train(config)
    assert len(record.attempts) == len(steps) + 1
    assert sum(attempt["steps"] for attempt in record.attempts) == EPOCHS * STEPS  # none was computed twice
    check_same(config, record, expected)


def test_signal_in_validation_waits_for_the_epochs_end(tmp_path, expected):
    config = tiny(tmp_path, EMA)
    record = stop(config, Signal(validation=1))
    assert len(record.metrics["epochs"]) == 2 and step_of(config) == 2 * STEPS
    check_same(config, train(config), expected)


def test_signal_in_an_epochs_last_step_leaves_its_validation_to_the_next_start(tmp_path, expected):
    config = tiny(tmp_path, EMA)
    for epochs in (0, 2, EPOCHS - 1):
        record = stop(config, Signal(step=(epochs + 1) * STEPS - 1))
        assert len(record.metrics["epochs"]) == epochs and step_of(config) == (epochs + 1) * STEPS
    record = train(config)
    assert [attempt["steps"] for attempt in record.attempts] == [STEPS, 2 * STEPS, STEPS, 0]
    check_same(config, record, expected)


def test_validation_that_begins_with_a_checkpoint_is_stopped_at_once(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(callbacks, "WORTH_SECONDS", 0.0)
    config = tiny(tmp_path, EMA)
    for _ in range(2):  # the second time it begins with the validation
        record = stop(config, Signal(validation=1))
        assert len(record.metrics["epochs"]) == 1 and step_of(config) == 2 * STEPS
    assert [attempt["steps"] for attempt in record.attempts] == [2 * STEPS, 0]
    check_same(config, train(config), expected)


def test_crash_in_such_a_validation_costs_the_validation_alone(tmp_path, monkeypatch, expected):
    class Crash(pl.Callback):
        def on_validation_batch_end(self, trainer, *_):
            if trainer.current_epoch == 1:
                raise MemoryError("no more")

    monkeypatch.setattr(callbacks, "WORTH_SECONDS", 0.0)
    config = tiny(tmp_path, EMA)
    with pytest.raises(MemoryError):
        train(config, callbacks=[Crash()])
    record = train(config)
    assert [attempt["steps"] for attempt in record.attempts] == [2 * STEPS, 2 * STEPS]
    check_same(config, record, expected)


def test_run_that_has_come_to_its_end_finishes(tmp_path, expected):
    config = tiny(tmp_path, EMA)
    check_same(config, train(config, callbacks=[Signal(validation=EPOCHS - 1)]), expected)


def test_test_images_are_left_to_the_next_attempt(tmp_path):
    config = tiny(tmp_path, "data.procedural.scale=[0.2, 0.28]", "data.procedural.test_images=4")
    record = stop(config, Signal(validation=EPOCHS - 1))
    assert len(record.metrics["epochs"]) == EPOCHS and not record.metrics["final"]
    record = train(config)
    assert record.status == "finished" and "test/top1" in record.metrics["final"]
    assert record.attempts[-1]["steps"] == 0


def test_evaluation_of_test_images_is_stopped_at_once(tmp_path):
    class InTest(Signal):
        tested = 0

        def on_test_batch_start(self, *_):
            self.tested += 1
            self.send()

    config = tiny(tmp_path, "data.procedural.scale=[0.2, 0.28]", "data.procedural.test_images=9")
    signalled = InTest(signal.SIGUSR1)
    record = stop(config, signalled, "SIGUSR1")
    assert signalled.tested == 1 and len(record.metrics["epochs"]) == EPOCHS and not record.metrics["final"]
    record = train(config)
    assert record.status == "finished" and "test/top1" in record.metrics["final"]
    assert record.attempts[-1]["steps"] == 0


def test_checkpoint_that_cannot_be_written_is_told_in_place_of_the_signal(tmp_path, monkeypatch, expected):
    """The run has lost what it trained since its last checkpoint; a job that is put back would do so again."""
    from dk_bench.training import trainer

    write = trainer.write_plain

    def full(content, stream):
        if content["global_step"] == STEPS + 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(content, stream)

    config = tiny(tmp_path, EMA)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_plain", full)
        with pytest.raises(OSError, match="No space left"):
            train(config, callbacks=[Signal(signal.SIGUSR1, step=STEPS + 1)])
    record = record_of(config)
    assert record.status == "failed" and "No space left on device" in record.error
    assert step_of(config) == STEPS and not is_held(run_folder(config))
    check_same(config, train(config), expected)


@pytest.mark.parametrize(
    ("error", "of_launcher", "told"),
    [
        (ProcessLost("process 2 of 2 is gone"), True, ProcessLost),  # torchrun then asks the others to stop
        (ProcessLost("process 2 of 2 ended with exit status 1"), False, Interrupted),  # as the whole group was asked to
        (Diverged("training loss is nan"), False, Diverged),
        (RuntimeError("DataLoader worker is killed by signal"), False, Interrupted),
    ],
)
def test_what_no_signal_has_brought_with_it_is_told_in_place_of_one(monkeypatch, error, of_launcher, told):
    from dk_bench.training import ending

    world = types.SimpleNamespace(together=lambda *_: contextlib.nullcontext(), meeting=of_launcher or None)
    monkeypatch.setattr(ending, "own_world", lambda: world)
    with pytest.raises(told), interrupts.interrupts():
        with ending.together(types.SimpleNamespace(world_size=2)), interrupts.noting():
            interrupts.note()
            os.kill(os.getpid(), signal.SIGTERM)
            raise error


def test_signals_together_are_one_request_and_another_later_stops_at_once(tmp_path, monkeypatch):
    config = tiny(tmp_path)
    stop(config, Signal(step=STEPS + 1, times=3))
    assert step_of(config) == STEPS + 2
    monkeypatch.setattr(interrupts, "TOGETHER_SECONDS", 0.0)
    record = stop(config, Signal(step=2 * STEPS + 1, times=2))
    assert record.attempts[-1]["steps"] == 2 and step_of(config) == 2 * STEPS  # the epoch's


def test_steps_of_several_batches_are_ended(tmp_path):
    whole = tiny(tmp_path / "whole", "trainer.accumulate_grad_batches=2")
    known = timeless(train(whole)), weights(whole)

    class SignalInBatch(Signal):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == self.step:
                self.send()

    config = tiny(tmp_path, "trainer.accumulate_grad_batches=2")
    record = stop(config, SignalInBatch(step=(1, 0)))  # of batches 0 and 1
    assert record.attempts[-1]["steps"] == STEPS + 2 and step_of(config) == 3
    check_same(config, train(config), known)


def test_second_signal_does_not_cut_a_checkpoint(tmp_path, monkeypatch):
    from dk_bench.training import trainer

    write = trainer.write_plain

    def signalled(content, stream):
        if content["global_step"] == STEPS + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        write(content, stream)

    monkeypatch.setattr(interrupts, "TOGETHER_SECONDS", 0.0)
    monkeypatch.setattr(trainer, "write_plain", signalled)
    config = tiny(tmp_path)
    stop(config, Signal(step=STEPS + 1))
    assert step_of(config) == STEPS + 2
    assert not list(run_folder(config).glob(".*.tmp"))


@pytest.mark.parametrize("after", [0.0, 0.2])
def test_signal_to_the_whole_group_leaves_data_loaders_at_work(tmp_path, expected, after):
    """As a scheduler sends it, or a sweep: the workers may get it first."""

    class SignalAll(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == STEPS + 1:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGTERM)
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(1)

    config = tiny(tmp_path, EMA, "data.workers=2")
    stop(config, SignalAll())
    assert step_of(config) == STEPS + 2
    check_same(config, train(config), expected)


def test_signal_that_meets_a_destructor_is_not_lost(tmp_path):
    class Garbage:
        def __del__(self):
            with contextlib.suppress(Interrupted):  # Python itself does that, with a warning
                os.kill(os.getpid(), signal.SIGTERM)

    class Drop(pl.Callback):
        def on_train_start(self, *_):
            Garbage()

    stop(tiny(tmp_path), Drop())


def test_loggers_have_what_an_uninterrupted_run_gives_them(tmp_path):
    rows = {}
    for name in ("whole", "stopped"):
        config = tiny(tmp_path / name, "logger=csv")
        if name == "stopped":
            for step in (1, STEPS + 1, 3 * STEPS - 1):  # the last one of an epoch too
                stop(config, Signal(step=step))
        train(config)
        (path,) = run_folder(config).rglob("metrics.csv")
        rows[name] = path.read_text().splitlines()[:-1]  # the last one tells how fast it was
    assert rows["stopped"] == rows["whole"]


# Several processes, of which one gets the signal

TRAIN = """
import os, signal, sys
import pytorch_lightning as pl
from dk_bench.cli import main
from dk_bench.training import run

class Signal(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        where = (os.path.basename(trainer.default_root_dir), trainer.global_rank, trainer.global_step)
        if where == ("stopped", 1, int(os.environ["SIGNAL_AT"])):
            os.kill(os.getpid(), signal.SIGUSR1)

make_trainer = run.make_trainer
run.make_trainer = lambda task, callbacks, *rest: make_trainer(task, [Signal(), *callbacks], *rest)
*arguments, folders = sys.argv[1:]
sys.exit(max(main([*arguments, f"output={folder}"]) for folder in folders.split()))
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_processes_stop_at_one_step_whichever_of_them_is_asked(tmp_path):
    def run(*folders, signal_at=-1):
        arguments = ["train", str(tmp_path / "c.yaml"), *TINY, "optim.epochs=2", "trainer.devices=2", EMA]
        paths = " ".join(str(tmp_path / folder) for folder in folders)
        environment = {**os.environ, "SIGNAL_AT": str(signal_at), "OMP_NUM_THREADS": "1"}
        return run_new_python(["-c", TRAIN, *arguments, paths], env=environment)

    def left(folder):
        (path,) = find_records([tmp_path / folder])
        return read_record(path), read_checkpoint(path.parent / "last.ckpt")

    (tmp_path / "c.yaml").write_text("{}")
    done = run("whole", "stopped", signal_at=STEPS + 1)
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith("dk-bench train: interrupted by SIGUSR1; the same command goes on")
    (whole, expected), (record, stopped) = left("whole"), left("stopped")
    assert (record.status, record.error) == ("failed", "interrupted by SIGUSR1")
    assert stopped["global_step"] == STEPS + 2 and len(stopped["losses"]) == 2
    done = run("stopped")
    assert done.returncode == 0, done.stderr[-2000:]
    record, resumed = left("stopped")
    assert timeless(record) == timeless(whole) and [attempt["steps"] for attempt in record.attempts] == [5, 1]
    for name, value in expected["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_losses_of_processes_are_shared_out_anew():
    held = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert [_of_process(held, number, 2).tolist() for number in range(2)] == held.tolist()
    shared = [_of_process(held, number, 3).tolist() for number in range(3)]
    assert shared == 3 * [[2, 3]] and _of_process(held, 0, 1).tolist() == [2, 3]


@pytest.mark.parametrize("averaged", [False, True])
def test_a_process_goes_on_with_its_own_losses(tmp_path, monkeypatch, averaged):
    """Also where Lightning's average stands beside what training goes on with, which the first process wrote."""
    module = LitClassifier(to_dict(tiny(tmp_path)), list("ab"))
    module._trainer = types.SimpleNamespace(world_size=2, precision="32-true", global_rank=1)
    monkeypatch.setattr(LitClassifier, "global_rank", 1)
    state = {"train_loss.mean_value": torch.tensor(1.0), "train_loss.weight": torch.tensor(2.0)}
    checkpoint = {"state_dict": {}, "module_state": dict(state), "losses": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    checkpoint |= {"current_model_state": dict(state)} if averaged else {}
    module.on_load_checkpoint(checkpoint)
    held = checkpoint["current_model_state" if averaged else "state_dict"]
    assert [held[f"train_loss.{name}"].item() for name in ("mean_value", "weight")] == [3, 4]
