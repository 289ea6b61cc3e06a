"""The images that somebody names: files, folders of them at any depth, and tars."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from dk_bench.data.layout import is_service
from dk_bench.data.pixels import is_image_name, open_image
from dk_bench.data.scan import Files, PathFiles, TarImages
from dk_bench.errors import UserError, system_errors


@dataclass(frozen=True)
class NamedImage:
    """An image by its ``name``, the path that leads to it (of a tar's: the tar's, and the name in it), and its place
    ``below`` what somebody named."""

    name: str
    below: PurePath
    files: Files
    index: int

    def open(self) -> Image.Image:
        """Returns it as RGB, upright. Raises UserError where it cannot be read."""
        return open_image(io.BytesIO(self.files.content(self.index)), name=self.files.called(self.index))


def find_images(paths: Sequence[str | Path]) -> list[NamedImage]:
    """Returns what ``paths`` name, each once: an image; a folder, in order of the paths in it, files that have no
    image's name passed over; or a tar likewise. Links are followed.

    Raises UserError for a path that is not there, and a folder or tar without images.
    """
    found = {image.name: image for path in paths for image in _below(Path(path), several=len(paths) > 1)}
    return list(found.values())


def _below(path: Path, *, several: bool) -> Iterator[NamedImage]:
    above = PurePath(path.absolute().name if several else "")  # keeps folders apart that hold the same names
    if path.is_dir():
        names = sorted(_names_in(path), key=PurePath)
        files, inside = PathFiles(names, str(path)), names
    elif not os.path.lexists(path):
        raise UserError(f"{path}: does not exist, expected an image, a folder or a tar of images")
    elif path.suffix.lower() == ".tar":
        files = TarImages(str(path))
        inside = files.names
    else:
        yield NamedImage(str(path), PurePath(path.name), PathFiles([str(path)]), 0)
        return
    if not inside:
        raise UserError(f"{path}: no images in it")
    for index, name in enumerate(inside):
        yield NamedImage(os.path.join(path, name), above / name, files, index)


def _names_in(root: Path) -> Iterator[str]:
    """Yields the paths in a folder of all files with an image's name, also of links that lead nowhere."""
    seen = {os.path.realpath(root)}

    def known(folder: str) -> bool:
        real = os.path.realpath(folder)
        return real in seen or bool(seen.add(real))

    def refuse(error: OSError) -> None:
        raise error

    with system_errors(f"folder {root} cannot be read"):
        for folder, inner, names in os.walk(root, onerror=refuse, followlinks=True):
            inner[:] = [
                name for name in sorted(inner) if not is_service(name, True) and not known(os.path.join(folder, name))
            ]
            for name in names:
                path = os.path.join(folder, name)
                plain = os.path.isfile(path) or not os.path.exists(path)  # no pipe, from which nothing may ever come
                if is_image_name(name) and not is_service(name, folder=False) and plain:
                    yield os.path.relpath(path, root)
