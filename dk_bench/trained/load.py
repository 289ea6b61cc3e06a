"""Opens a trained model, whatever holds it: a run's folder, its checkpoint, or an export that other programs read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.runs.record import RunRecord, read_record
from dk_bench.training.checkpoint import LAST, load_weights, read_checkpoint
from dk_bench.training.trainer import quiet

if TYPE_CHECKING:
    from dk_bench.trained.predict import Answer

EXPECTED = f"a run's folder, its {LAST}, or an exported model"


@dataclass(frozen=True)
class Trained:
    """A trained model, with all that it takes to use it.

    Attributes:
        model: timm's model, or mmdet's detector with ``cfg`` and ``dataset_meta`` as its ``init_detector`` gives it; in
            evaluation mode, on the CPU, weights averaged where the run averaged them.
        transform: makes the model's input of an image (RGB, upright, as `dk_bench.data.pixels.open_image` reads it)
            just as the run's evaluation did: for a classifier (3, size, size) float32, for a detector what mmdet's test
            pipeline packs, a dict of ``inputs`` and ``data_samples``.
        classes: names in order of the labels.
        task: the name of the task, ``classification`` or ``detection``.
        record: the run's record; None where none lies beside the checkpoint or the export.
        checkpoint: what the run's checkpoint holds; None of an export.
        path: the file or folder that was opened.
    """

    model: nn.Module = field(repr=False)
    transform: Callable[[Image.Image], Any] = field(repr=False)
    classes: tuple[str, ...]
    task: str
    record: RunRecord | None = field(repr=False)
    checkpoint: Mapping[str, Any] | None = field(repr=False)
    path: Path

    def predict(
        self,
        *paths: str | Path,
        top: int | None = None,
        threshold: float | None = None,
        device: str = "cpu",
        **how: Any,
    ) -> "Iterator[Answer]":
        """Yields what the model says of image files, folders of them and tars, an answer an image: its classes with
        their probabilities, or boxes.

        The model is moved to ``device``. Of an image the ``top`` surest predictions are told (5 classes, all boxes), if
        they are as sure as ``threshold``, 0 to 1 (all classes, boxes from 0.3). ``how`` and errors: see
        `dk_bench.trained.predict.predict`; UserError is raised for a path without images, too.
        """
        from dk_bench.trained.images import find_images
        from dk_bench.trained.predict import predict, predictor_of

        predictor = predictor_of(self, top=top, threshold=threshold, device=device)
        return predict(self, find_images(paths), predictor, **how)


def open_trained(path: str | Path) -> Trained:
    """Returns the trained model that ``path`` holds: see `dk_bench.load`, which is this function."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: does not exist, expected {EXPECTED}")
    if (path / LAST).exists():
        return _checked(_of_a_run(path / LAST, path))
    if found := tasks.of_export(path):
        task, file = found
        model, transform, classes = task.open_export(file)
        record = _record_beside(file)
        return _checked(Trained(model, transform, tuple(classes), task.name, record, None, path))
    if path.is_dir():
        raise UserError(f"{path}: holds no trained model{_why_not(path)}, expected {EXPECTED}")
    return _checked(_of_a_run(path, path))


def _of_a_run(file: Path, path: Path) -> Trained:
    checkpoint = read_checkpoint(file)
    task = tasks.from_checkpoint(checkpoint, source=file)
    held = checkpoint["hyper_parameters"]
    with quiet(task):
        model = task.module(list(held["classes"]), initial_weights=False).model  # the weights are the checkpoint's
        load_weights(model, checkpoint, file)
        model, transform = task.for_use(model.to(memory_format=torch.contiguous_format).eval(), checkpoint)
    record = _record_beside(file)
    if record and record.run_id != held.get("run_id"):  # a copied checkpoint may lie beside another run's record
        record = None
    return Trained(model, transform, tuple(held["classes"]), task.name, record, checkpoint, path)


def _why_not(folder: Path) -> str:
    """Tells of the folder of a run that left no checkpoint what became of it; of another one nothing."""
    record = _record_beside(folder / LAST)
    return f" (its run: {record.error or record.status})" if record else ""


def _record_beside(file: Path) -> RunRecord | None:
    beside = file.with_name("record.json")
    return read_record(beside) if beside.exists() else None


def _checked(trained: Trained) -> Trained:
    """Raises UserError for weights that are not finite: a diverged run leaves some, and what they give looks real."""
    for name, value in trained.model.state_dict().items():
        if not torch.isfinite(value).all():
            reason = f"weights {name} are not finite, expected those of a run that did not diverge"
            raise UserError(f"{trained.path}: {reason}")
    return trained
