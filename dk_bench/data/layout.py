"""Which files of a folder or a tar are images of which class: one folder of images a class, and nothing else.

Whatever is not used is an error that names it, so that no class is thinned and none appears that nobody meant. Only
what systems and programs leave beside files by themselves is passed over, and counted.
"""

import fnmatch
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from dk_bench.data.pixels import is_image_name
from dk_bench.errors import UserError, some

# By operating systems, file managers, synchronisation, version control and notebooks; compared in lower case.
SERVICE_FILES = (
    "._* .ds_store thumbs.db ehthumbs.db desktop.ini icon\r .directory .git* .nfs* .localized .nomedia "
    "*:zone.identifier"
).split(" ")
SERVICE_FOLDERS = (
    ".ipynb_checkpoints __macosx @eadir #recycle #snapshot .git .svn .hg .dvc __pycache__ .cache lost+found "
    "$recycle.bin .trash* .spotlight-v100 .fseventsd .temporaryitems .appledouble .snapshot .snapshots"
).split()
SERVICE_FILE, SERVICE_FOLDER = (
    re.compile("|".join(map(fnmatch.translate, names)))
    for names in (SERVICE_FILES, [*SERVICE_FOLDERS, "system volume information"])
)
SPLIT_NAMES = frozenset("train training val valid validation eval dev test testing".split())
EXPECTED = "a folder with one folder of images a class, or a tar of such a folder"
NO_IMAGE = "no image by its name's end"


@dataclass
class Listing:
    """Holds what a folder or a tar holds, service files left out: paths in it with ``/`` between their parts.

    Attributes:
        files: everything that may be an image; of a tar's, the offset and number of its bytes.
        folders: those at the first level, where classes are, the empty ones included.
        faults: what can be no image, with the reason.
        left_out: the service files and folders.
    """

    files: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)


def is_service(name: str, folder: bool) -> bool:
    """Tells whether a file or folder of that name is no part of anybody's data."""
    return bool((SERVICE_FOLDER if folder else SERVICE_FILE).match(name.lower()))


def natural_key(name: str) -> tuple:
    """Returns a key by which names sort as timm has them: numbers by value, letters in lower case, then as they are."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def arrange(listing: Listing, place: str, key: str) -> tuple[list[str], list[str], list[int]]:
    """Returns classes in order, images in order, and every image's label, the index of its class.

    Raises UserError that names ``key``, ``place`` and, the first few of many, what is not used, classes without
    images, and classes whose names cannot be told apart on every file system.
    """
    faults = listing.faults | {name: why for name in listing.files if (why := _fault(name))}
    images = sorted(listing.files.keys() - faults.keys(), key=natural_key)
    if not images and not faults:
        empty = f": {some(sorted(listing.folders))} are empty" if listing.folders else ""
        raise UserError(f"no images in {place}{empty}, expected {EXPECTED}", key=key)
    if faults:
        shown = some([f"{name} ({faults[name]})" for name in sorted(faults, key=natural_key)])
        entries = "1 entry is" if len(faults) == 1 else f"{len(faults)} entries are"
        expected = f"expected {EXPECTED}, and nothing else{_hint(listing)}"
        raise UserError(f"{entries} not used in {place}: {shown}; {expected}", key=key)
    classes = sorted({name.partition("/")[0] for name in images}, key=natural_key)
    if empty := sorted(set(listing.folders) - set(classes), key=natural_key):
        raise UserError(f"no images in {place}/{some(empty)}, expected some in the folder of every class", key=key)
    if fault := fault_of_names(classes):
        raise UserError(f"{place}: {fault}", key=key)
    label = {name: index for index, name in enumerate(classes)}
    return classes, images, [label[name.partition("/")[0]] for name in images]


def _fault(name: str) -> str | None:
    """Tells why a file is no image of a class, or None."""
    depth = name.count("/")
    if not is_image_name(name.rpartition("/")[2]):
        return NO_IMAGE
    if depth == 0:
        return "lies beside the folders of the classes"
    return "lies deeper than in the folder of a class" if depth > 1 else None


def _hint(listing: Listing) -> str:
    """Tells what to do about layouts that are known."""
    inner = {name.split("/")[1] for name in (*listing.faults, *listing.files) if name.count("/")}
    if "images" in inner and any(name.endswith("_boxes.txt") for name in listing.files):
        return ". This is TinyImageNet's train: move the images of every CLASS/images to CLASS, and *_boxes.txt away"
    if any(name.rpartition("/")[2] == "val_annotations.txt" for name in listing.files):
        return ". This is TinyImageNet's val: move every image to a folder of the class that val_annotations.txt says"
    if listing.folders and {name.lower() for name in listing.folders} <= SPLIT_NAMES:
        return f". These look like splits: name one of them, as {min(listing.folders)}"
    if len(listing.folders) == 1:
        return f". If the classes are in it, name the folder {listing.folders[0]} itself"
    return ""


def fault_of_names(classes: Sequence[str]) -> str | None:
    """Tells why these are no names of classes, or None."""
    seen: dict[str, str] = {}
    for name in classes:
        if not name or not name.isprintable():  # also bytes that are no UTF-8, which no record can hold
            return f"{name!r} is no name of a class, expected plain text in UTF-8"
        if (same := plain_name(name)) in seen:
            expected = "expected names that every file system tells apart"
            differ = f"{ascii(seen[same])} and {ascii(name)} differ only in capitals or in how letters are encoded"
            return f"the classes {differ}, {expected}"
        seen[same] = name
    if len(classes) < 2:
        return f"only one class, {classes[0]}, expected two or more: {EXPECTED}"
    if {name.lower() for name in classes} <= SPLIT_NAMES:
        return f"it holds {', '.join(classes)}, which are splits and no classes; name one"
    return None


def plain_name(name: str) -> str:
    """Returns a name without what some file systems do not tell apart: capitals, and how letters are encoded."""
    return unicodedata.normalize("NFC", name).casefold()
