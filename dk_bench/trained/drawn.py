"""A folder of the images with the predictions drawn on them, which appear together or not at all."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Self

from dk_bench.errors import UserError, system_errors
from dk_bench.trained.images import NamedImage
from dk_bench.trained.predict import Answer
from dk_bench.training.predicting import Predictor

KEPT = {".png": {"compress_level": 1}, ".jpg": {"quality": 92}, ".jpeg": {"quality": 92}}  # others become PNG as well


class Pictures:
    """Draws into a folder, made beside it until all are drawn; pictures of the same names there are replaced.

    A picture has its image's path below what was named, with ``.png`` behind the name of formats that are not kept.
    Raises UserError where two images would be one picture, where a picture would replace one of the images, and for a
    folder that cannot be written.
    """

    def __init__(self, folder: Path, images: Sequence[NamedImage]) -> None:
        self.folder, self._beside = folder, folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        places: dict[PurePath, str] = {}
        files = {os.path.realpath(image.name) for image in images}
        for image in images:
            if os.path.realpath(folder / _place(image)) in files:
                raise UserError(
                    f"--pictures {folder}: {_place(image)} there is one of the images; expected another one"
                )
            if (first := places.setdefault(_place(image), image.name)) != image.name:
                both = f"{first} and {image.name} would be one picture, {_place(image)}"
                raise UserError(f"--pictures {folder}: {both}; expected images that differ in name, or fewer of them")

    def __enter__(self) -> Self:
        return self

    def draw(self, answer: Answer, predictor: Predictor) -> None:
        """Draws an image, read again, with its predictions. Raises UserError where it cannot be written."""
        drawn, path = predictor.draw(answer.image.open(), answer.predictions), self._beside / _place(answer.image)
        drawn.info.pop("icc_profile", None)  # of the file, which may have been CMYK
        with system_errors(f"--pictures {self.folder}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(path, **KEPT[path.suffix.lower()])

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with system_errors(f"--pictures {self.folder}"):
                    self._rename()
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)

    def _rename(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._beside.rglob("*")):
            there = self.folder / path.relative_to(self._beside)
            if path.is_dir():
                there.mkdir(exist_ok=True)
            else:
                path.replace(there)


def _place(image: NamedImage) -> PurePath:
    keeps = image.below.suffix.lower() in KEPT
    return image.below if keeps else image.below.with_name(f"{image.below.name}.png")
