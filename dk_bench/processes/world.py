"""The processes of a run: all of this machine, all started by its first one, whatever a launcher has announced."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities import rank_zero_only

from dk_bench.errors import UserError
from dk_bench.processes.interrupts import STOPS, Interrupted, deferred, hold_on, interrupts
from dk_bench.processes.launchers import Rank, ordinary_environment, this_rank

START_TIMEOUT = "DK_BENCH_START_TIMEOUT"  # environment variable, in seconds
DEFAULT_START_SECONDS = 600.0  # a further process imports, opens the data and builds the model before it joins
LOOK_SECONDS = 0.2
# How long the first process has to notice by itself that another one is gone: gloo raises at once, NCCL may never.
GRACE_SECONDS = 10.0


class ProcessLost(UserError):
    """A further process of the run has ended or has never come."""

    status = 1


class OwnWorld(LightningEnvironment):
    """The world that Lightning sees: this process alone, or with the further ones that `together` starts."""

    creates_processes_externally = True  # to Lightning `together` is another program
    main_address = "127.0.0.1"

    def __init__(self) -> None:
        super().__init__()
        self.rank = this_rank()
        self.others: list[subprocess.Popen] = []

    @property
    def main_port(self) -> int:
        return self.rank.port or super().main_port

    def local_rank(self) -> int:
        return self.rank.number

    def node_rank(self) -> int:
        return 0

    def check_size(self, size: int) -> None:
        """Raises UserError where there are processes of an earlier run already, and not ``size`` of them. They go
        through the same program: each would train a run of one process, all in one folder, or a part of another."""
        there = self.rank.size if self.rank.number else len(self.others) + 1
        if there not in (1, size):
            asks = f"key 'trainer.devices' asks for {size} process{'es' if size > 1 else ''}"
            before = "as of the run before; another program may train with other numbers"
            raise UserError(f"{asks}, expected {there}, {before}")

    @contextmanager
    def together(self, size: int, tell: Callable[[BaseException], None]) -> Iterator[None]:
        """Runs the block in ``size`` processes: this one starts the further ones, by its own command, once.

        Where one of them ends before its time, or they do not all meet within `start_seconds`, the block ends by
        ProcessLost, or by Interrupted where a signal asked one of them to stop, as whoever signals a whole group does;
        and if it waits for them where no exception and no signal reaches, ``tell`` is called with that error, from
        another thread, and the process exits with its status. No further process outlives an error of the first.
        """
        if size > 1:
            self.check_size(size)
        if size == 1 or self.rank.number:
            yield
            return
        left, seconds = threading.Event(), start_seconds()
        watch = threading.Thread(target=self._watch, args=(left, seconds, tell), daemon=True, name="watch-processes")
        try:
            with deferred():  # a process that nobody knows of could not be ended
                self._start(size)
            watch.start()
            yield
        except BaseException as error:
            fault = self._lost(patience=1.0) if is_between_processes(error) else None
            self._kill()
            if fault:
                raise fault from error
            raise
        finally:
            left.set()

    def _start(self, size: int) -> None:
        if self.others:
            return
        if hasattr(sys, "ps1") or sys.flags.interactive:
            raise UserError("key 'trainer.devices' asks for several processes, expected 1 in an interactive session")
        command = [sys.executable, *sys.orig_argv[1:]]
        for number in range(1, size):
            rank = Rank(number, size, self.main_port, os.getpid())
            self.others.append(subprocess.Popen(command, env={**os.environ, **rank.environment()}))

    def _watch(self, left: threading.Event, seconds: float, tell: Callable[[BaseException], None]) -> None:
        deadline, fault = time.monotonic() + seconds, None
        while fault is None:
            if left.wait(LOOK_SECONDS):
                return
            fault = self._lost()
            if fault:
                if left.wait(GRACE_SECONDS):
                    return
            elif not dist.is_initialized() and time.monotonic() > deadline:
                met = f"the run's {len(self.others) + 1} processes have not met within {seconds:g} s"
                fault = ProcessLost(f"{met} ({START_TIMEOUT} sets another time)")
        self._kill()
        tell(fault)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(fault.status)

    def _lost(self, patience: float = 0.0) -> ProcessLost | Interrupted | None:
        """Tells which process has ended too early, and how; None where none has. One that has met the others and ends
        without an error has done its work."""
        deadline = time.monotonic() + patience
        while True:
            for number, process in enumerate(self.others, start=2):
                code = process.poll()
                if code or (code == 0 and not dist.is_initialized()):
                    if (stop := -code if code < 0 else code - 128) in STOPS:
                        return Interrupted(stop)
                    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
                    return ProcessLost(f"process {number} of {len(self.others) + 1} {end}")
            if time.monotonic() >= deadline:
                return None
            time.sleep(LOOK_SECONDS / 4)

    def _kill(self) -> None:
        """Ends the further processes at once; they have nothing to write."""
        for process in self.others:
            process.kill()
        for process in self.others:
            process.wait()


class HoldOn(Callback):
    """Keeps our handlers of signals where Lightning puts its own, inside which processes may wait for each other."""

    def on_train_start(self, *_: object) -> None:
        hold_on()

    on_validation_start = on_test_start = on_train_start
    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_train_start


@functools.cache
def own_world() -> OwnWorld:
    """Returns this process's world; its further processes stay from trainer to trainer, as torch's process group."""
    return OwnWorld()


@contextmanager
def own_process() -> Iterator[Rank]:
    """Runs the block as what this process is, the first of its run or a further one, whatever launchers say; signals
    that ask to stop raise `dk_bench.processes.interrupts.Interrupted`."""
    rank, before = this_rank(), rank_zero_only.rank
    with ordinary_environment(), interrupts():
        rank_zero_only.rank = rank.number
        try:
            yield rank
        finally:
            rank_zero_only.rank = before


def is_between_processes(error: BaseException) -> bool:
    """Tells whether torch says that it does not reach another process. NCCL's errors and those of meeting have a class;
    of gloo's, which C++ throws, torch keeps the text alone, which begins with the path of gloo's own source."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def start_seconds() -> float:
    """Tells how long a run's processes may take to meet. Raises UserError where that is set to no positive number."""
    value = os.environ.get(START_TIMEOUT)
    try:
        seconds = DEFAULT_START_SECONDS if value is None else float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"environment variable {START_TIMEOUT} is {value!r}, expected a number of seconds above 0")
    return seconds
