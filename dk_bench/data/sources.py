"""Opens the images a configuration names, and names them: folders, tars and shards by a scan of our own, data sets that
have a name through timm's readers, procedural and synthetic images."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from dk_bench.config import DataConfig
from dk_bench.data.layout import EXPECTED
from dk_bench.data.pixels import open_image
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.scan import scan
from dk_bench.data.shards import PATTERN, READER, open_shards
from dk_bench.data.shifts import check_beyond, ranges
from dk_bench.data.synthetic import NAME, SyntheticImages
from dk_bench.errors import UserError

STREAMS = ("hfids", "tfds")  # timm's sources without random access
# How torchvision's data sets that know only train and test take timm's names of splits.
TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
NAMES_OF_TWO = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")


class FileImages:
    """One split of a folder, a tar or shards as map-style data set: item ``index`` is (RGB image, label).

    ``labels`` are of all images in order, ``classes`` the names in order of the labels, ``files`` where images come
    from, ``left_out`` the number of service files, or of samples without a label; ``kept`` is the folder where an index
    of shards is. Raises UserError for a path that is missing or holds anything but images of classes, see
    `dk_bench.data.layout` and `open_shards`; an item raises it where its image, which it names, cannot be read.
    """

    def __init__(self, config: DataConfig, split: str, kept: Path | None = None) -> None:
        place = _place(config, split)
        self.files = open_shards(config, split, kept) if is_shards(config) else scan(place, f"data.{split}")
        self.classes, self.labels, self.left_out = self.files.classes, self.files.labels, self.files.left_out

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        content = io.BytesIO(self.files.content(index))
        return open_image(content, name=self.files.called(index)), int(self.labels[index])


class NamedImages:
    """One split of a named data set of ``timm.data.create_dataset`` with random access, hfds/NAME or torch/NAME.

    As `FileImages`, and ``source`` says what was opened. Raises UserError where it, or a split it heeds, cannot be had.
    """

    left_out = 0

    def __init__(self, config: DataConfig, split: str) -> None:
        place = _place(config, split)
        _check_reader(config.reader, place, f"data.{split}")
        self._dataset = _create(config, place)
        self.reader = getattr(self._dataset, "reader", None)
        if hasattr(self._dataset, "loader"):  # torchvision's sets of files; its own loader reads other pixels
            self._dataset.loader = open_image
        self.classes = _class_names(self._dataset if self.reader is None else self.reader)
        self.source = f"{config.reader}, split {place!r}"
        if len(self) == 0:
            raise UserError(f"no images in {self.source}", key=f"data.{split}")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name = f"{self.source}: image {index}"
        try:
            if self.reader is None:  # torchvision's data sets decode for themselves, or call the loader
                image, label = self._dataset[index]
                image = image.convert("RGB")
            else:
                file, label, *_ = self.reader[index]
                with file:
                    image = open_image(file, name=name)
        except (OSError, AssertionError) as error:
            raise UserError(f"{name} cannot be read: {error}") from error
        if not 0 <= (label := int(label)) < len(self.classes):
            expected = f"expected 0 to {len(self.classes) - 1}; a split without labels cannot be used"
            raise UserError(f"{name} has the label {label}, {expected}")
        return image, label

    def paths(self) -> list[str] | None:
        """Tells where the images lie, in order; None where they are no files of their own."""
        known = getattr(self._dataset, "samples", None) or getattr(self._dataset, "imgs", None)
        return [str(path) for path, _ in known] if known else None

    def content(self, index: int) -> bytes:
        """Returns the file's bytes where there are some, or else the pixels: they differ from image to image."""
        if self.reader is None:
            image = self._dataset[index][0]
            return repr((image.mode, image.size)).encode() + image.tobytes()
        with self.reader[index][0] as file:
            return file.read()


Images = FileImages | NamedImages | ShapeImages | SyntheticImages


def is_shards(config: DataConfig) -> bool:
    """Tells whether a configuration's images lie in shards, which timm names wds/NAME."""
    return config.reader.lower().partition("/")[0] == READER


def open_images(config: DataConfig, split: str, kept: Path | None = None) -> Images:
    """Returns the images of a split, ``train``, ``val`` or one of `dk_bench.data.shifts.held_out_sets`, as map-style
    data set of (RGB image, label) with ``classes``. ``kept``: the folder for an index of shards. Raises UserError for
    paths, files and settings that do not fit."""
    _check_places(config)
    if config.source == "timm":
        named = config.reader and not is_shards(config)
        return NamedImages(config, split) if named else FileImages(config, split, kept)
    if config.source == NAME:
        return SyntheticImages(config.synthetic, split)
    shapes = config.procedural
    stream, _, shift = split.partition("/")
    if shift:
        check_beyond(shapes, shift)
    count = {"train": shapes.train_images, "val": shapes.val_images, "test": shapes.test_images}[stream]
    same = {"size": config.size, "classes": shapes.classes, "seed": shapes.seed, "clutter": shapes.clutter}
    try:
        return ShapeImages(stream, count, **same, **ranges(shapes, shift))
    except ValueError as error:
        raise UserError(f"section 'data.procedural': {error}") from error


