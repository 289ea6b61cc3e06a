"""Requests to stop: by Ctrl-C, a plain kill, a terminal that closes, or a job's time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# SIGUSR1, SIGUSR2 and SIGXCPU are what schedulers send ahead of a time limit, SIGBREAK is Windows' SIGTERM. All of them
# end a process by default.
_NAMES = "SIGINT SIGTERM SIGHUP SIGUSR1 SIGUSR2 SIGXCPU SIGBREAK".split()
STOPS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

_ours: dict[int, Any] = {}  # the signals that we handle, and what handled them before
_children: dict[int, Any] = {}  # what handled the end of children before a signal came
_received: int | None = None  # since the outermost block of `interrupts` was entered
_waiting = 0  # blocks of `deferred` that we are in
_ending = False  # whether what has to be done on the way out is being done


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop. ``status`` is what shells report then: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.status = 128 + number
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


def begin_anew() -> None:
    """Lets signals do what they do by default in a process that was just forked, whatever blocks its parent is in."""
    global _waiting
    _waiting = 0
    _give_back()


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
    global _received
    if not _ending:
        _received = number
        # Who signals a whole group of processes ends our data loaders too, which torch would take for their failure.
        # A handler of ours, since Python complains where one that is pending has become the default meanwhile.
        if hasattr(signal, "SIGCHLD"):  # Windows tells of no children
            _children.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))
        _raise_received()


def _raise_received() -> None:
    if _received is not None and not _ending and not _waiting:
        raise Interrupted(_received)


def _give_back() -> None:
    """Puts the handlers back that were there before ours, and forgets what was received."""
    global _received, _ending
    for number, handler in (_ours | _children).items():
        signal.signal(number, handler)
    _ours.clear()
    _children.clear()
    _received, _ending = None, False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
