"""Image files by their numbers, whatever holds them: paths, or a folder or a tar, in which they are found here, see
`dk_bench.data.layout` for what these must look like."""

import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import BinaryIO

from dk_bench.data.layout import EXPECTED, NO_IMAGE, Listing, arrange, is_service
from dk_bench.data.pixels import is_image_name
from dk_bench.errors import UserError, system_errors

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, Zstandard
INNER = "a folder inside the folder of a class"


class Files(ABC):
    """Files in an order. ``names``: of all, with ``/`` between their parts."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> bytes:
        """Returns the file's bytes. Raises UserError where it cannot be read."""
        with system_errors(f"{self.called(index)} cannot be read"):
            return self._read(index)

    def size(self, index: int) -> int:
        """Tells how many bytes the file has. Raises UserError where it is not there."""
        with system_errors(f"{self.called(index)} cannot be read"):
            return self._size(index)

    @abstractmethod
    def called(self, index: int) -> str:
        """Returns what errors call the file."""

    @abstractmethod
    def identity(self, index: int) -> tuple[str, int]:
        """Returns the file's real path, and where in that file it begins: the same by whatever links it is reached."""

    @abstractmethod
    def _read(self, index: int) -> bytes: ...

    @abstractmethod
    def _size(self, index: int) -> int: ...


class PathFiles(Files):
    """Files by their paths, relative to ``folder`` where one is given."""

    def __init__(self, names: Sequence[str], folder: str = "") -> None:
        self.names, self._folder = names, folder

    def called(self, index: int) -> str:
        return f"image {self._path(index)}"

    def identity(self, index: int) -> tuple[str, int]:
        return real_path(self._path(index)), 0

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, self.names[index])

    def _read(self, index: int) -> bytes:
        return Path(self._path(index)).read_bytes()

    def _size(self, index: int) -> int:
        return os.stat(self._path(index)).st_size


_real_folder = lru_cache(1 << 16)(os.path.realpath)


def real_path(path: str) -> str:
    """Tells where a file lies when links are followed; quick for many files of few folders."""
    folder, name = os.path.split(path)
    path = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


class Scan(Files):
    """Image files of classes, in order.

    Attributes:
        place: what was scanned; names are relative to it.
        classes: names of the classes in order of their labels.
        labels: of each image the index of its class.
        left_out: how many service files and folders were passed over.
    """

    def __init__(self, place: str, listing: Listing, key: str) -> None:
        self.place, self.left_out = place, len(listing.left_out)
        self.classes, self.names, self.labels = arrange(listing, place, key)

    def called(self, index: int) -> str:
        name = self.names[index].encode(errors="backslashreplace").decode()  # records cannot hold other names
        return f"{self.place}: image {name}"


class FolderScan(Scan, PathFiles):
    """A folder with one folder of images a class. Links to files and folders are followed, each once."""

    def __init__(self, place: str, key: str) -> None:
        super().__init__(place, _list_folder(Path(place), key), key)
        self._folder = place


def read_part(tar: str, offset: int, size: int) -> bytes:
    """Returns some bytes of a tar. Raises OSError where it cannot be read, or does not have them any more."""
    with open(tar, "rb") as stream:
        stream.seek(offset)
        content = stream.read(size)
    if len(content) < size:
        raise OSError("the tar has become shorter")
    return content


class TarFiles(Files):
    """Files in a tar. They are read by their place in it, so that processes share nothing but the tar.

    Attributes:
        place: the tar.
        places: of each file the offset and number of its bytes.
    """

    place: str
    places: Sequence[tuple[int, int]]

    def called(self, index: int) -> str:
        return f"{self.place}: image {self.names[index]}"

    def identity(self, index: int) -> tuple[str, int]:
        return os.path.realpath(self.place), self.places[index][0]

    def _read(self, index: int) -> bytes:
        return read_part(self.place, *self.places[index])

    def _size(self, index: int) -> int:
        return self.places[index][1]


class TarScan(Scan, TarFiles):
    """A tar of such a folder, with or without the folder itself above the classes; or a tar of one tar a class."""

    def __init__(self, place: str, key: str) -> None:
        listing = _below_the_top(_list_tar(place, key))
        super().__init__(place, listing, key)
        self.places = [listing.files[name] for name in self.names]


class TarImages(TarFiles):
    """All images of a tar, at any depth, in order of their names; other files are passed over. Raises UserError for
    what is no tar, or a damaged one."""

    def __init__(self, place: str) -> None:
        files = _list_tar(place).files
        self.place, self.names = place, sorted(filter(is_image_name, files), key=PurePath)
        self.places = [files[name] for name in self.names]


def scan(place: str, key: str) -> Scan:
    """Returns the images of a folder or a tar. Raises UserError that names ``key`` and what is wrong, see `arrange`."""
    path = Path(place)
    if path.is_dir():
        return FolderScan(place, key)
    if not path.exists():
        raise UserError(f"{place} does not exist, expected {EXPECTED}", key=key)
    if not path.is_file() or path.suffix.lower() != ".tar":
        raise UserError(f"{place} is a file but no .tar, expected {EXPECTED}", key=key)
    return TarScan(place, key)


def images_below(root: Path, key: str) -> list[str]:
    """Returns all images of a folder and of those in it, in order of their paths; what they are of does not matter.
    Raises UserError that names ``key`` where there are none, and what is neither image nor service file."""
    listing = _list_folder(root, key, of_classes=False)
    faults = listing.faults | {name: NO_IMAGE for name in listing.files if not is_image_name(name)}
    if faults:
        name = min(faults)
        raise UserError(f"{key} {root}: {name} ({faults[name]}) is not used, one of {len(faults)}; expected images")
    if not listing.files:
        raise UserError(f"{key} {root}: no images in it")
    return sorted(listing.files, key=Path)


