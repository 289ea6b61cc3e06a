"""Requests to stop: by Ctrl-C, a plain kill, a terminal that closes, or a job's time limit.

A signal raises `Interrupted` at once, but for three kinds of places: where nothing may be half done (`deferred`); where
a loop says by itself when it can stop (`noting`); and on the way out (`wind_down`).
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# SIGUSR1, SIGUSR2 and SIGXCPU are what schedulers send ahead of a time limit, SIGBREAK is Windows' SIGTERM. All of them
# end a process by default.
_NAMES = "SIGINT SIGTERM SIGHUP SIGUSR1 SIGUSR2 SIGXCPU SIGBREAK".split()
STOPS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

# Within which signals are one request: who signals a whole group, as schedulers and terminals do, reaches a launcher
# and its processes, and the launcher passes on to them what it has got.
TOGETHER_SECONDS = 2.0

_ours: dict[int, Any] = {}  # the signals that we handle, and what handled them before
_children: dict[int, Any] = {}  # what handled the end of children before a signal came
_received: int | None = None  # since the outermost block of `interrupts` was entered
_since = 0.0  # time.monotonic() when it was received
_noting = False  # whether it waits for `heed`
_in_order = False  # whether `heed` was called
_waiting = 0  # blocks of `deferred` that we are in
_ending = False  # whether what has to be done on the way out is being done


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop. ``status`` is what shells report then: 128 and the signal's number.
    ``in_order``: where a loop could stop, see `heed`."""

    def __init__(self, number: int, *, in_order: bool = False) -> None:
        self.signal = signal.Signals(number)
        self.status, self.in_order = 128 + number, in_order
        super().__init__(f"interrupted by {self.signal.name}")


@contextmanager
def interrupts() -> Iterator[None]:
    """Raises `Interrupted` out of the block when a signal asks to stop.

    A signal that is ignored (as under nohup) or that has a handler of somebody else's is left alone; so are all in a
    thread other than the main one, which gets no signals. Inside another such block this one changes nothing.
    """
    if _ours or not _in_main_thread():
        yield
        return
    global _received, _in_order
    _received, _in_order = None, False  # what was heeded outside of any block, for another process
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    _ours.update({number: signal.getsignal(number) for number in STOPS if signal.getsignal(number) in defaults})
    hold_on()
    try:
        yield
    finally:
        _give_back()


@contextmanager
def deferred() -> Iterator[None]:
    """Raises at the block's end, or after its own error, what would be raised inside, which must not be half done."""
    global _waiting
    if not _in_main_thread():
        yield
        return
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
        _raise_received()


@contextmanager
def noting() -> Iterator[None]:
    """Lets a loop inside say when it can stop: from where it calls `note` the first signal raises nothing until it
    calls `heed`. What it leaves unheeded when it has come to its end is forgotten."""
    global _noting, _received
    try:
        yield
        if _noting:
            _received = None
    finally:
        _noting = False


def note(on: bool = True) -> None:
    """Has the first signal wait for `heed`, inside a block of `noting`; another one raises at once. Or, not ``on``, has
    all raise again, one that was noted too."""
    global _noting
    _noting = on
    _raise_received()


def noted() -> int | None:
    """Tells the number of the signal that waits for `heed`, if there is one."""
    return _received if _noting else None


def heed(number: int | None = None) -> None:
    """Raises what was noted, or the signal ``number``, which another process of the run has noted."""
    global _noting, _received, _in_order
    if (number := number or noted()) is not None:
        _noting, _received, _in_order = False, number, True
        _raise_received()


def begin_anew() -> None:
    """Lets signals do what they do by default in a process that was just forked, whatever blocks its parent is in."""
    global _waiting, _noting
    _waiting, _noting = 0, False
    _give_back()


def leave_to_parent() -> None:
    """Ignores signals that ask to stop, in a process that works for another and ends with it: who signals a whole group
    shall not take from its parent what that needs to stop in good order."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def hold_on() -> None:
    """Puts our handlers in place again where a library has put its own before them, and raises what was lost: no
    exception gets out of a destructor, in which a signal may have met the interpreter, and another may take its place
    (Lightning's exit, or an error on the way out)."""
    if _in_main_thread():
        for number in _ours:
            signal.signal(number, _stop)
        _raise_received()


def wind_down() -> None:
    """Lets further signals pass until the outermost block is left: the first one is being heeded."""
    global _ending
    _ending = True


def heed_another() -> None:
    """Has the next signal raise again after `wind_down`."""
    global _received, _ending
    if _ending:
        _received, _ending = None, False


def _stop(number: int, _: object) -> None:
    global _received, _since, _noting
    if not _ending:
        now = time.monotonic()
        if _received is not None and _noting:
            if now < _since + TOGETHER_SECONDS:
                return
            _noting = False
        _received, _since = number, now
        # Who signals a whole group of processes ends our data loaders too, which torch would take for their failure.
        # A handler of ours, since Python complains where one that is pending has become the default meanwhile.
        if hasattr(signal, "SIGCHLD"):  # Windows tells of no children
            _children.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))
        _raise_received()


def _raise_received() -> None:
    if _received is not None and not (_ending or _waiting or _noting):
        raise Interrupted(_received, in_order=_in_order)


def _give_back() -> None:
    """Puts the handlers back that were there before ours, and forgets what was received."""
    global _received, _ending, _in_order
    for number, handler in (_ours | _children).items():
        signal.signal(number, handler)
    _ours.clear()
    _children.clear()
    _received, _ending, _in_order = None, False, False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
