"""Checksums of images, which tell data sets apart wherever they lie and however they are packed."""

import hashlib
import os
from collections.abc import Iterable
from itertools import chain
from typing import Any

from dk_bench.data.scan import Files
from dk_bench.data.sources import FileImages, Images
from dk_bench.data.synthetic import Drawn

MANY = 100_000  # of up to so many images, and so many bytes of files, all are read
MANY_BYTES = 2_000_000_000
SAMPLE = 32  # of more, and of images that are drawn, so many, or a few more, that lie spread over all


def checksum(images: Images) -> str:
    """Returns the checksum, 16 hexadecimal digits, of a split's images in order, their labels and their classes' names.

    Equal for a folder and its tar. Of files the bytes count: of all of them up to `MANY` images and `MANY_BYTES`, of
    larger splits their names, sizes and labels, and the bytes of some. Of images that are drawn their settings and
    the pixels of some count. Raises UserError for an image that cannot be read.
    """
    if isinstance(images, FileImages):
        return files_checksum(images.files, len(images), *images.classes, *map(int, images.labels))
    whole = len(images) <= MANY or isinstance(images, Drawn)
    contents = [content_digest(images)] if whole else map(images.content, spread(len(images)))
    return _digest(8, chain([len(images)], images.classes, contents)).hex()


def files_checksum(files: Files, *described: Any) -> str:
    """Returns the `checksum` of files and of what is said of them, plain data. Raises UserError as it does."""
    sizes = [files.size(index) for index in range(len(files))]
    if len(sizes) <= MANY and sum(sizes) <= MANY_BYTES:
        return _digest(8, [*described, content_digest(files)]).hex()
    told = chain.from_iterable(zip(map(os.path.basename, files.names), sizes, strict=True))
    return _digest(8, chain(described, told, map(files.content, spread(len(sizes))))).hex()


def content_digest(images: Files | Images, *, again: bool = False) -> bytes:
    """Returns a digest of 16 bytes of the bytes of all images, in their order, worked out once unless ``again``; of
    images that are drawn of their settings, and of the pixels of some, which tell programs that draw otherwise. Raises
    UserError for an image that cannot be read."""
    images = images.files if isinstance(images, FileImages) else images
    known = getattr(images, "_content_digest", None)
    if known is None or again:
        if isinstance(images, Drawn):
            drawn = (images[index][0].tobytes() for index in spread(len(images)))
            parts = chain([sorted(images.settings.items())], drawn)
        else:
            parts = map(images.content, range(len(images)))
        known = images._content_digest = _digest(16, parts)
    return known


def spread(count: int) -> range:
    """Returns the numbers of some of so many images, from the first on."""
    return range(0, count, max(1, count // SAMPLE))


def _digest(size: int, parts: Iterable[Any]) -> bytes:
    """Returns a digest of values, of so many bytes, that any other row of them differs in."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode(errors="backslashreplace")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()
