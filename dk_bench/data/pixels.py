"""The one function that opens an image file: what training, evaluation, analysis and detection see are the same pixels.

Pixels become eight bits of red, green and blue, the photograph upright:

- Orientation: that of the file's EXIF (or XMP) is applied. Where an annotation states the image's size and only the
  picture as it is stored has that size, boxes were measured on it so, and it stays as stored; where both have it, the
  upright one counts; where neither has it, that is an error.
- Sixteen bits of grey: the upper eight are kept, as Pillow keeps them of sixteen bits of colour. Values outside 0 to
  65535, values that all come out black and floating-point pixels have no known black and white: an error.
- Grey and palettes become colours, CMYK by Pillow's plain formula. Transparency is dropped: the stored colours count.
- Of animations and files of several pages, the first.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from dk_bench.errors import UserError

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # orientations that exchange width and height
# Formats that Pillow recognises but has no decoder of its own for.
NOT_DECODED = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
# What Pillow's readers raise at damaged files, beside its own errors.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)
DAMAGE += (struct.error, zlib.error, Image.DecompressionBombError)


def open_image(
    file: str | os.PathLike | BinaryIO, size: tuple[int, int] | None = None, *, name: str | None = None
) -> Image.Image:
    """Returns an image file as RGB, eight bits a channel, upright.

    ``size`` is the (width, height) that an annotation states, ``name`` what errors say in place of ``image PATH``.

    Raises UserError that names the image: it is missing, no image, damaged or cut short, of pixels without a known
    black and white, or of another size than stated.
    """
    with _opened(file, name) as image:
        turn = _turn(image, size, name or f"image {file}", "its annotation")
        image.load()
        image = eight_bits(image)
        return image if turn is None else image.transpose(turn)


def check_size(file: str | os.PathLike, size: tuple[int, int], stated_by: str = "its annotation") -> None:
    """Raises UserError where `open_image` would for an image's (width, height), from the head of the file alone."""
    with _opened(file, None) as image:
        if image.size != tuple(size):  # else it fits as it is stored, whichever way it lies
            _turn(image, size, f"image {file}", stated_by)


@cache
def _suffixes() -> frozenset[str]:
    formats = Image.registered_extensions()  # loads all of Pillow's plug-ins
    known = (set(Image.OPEN) | {"MPO"}) - NOT_DECODED  # MPO: several JPEGs in one, which the JPEG reader opens
    return frozenset(suffix for suffix, kind in formats.items() if kind in known)


def is_image_name(name: str) -> bool:
    """Tells whether a file's name ends as those of images do that Pillow decodes, in whatever case."""
    return os.path.splitext(name)[1].lower() in _suffixes()


@contextmanager
def _opened(file: str | os.PathLike | BinaryIO, name: str | None) -> Iterator[Image.Image]:
    named = name or f"image {file}"
    try:
        with Image.open(file) as image:
            yield image
    except DAMAGE as error:
        why = "not an image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        if isinstance(file, str | os.PathLike) and os.path.isfile(file) and os.path.getsize(file) == 0:
            why = "the file is empty"
        raise UserError(f"{named} cannot be read: {why}") from error


def _turn(image: Image.Image, size: tuple[int, int] | None, name: str, stated_by: str) -> Image.Transpose | None:
    """Tells how the stored picture is to be turned. Raises UserError where it has the stated size neither way."""
    orientation = _orientation(image)
    upright = image.size[::-1] if orientation in LYING else image.size
    if size is None or upright == tuple(size):
        return TURNS.get(orientation)
    if image.size == tuple(size):
        return None
    raise UserError(f"{name} is {upright[0]} x {upright[1]}; {stated_by} says {size[0]} x {size[1]}")


def _orientation(image: Image.Image) -> int:
    """Returns 1, as it lies, to 8. What cannot be read, or is no orientation, is 1: viewers show the picture so too."""
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    try:
        return image.getexif().get(ORIENTATION, 1)
    except DAMAGE:
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """Returns an image as RGB, eight bits a channel, and may change the image itself. Raises ValueError for pixels
    without a known black and white."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its grey values are {values.min()} to {values.max()}, expected 0 to 65535")
        if 0 < values.max() <= 0xFF:
            expected = "expected a file of eight bits, or values over all sixteen"
            raise ValueError(f"its grey values, up to {values.max()} of 65535, are all black in eight bits; {expected}")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits a channel")
    if image.mode in ("RGBa", "La"):  # colours multiplied by their opacity
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    image.info.pop("transparency", None)  # else Pillow advises against dropping it
    return image.convert("RGB")
