"""Images of shards, as timm's reader ``wds/`` names them, read in any order by an index, and the order for training.

timm reads shards as streams, whose order depends on workers and processes and begins anew when a run goes on. Here the
order is a function of seed and epoch, as for all other images; it only keeps together what lies together. Shards are
dealt out at random to windows, windows follow each other, and images are in random order within their window, so that
a storage that is slow at random places is read a few shards at a time.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dk_bench.config import DataConfig
from dk_bench.data.layout import fault_of_names
from dk_bench.data.scan import Files, read_part
from dk_bench.data.shard_index import ShardIndex, index_of, joined
from dk_bench.errors import UserError, some, system_errors

READER = "wds"
REMOTE = re.compile(r"pipe:|file:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
PATTERN = "a pattern of shards, as train-{0000..1023}.tar"
INFO = ("_info.json", "info.json")  # as timm looks for them


class Names(Sequence):
    """Texts that are kept as an array of bytes, which processes share."""

    def __init__(self, names: np.ndarray) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> str:
        return self._names[index].decode(errors="backslashreplace")


class ShardFiles(Files):
    """The images of a split's shards, in the order of the shards and of the samples in them.

    Attributes:
        place: what the configuration calls them.
        names: of the images' files, from their keys.
        classes: names of the classes in order of their labels.
        labels: of each image the index of its class, (images,) int64.
        left_out: how many samples say that they have no label.
        lengths: numbers of images, by shard.
    """

    def __init__(self, place: str, shards: Sequence[str], indices: Sequence[ShardIndex]) -> None:
        index = joined(indices)
        self.place, self.names, self.labels, self.left_out = place, Names(index.names), index.labels, index.skipped
        self.lengths = [len(part) for part in indices]
        self._shards, self._ends = list(shards), np.cumsum(self.lengths)
        self._real = list(map(os.path.realpath, shards))
        self._offsets, self._sizes = index.offsets, index.sizes

    def called(self, index: int) -> str:
        return f"{self._shards[self._shard(index)]}: image {self.names[index]}"

    def identity(self, index: int) -> tuple[str, int]:
        return self._real[self._shard(index)], int(self._offsets[index])

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _read(self, index: int) -> bytes:
        return read_part(self._shards[self._shard(index)], int(self._offsets[index]), int(self._sizes[index]))

    def _size(self, index: int) -> int:
        return int(self._sizes[index])


def open_shards(config: DataConfig, split: str, folder: Path | None = None) -> ShardFiles:
    """Returns the images of a split's shards. ``folder``: where their index is kept, see `index_of`.

    Raises UserError: webdataset is not installed; a pattern or a name of a split that timm would not take; shards that
    are elsewhere than in files, missing or damaged, or of another length than ``_info.json`` says; samples without
    image or label; labels that are of no class, and classes without samples.
    """
    key, place = f"data.{split}", getattr(config, split)
    names, label_key, lengths = _listed(config, key, place)
    paths = [os.path.join(config.root or "", name) for name in names]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        reason = f"of whose {len(paths)} shards {len(missing)} are missing: {some(missing)}; expected {PATTERN}"
        raise UserError(reason, key=key, value=place)
    if twice := _named_twice(paths):
        raise UserError(f"which names {some(twice)} twice", key=key, value=place)
    stated = _stated(key, place)
    indices = index_of(paths, label_key, folder)
    for path, name, index in zip(paths, names, indices, strict=True):
        _check_length(path, index, lengths.get(name))
    files = ShardFiles(place, paths, indices)
    if stated is not None and stated != len(files) + files.left_out:
        raise UserError(f"but the shards hold {len(files) + files.left_out} samples", key=key, value=place)
    files.classes = _classes(files, config.class_names, key)
    return files


def _named_twice(paths: Sequence[str]) -> list[str]:
    """Returns the shards that are named by several names, or several times by one: their files are the same, by links
    of either kind too."""
    names: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        file = os.stat(path)
        names.setdefault((file.st_dev, file.st_ino), []).append(path)
    return [" = ".join(dict.fromkeys(same)) for same in names.values() if len(same) > 1]


def _stated(key: str, place: str) -> int | None:
    """Returns how many samples a pattern says there are, behind its ``|``. Raises UserError for what is no number."""
    _, _, stated = place.partition("|")
    try:
        return int(stated) if stated else None
    except ValueError as error:
        raise UserError(f"expected a number of samples behind |, found {stated!r}", key=key, value=place) from error


def _listed(config: DataConfig, key: str, place: str) -> tuple[list[str], str, dict[str, int]]:
    """Returns the names of a split's shards, the field of ``json`` that is a label, if that is one, and how many
    samples ``_info.json`` says are in a shard, as far as it does."""
    if REMOTE.match(config.root or ""):
        raise UserError(_elsewhere(), key="data.root", value=config.root)
    if any(REMOTE.match(part) for part in place.split("::")):
        raise UserError(_elsewhere(), key=key, value=place)
    try:
        import webdataset  # noqa: F401
        from timm.data.readers.reader_wds import _load_info, _parse_split_info
    except ImportError as error:
        reason = f"for which webdataset cannot be imported ({error}); pip install 'dk_bench[wds]'"
        raise UserError(reason, key="data.reader", value=config.reader) from error
    root = config.root or ""
    info = _load_info(root) if any(os.path.isfile(os.path.join(root, name)) for name in INFO) else {}
    splits = info.get("splits", {}) if isinstance(info, dict) else {}
    try:
        stated = [(of["filenames"], of["shard_lengths"]) for of in splits.values()]
        lengths = {name: count for of in stated for name, count in zip(*of, strict=True)}
        found = _parse_split_info(place, info)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        known = f"one of the splits {some(splits)} of {root}/{INFO[0]}" if splits else f"a split that {INFO[0]} lists"
        raise UserError(f"expected {PATTERN}, or {known} ({error})", key=key, value=place) from error
    return list(found.filenames), found.alt_label, lengths


def _elsewhere() -> str:
    return "expected shards in files: they are read at any place, and those of a server or a pipe from the first on"


def _check_length(path: str, index: ShardIndex, stated: int | None) -> None:
    held = len(index) + index.skipped
    if not held:
        raise UserError(f"shard {path} cannot be used: there are no samples in it")
    if stated is not None and stated != held:
        raise UserError(f"shard {path} holds {held} samples, but {INFO[0]} says {stated}: it is not whole, or another")


def _classes(files: ShardFiles, path: str | None, key: str) -> list[str]:
    """Returns the classes' names: those of a file, a line each, or else the labels themselves."""
    if not len(files):
        raise UserError(f"no labelled images in {files.place}", key=key)
    top = int(files.labels.max())
    if path is not None:
        with system_errors(f"key 'data.class_names': {path} cannot be read"):
            names = Path(path).read_text("utf-8", errors="backslashreplace").strip().split("\n")
        if fault := fault_of_names(names):
            reason = f"{fault}; expected the names of the classes, a line each"
            raise UserError(reason, key="data.class_names", value=path)
        if top >= len(names):
            at = int(files.labels.argmax())
            expected = f"expected 0 to {len(names) - 1}, of the classes of {path}"
            raise UserError(f"{files.called(at)} has the label {top}, {expected}")
        return names
    counts = np.bincount(files.labels)
    if empty := np.flatnonzero(counts == 0).tolist():
        expected = f"expected some of every label up to {top}, or the classes in a file, data.class_names=FILE"
        raise UserError(f"no images with the label {some(empty)} in {files.place}; {expected}", key=key)
    if top == 0:
        raise UserError(f"only one class in {files.place}: every label is 0; expected two or more", key=key)
    return list(map(str, range(top + 1)))


def shard_order(lengths: Sequence[int], window: int) -> Callable[[torch.Generator], Tensor]:
    """Returns a function that draws an order of the images of shards of so many each, (images,) int64.

    It deals out the shards, in random order, to windows of as equal numbers of them as can be, and of ``window`` images
    or more on average, and gives the images of each window in random order.
    """
    ends = np.cumsum(lengths)
    windows = min(len(lengths), max(1, int(ends[-1]) // window))

    def draw(generator: torch.Generator) -> Tensor:
        parts = []
        for shards in np.array_split(torch.randperm(len(lengths), generator=generator).numpy(), windows):
            images = np.concatenate([np.arange(ends[shard] - lengths[shard], ends[shard]) for shard in shards])
            parts.append(torch.from_numpy(images)[torch.randperm(len(images), generator=generator)])
        return torch.cat(parts)

    return draw


def order_of(images: Any, config: DataConfig) -> Callable[[torch.Generator], Tensor] | None:
    """Returns `shard_order` of images that lie in shards; None for others, and where ``config.window`` is 0."""
    files = getattr(images, "files", None)
    return shard_order(files.lengths, config.window) if isinstance(files, ShardFiles) and config.window else None