def _list_folder(root: Path, key: str, *, of_classes: bool = True) -> Listing:
    """Lists a folder and those in it: those of classes, in which there are no others, or, otherwise, to any depth."""
    listing, links, waiting = Listing(), {}, [(root, "")]
    seen = {os.path.realpath(root): "the folder itself"}
    while waiting:
        folder, within = waiting.pop(0)
        with system_errors(f"key '{key}': folder {folder} cannot be read"), os.scandir(folder) as entries:
            # Links last, so that of several names of a file the link is the odd one.
            found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        for entry in found:
            name = within + entry.name
            if not entry.is_dir():
                _add_file(listing, links, entry, name)
            elif is_service(entry.name, folder=True):
                listing.left_out.add(name)
            elif of_classes and within:
                by_link = f", by a link to {os.readlink(entry.path)}" if entry.is_symlink() else ""
                listing.faults[name] = INNER + by_link
            elif (real := os.path.realpath(entry.path)) not in seen:
                seen[real] = name
                listing.folders.append(name)
                waiting.append((Path(entry.path), f"{name}/"))
            elif of_classes:  # elsewhere a folder counts once, by whatever links it is reached
                listing.faults[name] = f"the same folder as {seen[real]}, by a link"
    _name_aliases(listing, links, root)
    return listing


def _add_file(listing: Listing, links: dict[str, str], entry: os.DirEntry, name: str) -> None:
    if is_service(entry.name, folder=False):
        listing.left_out.add(name)
    elif entry.is_symlink() and not os.path.exists(entry.path):
        listing.faults[name] = "a link that leads nowhere"
    elif not entry.is_file():
        listing.faults[name] = "neither file nor folder"
    elif is_image_name(entry.name) and entry.stat().st_size == 0:
        listing.faults[name] = "an empty file"
    else:
        listing.files[name] = None
        if entry.is_symlink():
            links[name] = os.path.realpath(entry.path)


def _name_aliases(listing: Listing, links: dict[str, str], root: Path) -> None:
    """Makes faults of links to a file that has another name here already."""
    real, files = os.path.realpath(root), listing.files if links else ()
    known = {real_path(os.path.join(real, name)): name for name in files if name not in links}
    for name, target in links.items():
        if (first := known.setdefault(target, name)) != name:
            listing.faults[name] = f"the same file as {first}, by a link"
            del listing.files[name]


def _list_tar(place: str, key: str = "") -> Listing:
    """Lists a tar, and of each file the offset and size of its bytes. Raises UserError that names ``key``."""
    listing = Listing()
    try:
        with open(place, "rb") as stream:
            check_plain(stream)
            for name, member, start in members(stream, 0, ""):
                _add_member(listing, name, member, start)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{place} cannot be read as a tar: {error}", key=key) from error
    return listing


def check_plain(stream: BinaryIO) -> None:
    """Raises ValueError for a tar that is compressed."""
    if stream.read(8).startswith(COMPRESSED):
        raise ValueError("it is compressed, expected a plain one, in which images can be looked up")
    stream.seek(0)


def members(stream: BinaryIO, start: int, prefix: str) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """Yields (name, member, offset of the tar it is in); of tars inside their members in place of them. Raises
    ReadError where the tar does not end as tars end, with zeros: what was lost would not be missed."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        last = "its beginning"
        for member in tar:
            last = name = "/".join(part for part in (prefix + member.name).split("/") if part not in ("", "."))
            if member.isfile() and not prefix and name.lower().endswith(".tar") and not member.issparse():
                with tar.extractfile(member) as inner:
                    yield from members(inner, member.offset_data, name[:-4] + "/")
            elif name:
                yield name, member, start
        stream.seek(tar.offset)
        if (block := stream.read(BLOCK)) != bytes(BLOCK):
            more = "is damaged" if block else "is cut short"
            raise tarfile.ReadError(f"it {more} after {last}")
        while block := stream.read(1 << 20):
            if any(block):
                raise tarfile.ReadError(f"there is more behind its end, after {last}: several tars in one file")


def _add_member(listing: Listing, name: str, member: tarfile.TarInfo, start: int) -> None:
    parts = name.split("/")
    for depth, part in enumerate(parts, start=1):
        if is_service(part, folder=depth < len(parts) or member.isdir()):
            listing.left_out.add("/".join(parts[:depth]))
            return
    if ".." in parts:
        listing.faults[name] = "leads out of the tar"
    elif member.isdir():
        listing.folders.append(name)
    elif not member.isfile():
        listing.faults[name] = "a link" if member.issym() or member.islnk() else "neither file nor folder"
    elif name in listing.files:
        listing.faults[name] = "is there twice"
    elif member.issparse() or (is_image_name(name) and member.size == 0):
        listing.faults[name] = "a file with holes" if member.issparse() else "an empty file"
    else:
        listing.files[name] = (start + member.offset_data, member.size)


def _below_the_top(listing: Listing) -> Listing:
    """Returns the same without the folders that everything lies in, above those of the classes."""
    names, cut = [*listing.files, *listing.faults, *listing.folders], 0
    while (
        any(name.count("/", cut) >= 2 for name in listing.files)
        and len({name[cut:].partition("/")[0] for name in names if len(name) > cut}) == 1
    ):
        cut = next(iter(listing.files)).index("/", cut) + 1
    folders = {name[cut:] for name in listing.folders if len(name) > cut}
    inner = {name: INNER for name in folders if "/" in name}
    return Listing(
        files={name[cut:]: place for name, place in listing.files.items()},
        folders=sorted(folders - inner.keys()),
        faults={name[cut:]: why for name, why in listing.faults.items()} | inner,
        left_out=listing.left_out,
    )
