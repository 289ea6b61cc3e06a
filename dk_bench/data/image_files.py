"""Image files by their numbers, whatever holds them: paths, a folder or a tar."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dk_bench.errors import system_errors


class Files(ABC):
    """Files in an order. ``names``: of all, with ``/`` between their parts."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> bytes:
        """Returns the file's bytes. Raises UserError where it cannot be read."""
        with system_errors(f"{self.called(index)} cannot be read"):
            return self._read(index)

    def size(self, index: int) -> int:
        """Tells how many bytes the file has. Raises UserError where it is not there."""
        with system_errors(f"{self.called(index)} cannot be read"):
            return self._size(index)

    @abstractmethod
    def called(self, index: int) -> str:
        """Returns what errors call the file."""

    @abstractmethod
    def identity(self, index: int) -> tuple[str, int]:
        """Returns the file's real path, and where in that file it begins: the same by whatever links it is reached."""

    @abstractmethod
    def _read(self, index: int) -> bytes: ...

    @abstractmethod
    def _size(self, index: int) -> int: ...


class PathFiles(Files):
    """Files by their paths, relative to ``folder`` where one is given."""

    def __init__(self, names: Sequence[str], folder: str = "") -> None:
        self.names, self._folder = names, folder

    def called(self, index: int) -> str:
        return f"image {self._path(index)}"

    def identity(self, index: int) -> tuple[str, int]:
        return real_path(self._path(index)), 0

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, self.names[index])

    def _read(self, index: int) -> bytes:
        return Path(self._path(index)).read_bytes()

    def _size(self, index: int) -> int:
        return os.stat(self._path(index)).st_size


_real_folder = lru_cache(1 << 16)(os.path.realpath)


def real_path(path: str) -> str:
    """Tells where a file lies when links are followed; quick for many files of few folders."""
    folder, name = os.path.split(path)
    path = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path
