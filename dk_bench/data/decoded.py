"""Images decoded once: kept in memory, or in a file that all runs beside it share.

Pixels are kept as they were decoded, before any resizing, so that augmentation sees what it would see of the files. A
file of pixels is named by the content of the images it was made of and by what decoded them, of procedural images by
their settings and the pixels of some as they are drawn now: other images are another file. It is written beside its
name and then renamed, under a lock, and its description, which holds a checksum of both, comes last: what was not
written whole is never read. Reading needs no lock, and so no folder that can be written. A file is mapped into memory,
so that the processes of a machine share it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from dk_bench.config import DataConfig
from dk_bench.data.checksum import content_digest, spread
from dk_bench.data.sources import FileImages, Images
from dk_bench.data.synthetic import Drawn
from dk_bench.errors import UserError, system_errors
from dk_bench.files import open_atomically, remove_leftovers, write_atomically
from dk_bench.runs.lock import wait_for

FORMAT = 2  # raised whenever the files, or what `open_image` makes of an image, change
MEMORY, FILE, EVERY_TIME = "memory", "file", "every time"  # where decoded images are, in records
CHECKSUM = partial(hashlib.blake2b, digest_size=32)


class TooLarge(Exception):
    """Decoded images are larger than what is to be kept."""


class Encoded:
    """Images that are decoded whenever they are asked for.

    ``together``: no more should be asked for at once, since that many decoded images are held.
    """

    where, together = EVERY_TIME, 8

    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def load(self, indices: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Returns pixels (1, 3, H, W) uint8 of each, in channels_last, and labels (N,) int64."""
        items = [self._images[index] for index in indices]
        pixels = [torch.from_numpy(np.array(image)[None]).permute(0, 3, 1, 2) for image, _ in items]
        return pixels, torch.tensor([label for _, label in items])


