"""The processes of a run: its first one starts them, they meet or the run ends, and none outlives it."""

import os
import signal
import subprocess
import sys
import threading
import time
import types
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cluster_cases import SLURM, TORCHRUN
from new_python import run_new_python
from training_cases import tiny

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.processes import ranks, world
from dk_bench.processes.interrupts import Interrupted, interrupts
from dk_bench.processes.meeting import ProcessLost, is_between_processes
from dk_bench.processes.ranks import Rank, this_rank
from dk_bench.processes.world import OwnWorld, start_seconds
from dk_bench.runs.record import find_records, read_record
from dk_bench.training import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def first(monkeypatch):
    """The first process of two, in which nothing exits: what would have been said is in ``said``. The second process is
    ``program``, Python."""
    own, said = OwnWorld(), []
    own.said, own.exited = said, threading.Event()

    def leave(status):
        said.append(status)
        own.exited.set()

    def start(program, wait=lambda: own.exited.wait(20), formed=False):
        monkeypatch.setattr(sys, "orig_argv", ["python", "-S", "-c", program])
        monkeypatch.setattr(world.dist, "is_initialized", lambda: formed)
        with own.together(2, lambda why: said.append(str(why))):
            return wait()

    own.start = start
    monkeypatch.setattr(world.os, "_exit", leave)
    monkeypatch.setattr(world, "GRACE_SECONDS", 0.2)
    yield own
    assert all(process.poll() is not None for process in own.others)


def miss():
    """Raises what torch does where another process is gone."""
    raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def test_process_that_ends_at_its_start_ends_the_run(first):
    assert first.start("import sys; sys.exit(3)") and first.said == ["process 2 of 2 ended with exit status 3", 1]


def test_process_that_ends_before_it_joins_ends_the_run(first):
    assert first.start("pass") and first.said == ["process 2 of 2 ended with exit status 0", 1]


def test_process_that_is_killed_ends_the_run(first):
    assert first.start("import os; os.kill(os.getpid(), 9)", formed=True)
    assert first.said == ["process 2 of 2 was ended by SIGKILL", 1]


@pytest.mark.parametrize("program", ["import sys; sys.exit(138)", "import os, signal; os.kill(os.getpid(), 10)"])
def test_signal_to_the_whole_group_that_does_not_reach_a_first_process_that_waits(first, program):
    """In torch's own code, where Python heeds no signal: the others, which have ended by it, tell of it."""
    assert first.start(program) and first.said == ["interrupted by SIGUSR1", 138]


def test_signal_to_the_whole_group_is_no_loss_of_the_others(first):
    with pytest.raises(Interrupted, match="^interrupted by SIGTERM$"):
        first.start("import sys; sys.exit(143)", wait=miss, formed=True)


def test_world_that_does_not_form_ends_after_the_stated_time(first, monkeypatch):
    monkeypatch.setenv("DK_BENCH_START_TIMEOUT", "0.5")
    assert first.start("import time; time.sleep(60)")
    words = "the run's 2 processes have not met within 0.5 s (DK_BENCH_START_TIMEOUT sets another time)"
    assert first.said == [words, 1]


def test_error_of_the_first_process_ends_the_others(first):
    with pytest.raises(OSError, match="disk full"):
        first.start("import time; time.sleep(60)", wait=lambda: (_ for _ in ()).throw(OSError("disk full")))
    assert first.others[0].returncode == -signal.SIGKILL and not first.said


def test_what_torch_says_of_a_process_that_is_gone_is_put_plainly(first):
    with pytest.raises(ProcessLost, match="^process 2 of 2 ended with exit status 5$"):
        first.start("import sys; sys.exit(5)", wait=miss, formed=True)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_errors_of_gloo_are_known():
    """By their text, which is another one's: by what gloo says where the other process is really gone."""
    store, groups = dist.HashStore(), {}

    def meet(rank):
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=20))

    other = threading.Thread(target=meet, args=(1,))
    other.start()
    meet(0)
    other.join()
    del groups[1]
    with pytest.raises(RuntimeError) as raised:
        groups[0].allreduce([torch.ones(1)]).wait()
    assert is_between_processes(raised.value)
    assert not is_between_processes(RuntimeError("input: expected (N, C, H, W), got shape (3, 4)"))
    assert is_between_processes(dist.DistNetworkError("the client socket has timed out"))


