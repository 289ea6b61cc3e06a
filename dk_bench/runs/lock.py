"""One process at a time in a run's folder.

The lock is the kernel's own, on a file in the folder, so that it goes when the process that holds it goes, killed or
not, and the file that stays behind means nothing. On Linux it is flock: between machines it holds where the file system
carries locks over, as NFS does (since Linux 2.6.12), and Lustre if mounted with ``flock``; with ``localflock`` each
machine sees its own locks alone. On a file system without locks a warning says that nothing keeps two processes apart.
"""

import errno
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dk_bench.errors import BusyError

LOCK = "run.lock"
CLAIM = "runner.lock"
PATIENCE_SECONDS = 10.0  # for those that look with `is_held`, and for processes that are being killed
POLL_SECONDS = 0.1
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks say


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps every other process that asks out of ``folder``, which is made, until the block is left. Raises BusyError
    where another one holds it and goes on to, OSError where the file cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = _take(path, PATIENCE_SECONDS)
    if lock is None:
        holder = "another process"
        with suppress(OSError):
            holder = path.read_text().strip() or holder  # as it has written there itself
        raise BusyError(f"{folder}: {holder} is training this very run; two at a time would spoil it")
    try:
        with suppress(PermissionError):  # Windows: nobody writes to a file that is locked, nor reads it
            path.write_text(f"process {os.getpid()} on {platform.node()}\n")
        yield
    finally:
        lock.release()


def is_held(folder: Path, name: str = LOCK) -> bool:
    """Tells whether a process holds ``folder``, or, of the name `CLAIM`, has claimed it. Raises OSError where the file
    cannot be opened for writing."""
    if not (folder / name).exists():
        return False
    lock = _take(folder / name)
    if lock is not None:  # what it takes it gives back at once
        lock.release()
    return lock is None


def holder(folder: Path) -> str:
    """Names the machine whose process held ``folder`` last, as that has written it; empty where nobody did."""
    try:
        return (folder / LOCK).read_text().strip().partition(" on ")[2]
    except OSError:
        return ""


@contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Keeps every other process that waits for ``path``, a file that is made, out until the block is left; waits for
    it as long as it takes. Raises OSError where the file cannot be written."""
    lock = _take(path, seconds=-1)
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path) -> FileLock | None:
    """Marks ``folder``, which is made, as taken by this process until the lock is released, or until the process ends;
    None where another has it. It is what runners of a sweep tell each other before a run, which imports for seconds, is
    `hold`ing its folder itself. Raises OSError where the file cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    return _take(folder / CLAIM)


def _take(path: Path, seconds: float = 0.0) -> FileLock | None:
    """Takes the lock of a file, waiting for it so long (below 0: for ever); None where another process has it."""
    # Any thread may release it. No soft lock in its place: that goes by the file's being there, which ours always is.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"{path}: no locks there ({error.strerror}): nothing keeps two processes apart", stacklevel=3)
    return lock
