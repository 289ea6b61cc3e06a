"""The processes of a run: started by its first one, on this machine, or by torchrun or srun, on any number of them."""

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
from dk_bench.processes.launched import AGENTS_STORE
from dk_bench.processes.launchers import ordinary_environment
from dk_bench.processes.meeting import LEAVE_SECONDS, Followed, Meeting, ProcessLost, is_between_processes
from dk_bench.processes.ranks import Rank, this_rank

START_TIMEOUT = "DK_BENCH_START_TIMEOUT"  # environment variable, in seconds
DEFAULT_START_SECONDS = 600.0  # a further process imports, opens the data and builds the model before it joins
LOOK_SECONDS = 0.2
# How long the first process has to notice by itself that another one is gone: gloo raises at once, NCCL may never.
GRACE_SECONDS = 10.0


class OwnWorld(LightningEnvironment):
    """The world that Lightning sees: this process alone, with the further ones that `together` starts, or a launcher's.

    ``meeting`` is where a launcher's ranks tell each other what is not computed, once they have come; else None.
    """

    creates_processes_externally = True  # to Lightning `together` is another program

    def __init__(self) -> None:
        super().__init__()
        self.rank = this_rank()
        self.others: list[subprocess.Popen] = []
        self.meeting: Meeting | None = None
        self._met = False  # whether a block of `met` is being run
        self._sees_all = True  # whether a rank sees the devices of all ranks of its machine, not its own alone

    @property
    def main_address(self) -> str:
        if self.meeting:  # torch, which asks for this when it is about to meet, is to use the store that is there
            os.environ[AGENTS_STORE] = "True"
        return self.rank.place.address if self.rank.place else "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self.rank.port or super().main_port

    def world_size(self) -> int:
        return self.rank.size if self.rank.place else super().world_size()

    def set_global_rank(self, rank: int) -> None:
        """Takes the launcher's number where there is one: Lightning's own calculation is for equal machines."""
        super().set_global_rank(self.rank.number if self.rank.place else rank)

    def local_rank(self) -> int:
        return (self.rank.place.local if self._sees_all else 0) if self.rank.place else self.rank.number

    def node_rank(self) -> int:
        return self.rank.place.machine if self.rank.place else 0

    def shape(self, devices: int | str, num_nodes: int | str, visible: int) -> dict[str, int | str]:
        """Returns ``devices`` and ``num_nodes`` for Lightning: the launcher's, and what the configuration asks for
        where there is none. ``visible``: how many devices this process sees.

        Raises UserError where the configuration asks for another number than the launcher has started.
        """
        place, named = self.rank.place, "," in str(devices)
        if place is None:
            if num_nodes not in ("auto", 1):
                starts = "dk-bench itself starts processes on one machine: start it by torchrun or srun"
                raise UserError(starts, key="trainer.num_nodes", value=num_nodes)
            return {"devices": devices, "num_nodes": 1}
        asked = len([one for one in str(devices).split(",") if one.strip()]) if named else devices
        on = f"on {place.machines} machine{'s' if place.machines > 1 else ''}, {place.here} of them on this one"
        shape = f"{place.launcher} has started {place.size} processes {on}"
        for key, value, there in (("devices", asked, place.here), ("num_nodes", num_nodes, place.machines)):
            if str(value) not in ("auto", "-1", str(there)):
                given = devices if key == "devices" else num_nodes
                raise UserError(f"but {shape}: expected {there}, or auto", key=f"trainer.{key}", value=given)
        # srun --gpus-per-task=1 shows every task its own GPU alone, which is the first one there.
        self._sees_all = not (place.launcher == "srun" and visible == 1 and place.here > 1)
        return {"devices": devices if named else place.here if self._sees_all else 1, "num_nodes": place.machines}

    @contextmanager
    def met(self) -> Iterator[Meeting | None]:
        """Runs the block, a run, among a launcher's ranks, and gives their meeting: an error on one of them ends all,
        with one status, and the first alone has something to say. Inside another such block this one changes nothing;
        without a launcher there is no meeting.

        Raises ProcessLost where another rank is gone, and on further ones Followed where the first has ended.
        """
        if self.rank.place is None or self._met:
            yield self.meeting
            return
        self.meeting = self.meeting or Meeting(self.rank, start_seconds())
        self._met = True
        self.meeting.begin()
        try:
            yield self.meeting
        except BaseException as error:
            found = self.meeting.cause(error, is_between_processes(error))
            found = self.meeting.leave(found)
            if found is error:
                raise
            raise found from error
        else:
            self.meeting.leave()
        finally:
            self._met = False

    def check_size(self, size: int) -> None:
        """Raises UserError where there are processes of an earlier run already, and not ``size`` of them. They go
        through the same program: each would train a run of one process, all in one folder, or a part of another."""
        there = self.rank.size if self.rank.number or self.rank.place else len(self.others) + 1
        if there not in (1, size):
            asks = f"key 'trainer.devices' asks for {size} process{'es' if size > 1 else ''}"
            before = "as of the run before; another program may train with other numbers"
            raise UserError(f"{asks}, expected {there}, {before}")

    @contextmanager
    def together(self, size: int, tell: Callable[[BaseException], None]) -> Iterator[None]:
        """Runs the block in ``size`` processes: this one starts the further ones, by its own command, once, unless a
        launcher has.

        Where one of them ends before its time, or they do not all meet within `start_seconds`, the block ends by
        ProcessLost, or by Interrupted where a signal asked one of them to stop, as whoever signals a whole group does;
        and if it waits for them where no exception and no signal reaches, ``tell`` is called with that error, from
        another thread, and the process exits with its status. No further process outlives an error of the first.
        """
        if size > 1:
            self.check_size(size)
        if size == 1 or (self.rank.number and not self.rank.place):
            yield
            return
        left, seconds = threading.Event(), start_seconds()
        watch = threading.Thread(target=self._watch, args=(left, seconds, tell), daemon=True, name="watch-processes")
        try:
            if not self.rank.place:
                with deferred():  # a process that nobody knows of could not be ended
                    self._start(size)
            watch.start()
            yield
        except BaseException as error:
            fault = self._fault(error)
            self._kill()
            if fault:
                raise fault from error
            raise
        finally:
            left.set()
            if watch.is_alive():
                watch.join(LEAVE_SECONDS)  # it may be in torch's store, in which the end of Python is an abort

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
            fault = self.meeting.lost() if self.meeting else self._lost()
            if fault:
                if left.wait(GRACE_SECONDS):
                    return
            elif not dist.is_initialized() and time.monotonic() > deadline:
                met = f"the run's {max(self.rank.size, len(self.others) + 1)} processes have not met"
                fault = ProcessLost(f"{met} within {seconds:g} s ({START_TIMEOUT} sets another time)")
        self._kill()
        if not isinstance(fault, Followed):
            tell(fault)
        if self.meeting:
            fault = self.meeting.leave(fault)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(fault.status)

    def _fault(self, error: BaseException) -> BaseException | None:
        """Tells what `_cause` does, or the signal that comes while that waits: but a launcher signals the others of a
        rank that is gone."""
        found = None
        try:
            with deferred():
                found = self._cause(error)
        except Interrupted as stop:
            return found if isinstance(found, ProcessLost) else stop
        return found

    def _cause(self, error: BaseException) -> BaseException | None:
        """Tells what the end of another process has brought with it; None for an error of this one's own."""
        between = is_between_processes(error)
        if self.meeting:
            found = self.meeting.cause(error, between)
            return None if found is error else found
        return self._lost(patience=1.0) if between else None

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
    """Runs the block as what this process is, the first of its run or a further one, without launchers' variables;
    signals that ask to stop raise `dk_bench.processes.interrupts.Interrupted`."""
    rank, before = this_rank(), rank_zero_only.rank
    with ordinary_environment(), interrupts():
        rank_zero_only.rank = rank.number
        try:
            yield rank
        finally:
            rank_zero_only.rank = before


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