class Decoded:
    """Decoded images: ``pixels`` of all, one after the other, (bytes,) uint8, or the file that these lie in, and the
    (height, width) of each; as `Encoded`. ``path`` is that file, if any."""

    together = None

    def __init__(self, pixels: Tensor | Path, sizes: Sequence[tuple[int, int]], labels: Sequence[int]) -> None:
        self.where, self.path = (FILE, pixels) if isinstance(pixels, Path) else (MEMORY, None)
        self._sizes, self._labels = sizes, torch.tensor(labels)
        self._ends = np.cumsum([3 * height * width for height, width in sizes]).tolist()
        if self.path:
            pixels = torch.from_file(str(pixels), shared=False, size=self._ends[-1], dtype=torch.uint8)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._sizes)

    def load(self, indices: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Returns what `Encoded.load` does; the pixels are views, not to be written to."""
        return [self._image(index) for index in indices], self.labels(indices)

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Returns labels (N,) int64."""
        return self._labels[list(indices)]

    def _image(self, index: int) -> Tensor:
        height, width = self._sizes[index]
        strides = 3 * height * width, 1, 3 * width, 3
        return self._pixels.as_strided((1, 3, height, width), strides, self._ends[index] - strides[0])

    def __reduce__(self) -> tuple[Callable, tuple]:
        """Lets processes that are not forked map the file again, in place of getting its content."""
        return Decoded, (self.path or self._pixels, self._sizes, self._labels.tolist())


def keep(images: Images, config: DataConfig, auto: str | Path = "memory", *, once: bool = False) -> Decoded | Encoded:
    """Decodes a split once, where ``config.cache`` says, if its pixels are no more than ``config.cache_gb``.

    ``auto`` is what ``config.cache`` means by that word: a folder for files, ``memory`` or ``off``. Files are made of
    folders and tars, and where ``config.cache`` names the folder of drawn images; other sources are kept in
    memory, unless they are wanted ``once``. What is chosen depends on configuration and images alone.

    Raises UserError for an image that cannot be read, files that change meanwhile, and a folder that cannot be written.
    """
    where = auto if config.cache == "auto" else config.cache
    limit = config.cache_gb * 1e9
    filed = isinstance(images, FileImages) or (isinstance(images, Drawn) and config.cache != "auto")
    in_file = filed and where not in ("memory", "off")
    if where == "off" or (once and not in_file) or _estimate(images) > limit:
        return Encoded(images)
    try:
        if in_file:
            return _in_file(images, Path(where), limit)
        pixels = bytearray()
        sizes, labels = _decode(images, limit, pixels.extend)
        return Decoded(torch.frombuffer(pixels, dtype=torch.uint8), sizes, labels)
    except TooLarge:
        return Encoded(images)


def index_folder(config: DataConfig, auto: str | Path = "memory") -> Path | None:
    """Tells where an index of shards is kept: beside decoded images, where these may lie in files. The arguments are
    those of `keep`; None: nowhere."""
    if config.cache not in ("auto", "memory", "off"):
        return Path(config.cache)
    return auto if isinstance(auto, Path) else None


def _estimate(images: Images) -> float:
    """Estimates the bytes of all decoded images, by some that lie spread over them."""
    sizes = [images[index][0].size for index in spread(len(images))]
    return len(images) * _bytes(sizes) / len(sizes)


def _decode(images: Images, limit: float, *writes: Callable) -> tuple[list[tuple[int, int]], list[int]]:
    """Hands the pixels of all images to all of ``writes`` and returns sizes and labels. Raises TooLarge."""
    sizes, labels, total = [], [], 0
    for index in range(len(images)):
        image, label = images[index]
        pixels = np.ascontiguousarray(image)
        total += pixels.nbytes
        if total > limit:
            raise TooLarge
        for write in writes:
            write(pixels.reshape(-1).data)
        sizes.append(pixels.shape[:2])
        labels.append(label)
    return sizes, labels


def _in_file(images: FileImages | Drawn, folder: Path, limit: float) -> Decoded:
    """Returns the images in the file that holds them, which is written where there is none, or none that is whole."""
    pixels = folder / f"{content_key(images)}.pixels"
    hint = "; expected a folder that can be written and has room, memory, or off"
    with system_errors(f"key 'data.cache': decoded images cannot be kept in {folder}", hint):
        sizes = _sizes_in(pixels, len(images))
        if sizes is None:
            folder.mkdir(parents=True, exist_ok=True)
            with wait_for(pixels.with_suffix(".lock")):  # and then another process may have written it
                sizes = _sizes_in(pixels, len(images)) or _write(images, pixels, limit)
        if _bytes(sizes) > limit:
            raise TooLarge
        return Decoded(pixels, sizes, images.labels)


def content_key(images: FileImages | Drawn, *, again: bool = False) -> str:
    """Names these images in this order, decoded by this program: 32 hexadecimal digits, which any others differ in.
    Files are read once, unless ``again``."""
    decoder = f"{FORMAT} {Image.__version__} {features.version('jpg')} {features.version('libjpeg_turbo')}"
    digest = hashlib.blake2b(decoder.encode(), digest_size=16)
    digest.update(content_digest(images, again=again))
    return digest.hexdigest()


def _write(images: FileImages | Drawn, path: Path, limit: float) -> list[tuple[int, int]]:
    """Writes pixels, then their description, and returns the images' sizes. Raises TooLarge, OSError, UserError."""
    describing = path.with_suffix(".json")
    if describing.exists():
        warnings.warn(f"{path}: damaged, so the images are decoded anew", stacklevel=2)
    remove_leftovers(path)
    remove_leftovers(describing)
    checksum = CHECKSUM()
    with open_atomically(path) as stream:
        sizes, _ = _decode(images, limit, checksum.update, stream.write)
    if isinstance(images, FileImages) and content_key(images, again=True) != path.stem:
        raise UserError(f"{images.files.place}: its images changed while they were read")
    described = sizes[:1] if len(set(sizes)) == 1 else sizes
    checksum.update(json.dumps(described).encode())
    description = {"format": FORMAT, "images": len(sizes), "bytes": _bytes(sizes), "checksum": checksum.hexdigest()}
    write_atomically(describing, json.dumps(description | {"sizes": described}) + "\n")
    return sizes


def _sizes_in(pixels: Path, count: int) -> list[tuple[int, int]] | None:
    """Returns the sizes of the images that a file holds; None where there is none, or a damaged one."""
    try:
        description = json.loads(pixels.with_suffix(".json").read_text())
        if description["images"] != count or description["bytes"] != os.path.getsize(pixels):
            return None
        with open(pixels, "rb") as stream:
            checksum = hashlib.file_digest(stream, CHECKSUM)
        checksum.update(json.dumps(description["sizes"]).encode())
        if description["checksum"] == checksum.hexdigest():
            sizes = [(height, width) for height, width in description["sizes"]]
            return sizes * count if len(sizes) == 1 else sizes
    except (KeyError, TypeError, ValueError, FileNotFoundError):
        pass  # damage, of whatever kind
    return None


def _bytes(sizes: Sequence[tuple[int, int]]) -> int:
    return sum(3 * height * width for height, width in sizes)
