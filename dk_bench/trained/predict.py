"""Asks a trained model about images, in order and in batches, and writes what it says: JSON lines, or CSV."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from torch.utils.data import DataLoader, Dataset

from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.trained.images import NamedImage
from dk_bench.trained.load import Trained
from dk_bench.training.predicting import Prediction, Predictor


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    Attributes:
        image: which it is; ``image.name`` is its path.
        size: (width, height) in pixels, as it was read; None of an image that could not be.
        predictions: the surest first; of a classifier ``class``, ``index`` and ``probability``, of a detector
            ``class``, ``index``, ``score`` and ``box``, the left, upper, right and lower edge in pixels.
        error: why the image could not be read, or None.
    """

    image: NamedImage
    size: tuple[int, int] | None
    predictions: list[Prediction]
    error: str | None = None


def predictor_of(
    trained: Trained, *, top: int | None = None, threshold: float | None = None, device: str = "cpu"
) -> Predictor:
    """Returns what predicts by a model, which is moved to the device, see `dk_bench.training.predicting.Predictor`."""
    kind = tasks.KINDS[trained.task].task.predictor()
    return kind(trained.model, trained.classes, top=top, threshold=threshold, device=device)


def predict(
    trained: Trained,
    images: Sequence[NamedImage],
    predictor: Predictor,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
) -> Iterator[Answer]:
    """Yields the answer to each image, in order.

    Args:
        trained: the model.
        images: of `find_images`.
        predictor: of `predictor_of`, for this model.
        batch_size: images that go through the model at once; by default 32 of a classifier, and one of a detector, as
            images are padded to the size of the largest, which changes what is found a little.
        workers: processes that read images and make the model's input of them; 0: this one does.
        skip_unreadable: answer with an error to an image that cannot be read.

    Raises:
        UserError: an image cannot be read (but for ``skip_unreadable``), or the model gives numbers for it that are not
            finite.
    """
    size, done = batch_size or predictor.batch_size, 0
    inputs = _Inputs(images, trained.transform)
    for batch in DataLoader(inputs, batch_size=size, num_workers=workers, collate_fn=list):
        if not skip_unreadable and (errors := [each.error for each in batch if each.error]):
            raise UserError(errors[0])
        yield from _answers(images[done : done + len(batch)], batch, predictor)
        done += len(batch)


@dataclass
class _Input:
    """What became of an image: the model's input and its size, or an error."""

    value: Any = None
    size: tuple[int, int] | None = None
    error: str | None = None


class _Inputs(Dataset):
    def __init__(self, images: Sequence[NamedImage], transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Input:
        try:
            image = self.images[index].open()
        except UserError as error:
            return _Input(error=str(error))
        try:
            return _Input(self.transform(image), image.size)
        except ValueError as error:
            sides = " x ".join(map(str, image.size))
            return _Input(error=f"image {self.images[index].name} of {sides} pixels makes no input: {error}")


def _answers(images: Sequence[NamedImage], batch: Sequence[_Input], predictor: Predictor) -> Iterator[Answer]:
    readable = [each.value for each in batch if each.error is None]
    try:
        predictions = iter(predictor.predict(readable) if readable else [])
    except ArithmeticError as error:
        names = f"{images[0].name}{f' and the {len(batch) - 1} after it' if len(batch) > 1 else ''}"
        raise UserError(f"{names}: {error}") from error
    for image, made in zip(images, batch, strict=True):
        yield Answer(image, made.size, [] if made.error else next(predictions), made.error)


class JsonLines:
    """Writes an answer a line: ``file``, ``width``, ``height`` and ``predictions``, or ``file`` and ``error``."""

    def __init__(self, stream: TextIO, predictor: Predictor, *, with_errors: bool = False) -> None:
        self._stream = stream

    def write(self, answer: Answer) -> None:
        line: dict[str, Any] = {"file": _text(answer.image.name)}
        if answer.error:
            line["error"] = _text(answer.error)
        else:
            line |= dict(zip(("width", "height"), answer.size, strict=True)) | {"predictions": answer.predictions}
        self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


class CsvRows:
    """Writes a prediction a row: ``file`` and the task's columns; an image without predictions has a row of its own,
    empty beside the file, and, ``with_errors``, one that could not be read the reason in the last column."""

    def __init__(self, stream: TextIO, predictor: Predictor, *, with_errors: bool = False) -> None:
        self._row = predictor.row
        columns = ["file", *predictor.columns, *(["error"] if with_errors else [])]
        self._writer = csv.DictWriter(stream, columns, lineterminator="\n")
        self._writer.writeheader()

    def write(self, answer: Answer) -> None:
        named = {"file": _text(answer.image.name)}
        error = {"error": _text(answer.error)} if answer.error else {}
        for each in map(self._row, answer.predictions) if answer.predictions else [error]:
            self._writer.writerow(named | each)


FORMATS = {"jsonl": JsonLines, "csv": CsvRows}


def _text(name: str) -> str:
    """Returns a path as texts can hold it: those of some file systems are no UTF-8."""
    return name.encode(errors="backslashreplace").decode()
