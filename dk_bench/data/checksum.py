"""Checksums of images, which tell data sets apart wherever they lie and however they are packed."""

import hashlib
import os
from typing import Any

from dk_bench.data.procedural import ShapeImages
from dk_bench.data.scan import Files
from dk_bench.data.sources import FileImages, Images

MANY = 100_000  # of up to so many images, and so many bytes of files, all are read
MANY_BYTES = 2_000_000_000
SAMPLE = 32  # of more, and of images that are drawn, so many, or a few more, that lie spread over all


def checksum(images: Images) -> str:
    """Returns the checksum, 16 hexadecimal digits, of a split's images in order, their labels and their classes' names.

    Equal for a folder and its tar. Of files the bytes count: of all of them up to `MANY` images and `MANY_BYTES`, of
    larger splits their names, sizes and labels, and the bytes of some. Of procedural images their settings and the
    pixels of some count. Raises UserError for an image that cannot be read.
    """
    if isinstance(images, FileImages):
        return files_checksum(images.files, len(images), *images.classes, *images.labels)
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, len(images), *images.classes)
    if len(images) <= MANY or isinstance(images, ShapeImages):
        _add(digest, content_digest(images))
    else:
        _add(digest, *map(images.content, spread(len(images))))
    return digest.hexdigest()


def files_checksum(files: Files, *described: Any) -> str:
    """Returns the `checksum` of files and of what is said of them, plain data. Raises UserError as it does."""
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, *described)
    sizes = [files.size(index) for index in range(len(files))]
    if len(sizes) <= MANY and sum(sizes) <= MANY_BYTES:
        _add(digest, content_digest(files))
    else:
        for name, size in zip(files.names, sizes, strict=True):
            _add(digest, os.path.basename(name), size)
        _add(digest, *map(files.content, spread(len(sizes))))
    return digest.hexdigest()


def content_digest(images: Files | Images, *, again: bool = False) -> bytes:
    """Returns a digest of 16 bytes of the bytes of all images, in their order, worked out once unless ``again``; of
    procedural images of their settings, and of the pixels of some, which tell programs that draw otherwise.

    Raises UserError for an image that cannot be read.
    """
    images = images.files if isinstance(images, FileImages) else images
    known = getattr(images, "_content_digest", None)
    if known is None or again:
        digest = hashlib.blake2b(digest_size=16)
        if isinstance(images, ShapeImages):
            _add(digest, sorted(images.settings.items()))
            _add(digest, *(images[index][0].tobytes() for index in spread(len(images))))
        else:
            for index in range(len(images)):
                _add(digest, images.content(index))
        known = images._content_digest = digest.digest()
    return known


def spread(count: int) -> range:
    """Returns the numbers of some of so many images, from the first on."""
    return range(0, count, max(1, count // SAMPLE))


def _add(digest: Any, *parts: Any) -> None:
    """Adds values so that no two rows of them look alike."""
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode(errors="backslashreplace")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