def data_name(config: DataConfig) -> str:
    """Tells what records call the data: ``name``, or, where a configuration leaves it at that of the procedural images
    and names others, the reader's name or the last parts of the path that both splits share."""
    if config.source == NAME:
        return NAME
    if config.source == "procedural" or config.name != DataConfig.name:
        return config.name
    if config.reader:
        return config.reader
    val = Path(config.val or "").absolute()
    train = Path(config.train or config.val or "").absolute()
    return val.parent.name if train.parent == val.parent and val.parent.name else val.stem


def _check_places(config: DataConfig) -> None:
    """Raises UserError for settings of where images lie that the source would not heed."""
    if config.source != "timm":
        reason = f"but 'data.source' is {config.source!r}, which reads no files; expected data.source=timm with it"
        for key in ("train", "val", "test", "reader"):
            if value := getattr(config, key):
                raise UserError(reason, key=f"data.{key}", value=value)
        if config.source == NAME and config.name != DataConfig.name:
            reason = f"but 'data.source' is {NAME!r}, and records call such images so; expected no other name"
            raise UserError(reason, key="data.name", value=config.name)
    elif config.class_names is not None and not is_shards(config):
        reason = "but only shards, data.reader=wds/NAME, have classes without names"
        raise UserError(reason, key="data.class_names", value=config.class_names)
    elif config.root is not None and not config.reader:
        reason = "but 'data.reader' is empty: only named data sets lie below it; expected data.train and data.val as "
        raise UserError(f"{reason}whole paths", key="data.root", value=config.root)


def _place(config: DataConfig, split: str) -> str:
    place = getattr(config, split)
    if place is None:
        expected = f"the name of a split of {config.reader}" if config.reader else EXPECTED
        expected = PATTERN if is_shards(config) else expected
        raise UserError(f"key 'data.{split}' is not set, expected {expected}; give data.{split}=...")
    return place


def _check_reader(reader: str, place: str, key: str) -> None:
    """Raises UserError for a reader without random access, for one that opens something else than is meant, and for a
    split's name, at ``key``, that timm would take for test, whatever it says."""
    kind, _, name = reader.lower().partition("/")
    last, reason = name.rpartition("/")[2], None
    if kind in STREAMS:
        access = "a folder, a tar, shards (wds/NAME) or a data set with random access (hfds/NAME, torch/NAME)"
        reason = f"a stream, which has no order to resume in; expected {access}"
    elif kind not in ("hfds", "torch") or not name:  # timm takes any other name for a folder
        reason = "expected wds/NAME, hfds/NAME or torch/NAME, or nothing where data.train is a folder or a tar"
    elif kind == "torch" and last in ("image_folder", "folder"):
        instead = "leave data.reader empty, and give the folders as data.train=... and data.val=..."
        reason = f"which reads one folder for both splits; {instead}"
    if reason:
        raise UserError(reason, key="data.reader", value=reader)
    if kind == "torch" and last in TWO_SPLITS and place not in NAMES_OF_TWO:
        raise UserError(f"expected a split of {reader}: train or test", key=key, value=place)


def _create(config: DataConfig, split: str) -> Any:
    from timm.data import create_dataset  # slow to import

    try:
        return create_dataset(config.reader, root=config.root, split=split, search_split=False)
    except (RuntimeError, ValueError, AssertionError, OSError, ImportError, TypeError, KeyError) as error:
        why = str(error) or type(error).__name__
        raise UserError(f"{config.reader!r}, split {split!r}: {why}", key="data.reader") from error


def _class_names(source: object) -> list[str]:
    """Returns class names in the order of their labels, from whatever attribute the source has for them."""
    # torchvision's ImageNet (its classes have several names each), iNat, then what most sources have.
    for attribute in ("wnids", "all_categories", "class_to_idx", "class_name_to_idx", "classes"):
        if names := getattr(source, attribute, None):
            ordered = sorted(names, key=names.get) if attribute.endswith("_to_idx") else names
            return [str(name) for name in ordered]
    raise UserError("this data set does not say which classes it has", key="data.reader")
