"""Where every sample of a shard lies: the file that makes a tar of samples readable in any order.

A shard is a tar as the package webdataset has it: the files of a sample follow each other and share their name up to
the first point of its last part, ``0001.jpg`` and ``0001.cls``. One pass over the headers of a tar, which reads labels
and skips images, gives the index of its samples. Indices are kept in a file beside decoded images, which counts as long
as shards have their sizes and times of change.
"""

import hashlib
import json
import os
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dk_bench.data.pixels import is_image_name
from dk_bench.data.scan import check_plain, members
from dk_bench.errors import UserError, system_errors
from dk_bench.files import open_atomically, remove_leftovers
from dk_bench.runs.lock import wait_for

FORMAT = 1  # raised whenever the file, or what is a sample, changes
THREADS = 8  # passes at once: on a network's file system each waits for most of its time
SERVICE = re.compile(r"__[^/]*__($|/)")  # what webdataset passes over
COLUMNS = ("names", "offsets", "sizes", "labels")
WRITE_SECONDS = 30.0  # after which what is known is written, so that a pass which is cut off goes on
FIRST = ("jpg", "png", "webp")  # of several images of a sample the one that timm takes

File = tuple[int, int]  # offset and number of bytes in the shard
Stamp = tuple[str, int, int]  # a shard's path, bytes, and the time of its last change in nanoseconds


@dataclass
class ShardIndex:
    """Holds where the N samples of a shard, or of several, one after the other, lie.

    Attributes:
        names: of the images' files, (N,) bytes in UTF-8.
        offsets, sizes: where in its shard an image's bytes are, (N,) int64.
        labels: (N,) int64.
        skipped: how many samples say that they have no label.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def columns(self) -> tuple[np.ndarray, ...]:
        """Returns what there is of each sample."""
        return self.names, self.offsets, self.sizes, self.labels


def joined(parts: Sequence[ShardIndex]) -> ShardIndex:
    """Returns the samples of all parts, in their order."""
    columns = zip(*(part.columns() for part in parts), strict=True)
    return ShardIndex(*map(np.concatenate, columns), sum(part.skipped for part in parts))


def index_shard(path: str, label_key: str = "") -> ShardIndex:
    """Returns the index of a shard. ``label_key``: the field of a sample's ``json`` that is its label, where its
    ``cls`` is not; a negative one says that there is none, and the sample is skipped, as timm does.

    Raises UserError that names the shard, and the sample: it cannot be read, is cut short or damaged, or not a plain
    tar; a sample without an image or with an empty one, without a label or with one that is no number from 0; a file
    or a sample that is there twice.
    """
    rows, skipped, seen = [], 0, set()
    try:
        with open(path, "rb") as stream:
            check_plain(stream)
            for key, files in _samples(stream):
                if key in seen:
                    raise ValueError(f"sample {key} is there twice")
                seen.add(key)
                suffix = _image(key, files)
                label = _label(stream, key, files, label_key)
                if label is None:
                    skipped += 1
                else:
                    rows.append((f"{key}.{suffix}".encode(errors="surrogateescape"), *files[suffix], label))
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise UserError(f"shard {path} cannot be used: {getattr(error, 'strerror', None) or error}") from error
    names, *columns = zip(*rows, strict=True) if rows else ((), (), (), ())
    return ShardIndex(np.array(names, bytes), *(np.array(column, np.int64) for column in columns), skipped)


def _samples(stream: BinaryIO) -> Iterator[tuple[str, dict[str, File]]]:
    """Yields the samples of a tar as webdataset groups them: key, and where the file of each suffix lies."""
    from webdataset.tariterators import base_plus_ext

    key, files = None, {}
    for name, member, start in members(stream, 0, ""):
        prefix, suffix = base_plus_ext(name)
        if not member.isfile() or prefix is None or SERVICE.match(name):
            continue
        if prefix != key:
            if files:
                yield key, files
            key, files = prefix, {}
        if suffix.lower() in files:
            raise ValueError(f"{name} is there twice")
        files[suffix.lower()] = (start + member.offset_data, member.size)
    if files:
        yield key, files


def _image(key: str, files: dict[str, File]) -> str:
    """Returns the suffix of a sample's image."""
    found = [suffix for suffix in files if "." not in suffix and is_image_name(f"x.{suffix}")]
    if not found:
        raise ValueError(f"sample {key} has no image, only {', '.join(files)}; expected one as {key}.jpg")
    suffix = next((suffix for suffix in FIRST if suffix in found), found[0])
    if not files[suffix][1]:
        raise ValueError(f"{key}.{suffix} is an empty file")
    return suffix


