"""Words between the ranks that a launcher has started, before and beside what they compute together.

They go through torch's own store of keys and values, which torchrun's agent keeps, or else the first rank. The first
rank is the one that speaks to the user: it tells the others whether there is anything to do, and they tell it what
keeps them from it. All of them say every second that they are there, so that one that is gone is noticed.
"""

import atexit
import json
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dk_bench.errors import UserError
from dk_bench.processes.interrupts import Interrupted
from dk_bench.processes.ranks import Rank

LOOK_SECONDS = 0.1
BEAT_SECONDS = 1.0
# How long a rank may be silent before it counts as gone: while all goes well (a call may keep Python from running its
# threads), and where something has gone wrong.
SILENT_SECONDS, SILENT_AFTER_ERROR_SECONDS = 120.0, 4.0
LINGER_SECONDS = 20.0  # for the others to learn how the first rank has ended, and for it to hear them
LEAVE_SECONDS = 5.0  # for a thread to end, which may be in the middle of a word to the store
STORE_GONE = (dist.DistError, RuntimeError)  # what torch raises where whoever kept the store has ended


class ProcessLost(UserError):
    """A process of the run has ended or has never come."""

    status = 1


class Followed(UserError):
    """The first rank has ended, and has said why; this further one ends with its status and says nothing."""

    told = True

    def __init__(self, status: int) -> None:
        super().__init__("the first process of the run has ended")
        self.status = status


