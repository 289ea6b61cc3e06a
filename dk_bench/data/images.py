"""Image files through timm's readers: folders, tars and named data sets. A file that does not decode is an error."""

from __future__ import annotations

import tarfile
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dk_bench.config import DataConfig
from dk_bench.errors import UserError

STREAMS = ("hfids", "tfds", "wds")  # timm's sources without random access


class TimmImages:
    """One split of ``timm.data.create_dataset`` as map-style data set: item ``index`` is (RGB image, label).

    timm's own data set skips a file it cannot decode and takes the next; here that is a UserError naming the file.
    Raises UserError as well for a path that is missing, holds no images, or a source that cannot be read by index.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        self._place = getattr(config, split)
        if self._place is None:
            raise UserError(f"key 'data.{split}' is not set, expected {_expected(config)}; give data.{split}=...")
        if config.reader.partition("/")[0].lower() in STREAMS:
            raise UserError(
                f"key 'data.reader' is {config.reader!r}: a stream has no order to resume in; expected a folder, a "
                "tar, or a data set with random access (hfds/NAME, torch/NAME)"
            )
        self._dataset = _create(config, self._place, f"data.{split}")
        self._reader = getattr(self._dataset, "reader", None)
        self.classes = _class_names(self._reader or self._dataset)
        if len(self) == 0:
            raise UserError(f"key 'data.{split}': no images in {self._place}, expected {_expected(config)}")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self._reader is None:  # torchvision's data sets decode for themselves
            image, label = self._dataset[index]
            return image.convert("RGB"), int(label)
        try:
            file, label, *_ = self._reader[index]
            with file, Image.open(file) as image:
                return image.convert("RGB"), int(label)
        except (OSError, SyntaxError, ValueError, tarfile.TarError) as error:
            why = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"{self._place}: image {self._reader.filename(index)} cannot be read: {why}") from error


def _expected(config: DataConfig) -> str:
    if config.reader:
        return f"the name of a split of {config.reader}"
    return "a folder with one folder of images a class, or a tar of such a folder"


def _create(config: DataConfig, place: str, key: str):
    from timm.data import create_dataset  # slow to import

    named = bool(config.reader)
    if not named and not Path(place).exists():
        raise UserError(f"key '{key}': {place} does not exist, expected {_expected(config)}")
    if not named and Path(place).is_file() and Path(place).suffix.lower() != ".tar":
        raise UserError(f"key '{key}': {place} is a file but no .tar, expected {_expected(config)}")
    try:
        # A path is the split itself: timm shall not look for a folder of another split's name in it.
        return create_dataset(
            config.reader, root=config.root if named else place, split=place if named else "", search_split=False
        )
    except tarfile.TarError as error:
        raise UserError(f"key '{key}': {place} cannot be read as a tar: {error}") from error
    except (RuntimeError, ValueError, AssertionError, OSError, ImportError) as error:
        if named:
            why = str(error) or type(error).__name__
            raise UserError(f"key 'data.reader': {config.reader!r}, split {place!r}: {why}") from error
        raise UserError(f"key '{key}': no images in {place}, expected {_expected(config)}") from error


def _class_names(source: object) -> list[str]:
    """Class names in the order of their labels, from whatever attribute the source has for them."""
    for attribute in ("class_to_idx", "class_name_to_idx"):
        if index_of := getattr(source, attribute, None):
            return [str(name) for name in sorted(index_of, key=index_of.get)]
    if names := getattr(source, "classes", None):
        return [str(name) for name in names]
    raise UserError("key 'data.reader': this data set does not say which classes it has")