def _label(stream: BinaryIO, key: str, files: dict[str, File], label_key: str) -> int | None:
    """Returns a sample's label; None where its ``json`` says that there is none."""
    kind = "json" if label_key else "cls"
    if kind not in files:
        raise ValueError(f"sample {key} has no label, only {', '.join(files)}; expected {key}.{kind}")
    offset, size = files[kind]
    stream.seek(offset)
    content = stream.read(size)
    try:
        label = json.loads(content)[label_key] if label_key else int(content)
        if type(label) is not int:
            raise TypeError("true and 3.7 are no labels, though Python makes numbers of them")
    except (ValueError, KeyError, TypeError) as error:
        expected = f"an object with a number as {label_key!r}" if label_key else "a number"
        raise ValueError(f"{key}.{kind} holds {content[:40]!r}, expected {expected}") from error
    if label < 0 and not label_key:
        raise ValueError(f"{key}.cls holds {label}, expected a number from 0")
    return None if label < 0 else label


def index_of(paths: Sequence[str], label_key: str, folder: Path | None) -> list[ShardIndex]:
    """Returns the index of every shard: from a file in ``folder`` that is for shards of these sizes and times of change
    (copies on several machines have one each), or from a pass over the shards, of which that file is written; without a
    folder, or in one that cannot be written, there is none. Of several processes the others wait for the first. Raises
    UserError as `index_shard` does."""
    stamps = [_stamp(path) for path in paths]
    named = hashlib.blake2b(repr((FORMAT, label_key, stamps)).encode(), digest_size=16)
    kept = folder and folder / f"{named.hexdigest()}.shards"
    held = _read(kept) if kept else {}
    if held.keys() >= set(stamps):
        return [held[each] for each in stamps]
    with ExitStack() as stack:
        with suppress(OSError):  # of a folder that cannot be written
            if kept:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(wait_for(kept.with_suffix(".lock")))
                held = _read(kept)  # by now another process may have written it
        new = {each: path for each, path in zip(stamps, paths, strict=True) if each not in held}
        last = time.monotonic()
        for each, index in zip(new, _indices(list(new.values()), label_key), strict=True):
            held[each] = index
            if kept and (time.monotonic() - last > WRITE_SECONDS or len(held) == len(stamps)):
                with suppress(OSError):
                    _write(kept, held)
                last = time.monotonic()
    return [held[each] for each in stamps]


def _indices(paths: Sequence[str], label_key: str) -> Iterator[ShardIndex]:
    """Yields the index of each shard, several of which are read at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(partial(index_shard, label_key=label_key), paths)


def _stamp(path: str) -> Stamp:
    with system_errors(f"shard {path} cannot be used"):
        found = os.stat(path)
    return os.path.realpath(path), found.st_size, found.st_mtime_ns


def _write(path: Path, held: Mapping[Stamp, ShardIndex]) -> None:
    """Writes the index of shards. Raises OSError."""
    remove_leftovers(path)
    shards = [[*of, len(index), index.skipped] for of, index in held.items()]
    columns = dict(zip(COLUMNS, joined(list(held.values())).columns(), strict=True))
    with open_atomically(path) as stream:
        np.savez_compressed(stream, shards=np.array(json.dumps(shards)), **columns)


def _read(path: Path) -> dict[Stamp, ShardIndex]:
    """Returns what `_write` has written, by shard; nothing where there is no such file, or a damaged one."""
    try:
        with np.load(path) as file:
            columns = [file[name] for name in COLUMNS]
            shards = json.loads(str(file["shards"]))
        found, begin = {}, 0
        for *of, count, skipped in shards:
            found[tuple(of)] = ShardIndex(*(column[begin : begin + count] for column in columns), skipped)
            begin += count
        return found if {len(column) for column in columns} == {begin} else {}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError):
        return {}