class Meeting:
    """What the ranks of a run tell each other. Keys begin with the number of the run in this program.

    Raises ProcessLost where they do not meet within so many seconds.
    """

    def __init__(self, rank: Rank, seconds: float) -> None:
        self.rank, self.seconds, self.round = rank, seconds, 0
        self._beats: dict[int, tuple[bytes, float]] = {}  # of each other rank: its last sign of life, and when it came
        self._asking, self._asked = threading.Lock(), False  # whether the others were waited for after an error
        self._found: ProcessLost | Interrupted | None = None  # what was heard of them then
        place, limit = rank.place, timedelta(seconds=seconds)
        keeps = rank.number == 0 and not place.has_store
        try:
            store = dist.TCPStore(place.address, place.port, None, keeps, limit, False, multi_tenant=True)
        except STORE_GONE as error:
            others = f"process {rank.number + 1} of {rank.size} does not find the others of its run"
            raise ProcessLost(f"{others} at {place.address}, port {place.port}: {error}") from error
        self._store = dist.PrefixStore(f"dk_bench/{place.attempt}", store)
        self._leaving = threading.Event()
        beats = threading.Thread(target=self._beat, daemon=True, name="tell-that-this-process-is-there")
        beats.start()
        atexit.register(self._end_beats, beats)

    def begin(self) -> None:
        """Begins the next run of this program."""
        self.round += 1
        self._beats.clear()
        self._asked, self._found = False, None

    def agree(self, run: str, word: Any = None) -> Any:
        """Returns, on every rank, the first one's ``word``, plain data, once all have come for the same ``run``.

        Raises, on the first, UserError where another was given another run, and ProcessLost where one does not come.
        """
        if self.rank.number:
            self._say("come", {"run": run, "machine": platform.node()})
        for number in range(1, 1 if self.rank.number else self.rank.size):
            come = self._wait_for("come", number)
            if come["run"] != run:
                given = f"was given run {come['run']}, the first {run}"
                raise UserError(f"{self._name(number)} {given}: expected the same command for all")
        return self.share("word", lambda: word)

    def share(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns, on every rank, what ``make`` gives on the first, plain data. Raises what `lost` gives."""
        if self.rank.number:
            return self._wait_for(what, 0)[0]
        self._say(what, [value := make()])
        return value

    def _wait_for(self, what: str, number: int) -> Any:
        """Returns what a rank says. Raises what `lost` gives, and after too long a time ProcessLost."""
        deadline = time.monotonic() + self.seconds
        while (said := self._heard(what, number)) is None:
            if lost := self.lost():
                raise lost
            if time.monotonic() > deadline:
                raise ProcessLost(f"{self._name(number)} has not come within {self.seconds:g} s")
            time.sleep(LOOK_SECONDS)
        return said

    def leave(self, error: BaseException | None = None) -> BaseException | None:
        """Says that this rank has done its part, or what has kept it from that, and returns what it is to end with.

        The first waits until all others know how it has ended; they, where they failed, until it has heard of them:
        their launcher might end it before.
        """
        if self.rank.number == 0:
            self._say("over", status_of(error))
            others = range(1, self.rank.size)
            _linger(lambda: all(self._heard("left", n) or self._is_silent(n) for n in others))
            return error
        if not (error is None or isinstance(error, Followed) or (isinstance(error, Interrupted) and error.in_order)):
            self._say("fault", _fault(error))
            _linger(lambda: self._heard("over") is not None or self._is_silent(0))
            if isinstance(error, UserError | Interrupted) or is_between_processes(error):
                error = self._look(SILENT_AFTER_ERROR_SECONDS) or error
        self._say("left", True)
        return error

    def lost(self) -> UserError | Interrupted | None:
        """Tells the first rank which other one has ended too early, and why; another one, how the first has ended. None
        where all are there, or have done their part."""
        found = self._look(SILENT_SECONDS)
        if found is None and self.rank.number == 0 and any(self._heard("fault", n) for n in range(1, self.rank.size)):
            return self._after_fault()
        return found

    def cause(self, error: BaseException, of_others: bool) -> BaseException:
        """Returns what was the matter where the first rank ends by an error: a signal, or, with ``of_others``, torch's
        word that it does not reach another rank, may be what the end of that other one has brought with it."""
        if self.rank.number or not (of_others or isinstance(error, Interrupted)):
            return error
        found = self._after_fault()
        if isinstance(error, Interrupted):
            return found if isinstance(found, ProcessLost) else error
        return found or ProcessLost(f"the connection to another process of the run is lost: {error}")

    def _after_fault(self) -> ProcessLost | Interrupted | None:
        """Waits, once, until every other rank has been heard of, or is known to be gone."""
        with self._asking:
            if not self._asked:
                self._asked, self._found = True, self._hear_all()
            return self._found

    def _hear_all(self) -> ProcessLost | Interrupted | None:
        deadline = time.monotonic() + SILENT_AFTER_ERROR_SECONDS + 2 * BEAT_SECONDS
        others = range(1, self.rank.size)
        while (found := self._look(SILENT_AFTER_ERROR_SECONDS)) is None and time.monotonic() < deadline:
            if all(self._heard("left", number) or self._heard("fault", number) for number in others):
                break
            time.sleep(LOOK_SECONDS)
        if found is None:
            faults = [fault for number in others if (fault := self._heard("fault", number))]
            found = next((Interrupted(fault["signal"]) for fault in faults if fault["signal"]), None)
        return found

    def _look(self, silent: float) -> UserError | None:
        """Tells what has ended this rank's run, as far as it is known: not that others were asked to stop, or do not
        reach one."""
        if self.rank.number:
            if (over := self._heard("over")) is not None:
                return Followed(over)
            if self._is_silent(0, silent):
                return ProcessLost(f"{self._name(0)} {GONE}") if self.rank.number == 1 else Followed(1)
            return None
        for number in range(1, self.rank.size):
            fault = self._heard("fault", number)
            if fault and fault["words"]:
                return ProcessLost(f"{self._name(number)}: {fault['words']}")
            if not (fault or self._heard("left", number)) and self._is_silent(number, silent):
                return ProcessLost(f"{self._name(number)} {GONE}")
        return None

    def _is_silent(self, number: int, seconds: float = SILENT_AFTER_ERROR_SECONDS) -> bool:
        beat, now = self._get(f"{number}/beat"), time.monotonic()
        before, since = self._beats.setdefault(number, (beat, now))
        if beat is not None and beat != before:
            self._beats[number] = beat, now
            return False
        return now - since > seconds

    def _beat(self) -> None:
        count = 0
        with suppress(*STORE_GONE):
            while not self._leaving.wait(BEAT_SECONDS if count else 0.0):
                count += 1
                self._store.set(f"{self.rank.number}/beat", str(count))

    def _end_beats(self, beats: threading.Thread) -> None:
        """Ends the thread before Python does: inside of torch's store that would be an abort, and a failure to the
        launcher."""
        self._leaving.set()
        beats.join(LEAVE_SECONDS)

    def _say(self, what: str, value: Any) -> None:
        with suppress(*STORE_GONE):
            self._store.set(f"{self.round}/{self.rank.number}/{what}", json.dumps(value))

    def _heard(self, what: str, number: int = 0) -> Any:
        found = self._get(f"{self.round}/{number}/{what}")
        return None if found is None else json.loads(found)

    def _get(self, key: str) -> bytes | None:
        """Returns a key's value without waiting for it; None also where whoever kept the store has ended."""
        try:
            return self._store.get(key) if self._store.check([key]) else None
        except STORE_GONE:
            return None

    def _name(self, number: int) -> str:
        come = self._heard("come", number)
        on = f" (on {come['machine']})" if come and come["machine"] != platform.node() else ""
        return f"process {number + 1} of {self.rank.size}{on}"


GONE = "is gone: it was killed, or its machine is down"


def is_between_processes(error: BaseException) -> bool:
    """Tells whether torch says that it does not reach another process. NCCL's errors and those of meeting have a class;
    of gloo's, which C++ throws, torch keeps the text alone, which begins with the path of gloo's own source."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def status_of(error: BaseException | None) -> int:
    """Returns the exit status that goes with how a command ended."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 0 if error is None else getattr(error, "status", 1)


def _fault(error: BaseException) -> dict[str, Any]:
    """Tells what another rank is to know of an error: words, unless it comes from outside, and the signal, if any."""
    if isinstance(error, Interrupted):
        return {"words": None, "signal": int(error.signal)}
    words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return {"words": None if is_between_processes(error) else words, "signal": None}


def _linger(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < deadline and not done():
        time.sleep(LOOK_SECONDS)