def test_signal_while_the_others_are_started_leaves_none(first, monkeypatch):
    popen = subprocess.Popen

    def start(*args, **kwargs):
        process = popen(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(world.subprocess, "Popen", start)
    with interrupts(), pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        first.start("import time; time.sleep(60)")
    assert [process.returncode for process in first.others] == [-signal.SIGKILL]


@pytest.mark.parametrize(
    ("there", "asked"),
    [({"rank": Rank(1, 2, 5000, 1)}, 1), ({"rank": Rank(1, 2, 5000, 1)}, 3), ({"others": [None]}, 1)],
)
def test_runs_of_one_program_have_as_many_processes(tmp_path, monkeypatch, there, asked):
    """Two processes would train and write the second run, each the whole of it: none holds the other's lock."""
    for name, value in there.items():
        monkeypatch.setattr(world.own_world(), name, value)
    config = tiny(tmp_path, f"trainer.devices={asked}", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match=f"'trainer.devices' asks for {asked} process(es)?, expected 2, as of the run"):
        train(config)
    assert not find_records([tmp_path])


def test_evaluation_has_as_many_processes_as_the_run_before(first):
    first.others.append(types.SimpleNamespace(poll=lambda: 0))
    with pytest.raises(UserError, match="asks for 3 processes, expected 2"), first.together(3, first.said.append):
        pass
    with first.together(1, first.said.append):  # by the first alone, or by each for itself
        pass


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_start_timeout_is_checked(monkeypatch, value):
    monkeypatch.setenv("DK_BENCH_START_TIMEOUT", value)
    with pytest.raises(UserError, match=f"DK_BENCH_START_TIMEOUT is '{value}', expected a number of seconds above 0"):
        start_seconds()


@pytest.mark.parametrize("value", ["", "1", "0 2 1 1", "2 2 1 1", "a b c d", "1 2 5000 -1"])
def test_rank_of_our_own_is_not_to_be_set_by_others(monkeypatch, capsys, value):
    monkeypatch.setenv(ranks.RANK, value)
    this_rank.cache_clear()
    assert main(["models"]) == 2
    assert f"DK_BENCH_RANK is '{value}', expected none" in capsys.readouterr().err


TWO = """
import os, signal, sys
import pytorch_lightning as pl
from training_cases import tiny
from dk_bench.training import train

class Die(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1:
            print("second", os.getpid(), flush=True)
        if trainer.global_step == 4 and trainer.global_rank == int(sys.argv[2]):
            os.kill(os.getpid(), int(sys.argv[3]))

record = train(tiny(sys.argv[1], "trainer.devices=2", "trainer.accelerator=cpu"), callbacks=[Die()])
print(record.status, record.error, flush=True)
"""


def is_alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] not in ("", "Z")


@pytest.mark.parametrize(
    ("victim", "number", "error"),
    [
        (0, signal.SIGKILL, None),
        (1, signal.SIGKILL, "process 2 of 2 was ended by SIGKILL"),
        (0, signal.SIGTERM, "interrupted by SIGTERM"),
    ],
)
def test_process_that_dies_in_training_leaves_none_that_wait(tmp_path, victim, number, error):
    """In an environment that announces another world, in which nobody would ever be met."""
    (tmp_path / "two.py").write_text(TWO)
    environment = {**os.environ, **SLURM, **TORCHRUN, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "cases")])
    command = [tmp_path / "two.py", tmp_path / "out", victim, int(number)]
    done = run_new_python(command, env=environment, timeout=200)
    (path,) = find_records([tmp_path])
    record = read_record(path)
    assert len(record.metrics["epochs"]) in (1, 2)  # two steps each; the fourth began
    assert (record.status, record.error) == ("failed" if error else "running", error)
    assert (done.returncode == 0) == bool(victim)  # of this program: that a process is lost is a record, not an error
    assert done.stdout.endswith(f"failed {error}\n") == bool(victim)
    second = int(done.stdout.split()[1])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and is_alive(second):
        time.sleep(0.1)
    assert not is_alive(second)


@pytest.mark.parametrize(("found", "told"), [(ProcessLost("process 2 of 2 is gone"), ProcessLost), (None, Interrupted)])
def test_signal_while_the_cause_is_asked_for_takes_no_lost_processs_place(monkeypatch, found, told):
    """torchrun asks the others to stop at once, and the first knows only seconds later that one is gone."""

    def asked(error):
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    own = OwnWorld()
    monkeypatch.setattr(own, "_start", lambda size: None)
    monkeypatch.setattr(own, "_cause", asked)
    with pytest.raises(told), interrupts(), own.together(2, lambda why: None):
        miss()
