"""Checks that training, validation and test images are of the same classes, and that none is in two of them."""

import hashlib
import warnings
from collections.abc import Callable, Sequence, Sized
from typing import Any

from dk_bench.config import DataConfig
from dk_bench.data.checksum import spread
from dk_bench.data.layout import plain_name
from dk_bench.data.scan import Files, PathFiles
from dk_bench.data.sources import FileImages, NamedImages
from dk_bench.errors import UserError, located, some

SMALL = 100_000  # of up to so many images, both splits together, the contents are compared
LOOKED_AT = 64  # of more, so many, or a few more, of the second split are looked for in the first
MOST = 10_000  # unless so many images of the first have the same numbers of bytes
SHOWN = 3
FEW = 0.01  # of a published data set's split; so many may be in the other one as well, with a warning
TRAIN_VAL = ("train", "val")
KIND = {"train": "training", "val": "validation", "test": "test"}


def check_same_classes(
    config: DataConfig, one: list[str], other: list[str], names: tuple[str, str] = TRAIN_VAL
) -> None:
    """Raises UserError that names the classes which only one of the splits ``names`` has."""
    if one == other:
        return
    splits, only = [], []
    for name, classes, others in ((names[0], one, other), (names[1], other, one)):
        splits.append(f"{name} ({getattr(config, name)}, {len(classes)} classes)")
        if own := set(classes) - set(others):
            only.append(f"only in {name}: {some(sorted(own), 5)}")
    if sorted(map(plain_name, one)) == sorted(map(plain_name, other)):
        only.append("they are the same but for capitals or how letters are encoded")
    raise UserError(f"{' and '.join(splits)} differ in their classes: {'; '.join(only) or 'the same in another order'}")


def check_apart(train: object, val: object, names: tuple[str, str] = TRAIN_VAL) -> None:
    """Raises UserError, which names some, where images of the first of two splits, ``names``, are in the second.

    Files are the same where they are one file on the disk, by whatever links, and, of up to `SMALL` images, where they
    hold the same bytes; of more, the bytes of some count, enough to find a split that lies in the other. Of named data
    sets, which nobody can change, a few equal images are only worth a warning.
    """
    keys = " and ".join(f"data.{name}" for name in names)
    if isinstance(train, FileImages) and isinstance(val, FileImages):
        check_files_apart(train.files, val.files, keys, names)
    elif isinstance(train, NamedImages) and isinstance(val, NamedImages):
        _check_named(train, val, keys, names)


def check_files_apart(train: Files, val: Files, keys: str, names: tuple[str, str] = TRAIN_VAL) -> None:
    """Does what `check_apart` does, of files; ``keys`` are those that name them."""
    with located(f"keys {keys}"):
        shared = _same(train, val, lambda files, index: files.identity(index))
        if not shared:
            shared = _same_content(train, val)
    if shared:
        shown = [f"{val.names[b]} ({names[1]}) is {train.names[a]} ({names[0]})" for a, b in shared[:SHOWN]]
        shown += ["..."] * (len(shared) > SHOWN)
        raise UserError(f"{_count(shared, val, keys, names)}: {', '.join(shown)}; {_wanted(names)}")


def _wanted(names: tuple[str, str]) -> str:
    return f"expected no image in both, or {'validation' if names[1] == 'val' else 'the test'} tells nothing"


def _count(shared: Sequence, val: Sized, keys: str, names: tuple[str, str]) -> str:
    kinds = f"{KIND[names[1]]} images are {KIND[names[0]]} images too"
    return f"keys {keys}: {len(shared)} of the {len(val)} {kinds}"


def _same(train: Any, val: Any, key: Callable[[Any, int], object]) -> list[tuple[int, int]]:
    """Returns the numbers of pairs, of training and validation, that have the same key."""
    known = {key(train, index): index for index in range(len(train))}
    pairs = ((known.get(key(val, index)), index) for index in range(len(val)))
    return [pair for pair in pairs if pair[0] is not None]


def _same_content(train: Files, val: Files) -> list[tuple[int, int]]:
    """Returns pairs of files with the same bytes: all, or, of large splits, some. Only those are read that have the
    same number of them."""
    large = len(train) + len(val) > SMALL
    looked_at = range(0, len(val), max(1, len(val) // LOOKED_AT)) if large else range(len(val))
    sizes = {val.size(index) for index in looked_at}
    alike = [index for index in range(len(train)) if train.size(index) in sizes]
    if large and len(alike) > MOST:
        return []
    common = {train.size(index) for index in alike}
    known = {_digest(train, index): index for index in alike}
    pairs = ((known.get(_digest(val, index)), index) for index in looked_at if val.size(index) in common)
    return [pair for pair in pairs if pair[0] is not None]


def _digest(images: Files | NamedImages, index: int) -> bytes:
    return hashlib.blake2b(images.content(index), digest_size=20).digest()


def _check_named(train: NamedImages, val: NamedImages, keys: str, names: tuple[str, str]) -> None:
    wanted = _wanted(names)
    if train.source == val.source:
        raise UserError(f"keys {keys}: both are {train.source}; {wanted}")
    paths = train.paths(), val.paths()
    if all(paths):
        return check_files_apart(PathFiles(paths[0]), PathFiles(paths[1]), keys, names)
    if len(train) + len(val) <= SMALL:
        shared = _same(train, val, _digest)
        if len(shared) > FEW * len(val):
            raise UserError(f"{_count(shared, val, keys, names)}, by their contents; {wanted}")
        if shared:
            warnings.warn(f"{_count(shared, val, keys, names)}, by their contents", stacklevel=3)
    elif len(train) == len(val) and all(train.content(index) == val.content(index) for index in spread(len(val))):
        raise UserError(f"keys {keys}: {train.source}, and {val.source}, hold the same {len(val)} images; {wanted}")
