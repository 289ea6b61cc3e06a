"""One process at a time in a run's folder.

The lock is the kernel's own (flock, advisory, on a file in the folder), so that it goes when the process that holds it
goes, killed or not, and nothing stale is ever left. Forked children, such as data loaders, share it; they end within
seconds of their parent. Between machines it holds where the file system carries locks over: NFS does (since Linux
2.6.12), Lustre if mounted with ``flock``; with ``localflock`` each machine sees its own locks alone. On a file system
without locks a warning says that nothing keeps two processes apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dk_bench.errors import BusyError

LOCK = "run.lock"
CLAIM = "runner.lock"
# Long enough for the data loaders of a process that was killed, and for those that look with `is_held`.
PATIENCE_SECONDS = 10.0


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps every other process that asks out of ``folder``, which is made, until the block is left.

    Raises BusyError where another one holds it and goes on to, OSError where the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as stream:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _take(stream):
            if time.monotonic() > deadline:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise BusyError(f"{folder}: {holder} is training this very run; two at a time would spoil it")
            time.sleep(0.1)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        yield


def is_held(folder: Path) -> bool:
    """Tells whether a process holds ``folder``. Raises OSError where the file cannot be opened for writing."""
    try:
        stream = open(folder / LOCK, "r+")
    except FileNotFoundError:
        return False
    with stream:  # what it takes it gives back at once
        return not _take(stream)


@contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Keeps every other process that waits for ``path``, a file that is made, out until the block is left; waits for
    it as long as it takes. Raises OSError where the file cannot be written."""
    with open(path, "a+") as stream:
        while not _take(stream):
            time.sleep(0.1)
        yield


def claim(folder: Path) -> IO[str] | None:
    """Marks ``folder``, which is made, as taken by this process until `release`, or until the process ends; None where
    another has it. It is what runners of a sweep tell each other before a run, which imports for seconds, is `hold`ing
    its folder itself. Raises OSError where the file cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = open(folder / CLAIM, "a+")
    if _take(stream):
        return stream
    stream.close()
    return None


def release(stream: IO[str]) -> None:
    """Gives back what `claim` took."""
    with stream, contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(stream, fcntl.LOCK_UN)  # closing alone would leave it to children that were forked meanwhile


def _take(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"{stream.name}: no locks there ({error.strerror}): nothing keeps two processes from one run", stacklevel=3
        )
    return True
