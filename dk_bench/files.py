"""Writing a file, or a folder, so that a reader sees the old content or the new one, never half of either; and reading
JSON."""

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dk_bench.errors import UserError, system_errors

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def cannot_write(error: BaseException) -> bool:
    """Tells whether an error says that the disk or somebody's share of it is full, that files may not grow so large, or
    that nothing may be written there."""
    return isinstance(error, OSError) and error.errno in CANNOT_WRITE


@contextmanager
def open_atomically(path: str | Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Returns a stream whose bytes are at ``path`` once the block is left without an error; missing folders are made.

    Until then, and after a crash, the old file, if any, is whole; after one of the machine where it is ``lasting``, for
    which the disk is waited for. Raises OSError where the folder cannot be written (disk full included); no temporary
    file is left then. A killed process leaves one, for `remove_leftovers`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since os.replace is atomic inside one file system only; the process id keeps writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if lasting:
                os.fsync(stream.fileno())  # else the new name may reach the disk before the content does
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, text: str) -> Path:
    """Writes ``text`` to ``path`` in UTF-8 as `open_atomically` does. Raises OSError as that does."""
    with open_atomically(path) as stream:
        stream.write(text.encode())
    return Path(path)


@contextmanager
def folder_atomically(path: str | Path) -> Iterator[Path]:
    """Returns an empty folder, which has the name ``path`` once the block is left without an error; what had that name
    is gone then. After an error, an interrupt included, all is as it was, but that folders above are made.

    Raises OSError where the folder cannot be written.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: str | Path) -> None:
    """Removes what killed processes left of writing ``path``; nobody may be writing it."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


def read_json(path: str | Path, what: str = "") -> Any:
    """Returns what a JSON file holds. ``what`` is what errors call it, its path aside. Raises UserError where it cannot
    be read or is not JSON."""
    named = f"{what} {path}".lstrip()
    try:
        with system_errors(f"{named} cannot be read"):
            return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{named}: not a JSON file: {error}") from error
