"""Training and validation images must be of the same classes, and none may be both."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from dk_bench.config import DataConfig
from dk_bench.data.images import FileImages, NamedImages
from dk_bench.data.scan import real_path
from dk_bench.errors import UserError

SMALL = 100_000  # of up to so many images, both splits together, the contents are compared
SHOWN = 3
FEW = 0.01  # of a published data set's validation images; so many may be training images as well, with a warning


class Files(Protocol):
    """Files by number, as `dk_bench.data.scan.Scan` has them."""

    names: Sequence[str]

    def read(self, index: int) -> bytes:
        """The file's bytes."""

    def size(self, index: int) -> int:
        """How many they are."""

    def identity(self, index: int) -> object:
        """The same for the same file."""


class PathFiles:
    """Files by their paths."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.names = paths

    def read(self, index: int) -> bytes:
        """The file's bytes. Raises OSError."""
        return Path(self.names[index]).read_bytes()

    def size(self, index: int) -> int:
        """How many bytes the file has. Raises OSError."""
        return os.stat(self.names[index]).st_size

    def identity(self, index: int) -> str:
        """The real path."""
        return real_path(self.names[index])


def check_same_classes(config: DataConfig, train: list[str], val: list[str]) -> None:
    """Raises UserError that names the classes which only one of the splits has."""
    if train == val:
        return
    only = [
        f"only in {split}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
        for split, names in (("train", set(train) - set(val)), ("val", set(val) - set(train)))
        if names
    ]
    if sorted(map(_plain, train)) == sorted(map(_plain, val)):
        only.append("they are the same but for capitals or how letters are encoded")
    raise UserError(
        f"train ({config.train}, {len(train)} classes) and val ({config.val}, {len(val)} classes) differ in their "
        f"classes: {'; '.join(only) or 'the same in another order'}"
    )


def check_apart(train: object, val: object) -> None:
    """Raises UserError where training images are among the validation images, with the names of some.

    Files are the same where they are one file on the disk, by whatever links, and, of up to `SMALL` images, where they
    hold the same bytes. Of named data sets, which nobody can change, a few equal images are only worth a warning.
    """
    if isinstance(train, FileImages) and isinstance(val, FileImages):
        check_files_apart(train.files, val.files, "data.train and data.val")
    elif isinstance(train, NamedImages) and isinstance(val, NamedImages):
        _check_named(train, val)


def check_files_apart(train: Files, val: Files, keys: str) -> None:
    """As `check_apart`, of files; ``keys`` are those that name them."""
    try:
        shared = _same(train.names, val.names, train.identity, val.identity)
        if not shared and len(train.names) + len(val.names) <= SMALL:
            shared = _same_content(train, val)
    except OSError as error:
        raise UserError(f"keys {keys}: image {error.filename} cannot be read: {error.strerror or error}") from error
    if shared:
        shown = ", ".join(f"{b} (val) is {a} (train)" for a, b in shared[:SHOWN])
        raise UserError(f"{_count(shared, val.names, keys)}: {shown}{', ...' if len(shared) > SHOWN else ''}; {WANTED}")


WANTED = "expected no image in both, or validation tells nothing"


def _count(shared: Sequence, val: Sequence, keys: str) -> str:
    return f"keys {keys}: {len(shared)} of the {len(val)} validation images are training images too"


def _same(
    train: Sequence, val: Sequence, train_key: Callable[[int], object], val_key: Callable[[int], object]
) -> list[tuple[str, str]]:
    """(training, validation) pairs of items that have the same key."""
    known = {train_key(index): name for index, name in enumerate(train)}
    pairs = ((known.get(val_key(index)), name) for index, name in enumerate(val))
    return [(name, other) for name, other in pairs if name is not None]


def _same_content(train: Files, val: Files) -> list[tuple[str, str]]:
    """Pairs of files with the same bytes. Only those are read that have the same number of them."""
    train_sizes, val_sizes = ([files.size(index) for index in range(len(files.names))] for files in (train, val))
    common = set(train_sizes) & set(val_sizes)

    def digest(files: Files, sizes: list[int]) -> Callable[[int], object]:
        return lambda index: _digest(files.read(index)) if sizes[index] in common else (id(files), index)

    return _same(train.names, val.names, digest(train, train_sizes), digest(val, val_sizes))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=20).digest()


def _check_named(train: NamedImages, val: NamedImages) -> None:
    keys = "data.train and data.val"
    if train.source == val.source:
        raise UserError(f"keys {keys}: both are {train.source}; {WANTED}")
    paths = train.paths(), val.paths()
    if all(paths):
        return check_files_apart(PathFiles(paths[0]), PathFiles(paths[1]), keys)
    if len(train) + len(val) <= SMALL:
        shared = _same(*(range(len(images)) for images in (train, val)), *map(_content_digest, (train, val)))
        if len(shared) > FEW * len(val):
            raise UserError(f"{_count(shared, range(len(val)), keys)}, by their contents; {WANTED}")
        if shared:
            warnings.warn(f"{_count(shared, range(len(val)), keys)}, by their contents", stacklevel=3)
    elif len(train) == len(val) and _same_samples(train, val):
        raise UserError(f"keys {keys}: {train.source}, and {val.source}, hold the same {len(val)} images; {WANTED}")


def _content_digest(images: NamedImages) -> Callable[[int], object]:
    return lambda index: _digest(images.content(index))


def _same_samples(train: NamedImages, val: NamedImages, count: int = 16) -> bool:
    """Whether images spread over both are the same in the same places."""
    places = range(0, len(val), max(1, len(val) // count))
    return all(train.content(index) == val.content(index) for index in places)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
