"""The tasks, and the task of a configuration or a checkpoint: no other module tells tasks apart.

A task is a line of `KINDS`. Its folder is imported when it is asked for: one may need packages that are not installed.
"""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.config import Config
from dk_bench.errors import UserError, some
from dk_bench.reading.shipped import find_shipped
from dk_bench.runs.record import EVALUATION, RunRecord
from dk_bench.training.task import Task, task_of


@dataclass(frozen=True)
class Kind:
    """Holds what is known of a task without its packages."""

    name: str  # in records and checkpoints
    place: str  # module and class of its `Task`
    metric: str  # the figure that its runs are compared by; a higher one is better
    words: str  # the same on the axis of a plot
    # Pattern that the names of its configuration files match, wherever they lie and are named from; with folders, it is
    # matched from the right. Empty for all others in the form of `dk_bench.config`.
    files: str = ""
    # Pattern of the name of the file by which an exported model is found, in a folder or by itself; empty for none.
    exports: str = ""
    weights: str = ""  # the name of weights beside that file which stand for it; empty for none
    format: str = ""  # the one of `dk_bench.trained.export` that such models are exported in by default
    hub_task: str = ""  # the task and the metric, as the Hugging Face Hub calls them
    hub_metric: str = ""

    @property
    def task(self) -> type[Task]:
        """Imports the task."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


DEFAULT = Kind(
    "classification",
    "dk_bench.classification.task:Classification",
    "val/top1",
    "top-1, %",
    exports="config.json",
    weights="model.safetensors",
    format="timm",
    hub_task="image-classification",
    hub_metric="accuracy",
)
KINDS = {
    kind.name: kind
    for kind in (
        DEFAULT,
        Kind(
            "detection",
            "dk_bench.detection.task:Detection",
            "val/mAP",
            "mAP, %",
            files="*.py",  # mmengine's own
            exports="*.pth",
            format="mmdet",
            hub_task="object-detection",
            hub_metric="mean_average_precision",
        ),
        # A new task goes here.
    )
}


def load(path: str | Path | None, overrides: Iterable[str] = ()) -> Task:
    """Returns the task of a configuration file (None: classification's defaults) with ``key=value`` overrides. A file
    that is not there may be one that comes with the package, see `find_shipped`.

    Raises UserError for a file or override that does not fit.
    """
    path = None if path is None else find_shipped(path, "configs")
    place = Path(path or "").absolute()  # one file is of one task, from whatever folder it is named
    kind = next((kind for kind in KINDS.values() if kind.files and place.match(kind.files)), DEFAULT)
    return kind.task(kind.task.read(path, overrides))


def from_checkpoint(
    checkpoint: dict[str, Any], overrides: Iterable[str] = (), source: str | Path = "checkpoint"
) -> Task:
    """Returns the task of what `read_checkpoint` read, with overrides. Raises UserError that names ``source``."""
    if (name := task_of(checkpoint)) not in KINDS:
        raise UserError(f"{source}: a checkpoint of {name}, expected one of {', '.join(KINDS)}")
    task = KINDS[name].task
    return task(task.parse(checkpoint["hyper_parameters"]["config"], overrides, str(source)))


def of_export(path: Path) -> tuple[type[Task], Path] | None:
    """Returns the task of an exported model and the file that tells of it, of a folder, that file or its weights;
    None where there is none. Raises UserError for a folder that holds several."""
    for kind in KINDS.values():
        if not kind.exports:
            continue
        if path.is_file() and path.match(kind.exports):
            return kind.task, path
        found = sorted((path if path.is_dir() else path.parent).glob(kind.exports))
        if path.is_dir() and len(found) > 1:
            raise UserError(f"{path}: holds {some(file.name for file in found)}; expected one, or the file's name")
        if found and (path.is_dir() or path.name == kind.weights):
            return kind.task, found[0]
    return None


def of(config: Any) -> Task:
    """Returns the task of a configuration, any task's own, as users hold it. Raises TypeError for what is none."""
    if isinstance(config, Task):
        return config
    if isinstance(config, Config):
        return DEFAULT.task(config)
    place = f"{type(config).__module__.rpartition('.')[0]}.task:"
    if kind := next((kind for kind in KINDS.values() if kind.place.startswith(place)), None):
        return kind.task(config)
    raise TypeError(f"config: expected a configuration or a Task, got {type(config).__name__}")


def check_known(record: RunRecord, source: str | Path) -> RunRecord:
    """Returns the record. Raises UserError that names ``source`` where it is of no task, as it would stand nowhere."""
    known = (*KINDS, EVALUATION)
    if record.task not in known:
        raise UserError(f"{source}: task is {record.task!r}, expected one of {', '.join(known)}")
    return record


def train(config: Any, **more: Any) -> RunRecord:
    """Trains a configuration, see `dk_bench.training.run.train`."""
    from dk_bench.training import run

    return run.train(of(config), **more)


def evaluate(
    path: str | Path, overrides: Iterable[str] = (), *, split: str = "val", command: Sequence[str] = ()
) -> RunRecord:
    """Evaluates a checkpoint's model on the images of its configuration, changed by ``overrides``, see
    `dk_bench.training.run.evaluate`. Raises UserError also for a file that is no checkpoint of ours."""
    from dk_bench.training import run
    from dk_bench.training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path)
    task = from_checkpoint(checkpoint, overrides, path)
    return run.evaluate(task, checkpoint, path, split=split, command=command)


def run_folder(config: Any) -> Path:
    """Tells where a configuration's run keeps its record and checkpoint."""
    return of(config).folder
