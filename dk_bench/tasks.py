"""Which tasks there are, and the task of a configuration or a checkpoint: nothing else tells them apart.

A task is a line of `KINDS`. Its folder is imported when it is asked for: one may need packages that are not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dk_bench.errors import UserError
from dk_bench.training.task import Task, task_of

if TYPE_CHECKING:
    from dk_bench.runs.record import RunRecord


@dataclass(frozen=True)
class Kind:
    """What is known of a task without its packages."""

    name: str  # in records and checkpoints
    place: str  # module and class of its `Task`
    files: str  # pattern of its configuration files; the first that fits counts
    metric: str  # what its runs are compared by; higher is better
    words: str  # the same on the axis of a figure

    @property
    def task(self) -> type[Task]:
        """Imports the task."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("detection", "dk_bench.detection.task:Detection", "*.py", "val/mAP", "mAP, %"),
        Kind("classification", "dk_bench.classification.task:Classification", "*", "val/top1", "top-1, %"),
    )
}
DEFAULT = "classification"  # of configurations in `dk_bench.config`'s own form


def load(path: str | Path | None, overrides: Iterable[str] = ()) -> Task:
    """Returns the task of a configuration file (None: classification's defaults) with ``key=value`` overrides.

    Raises UserError for a file or override that does not fit.
    """
    kind = next(kind for kind in KINDS.values() if fnmatch(str(path or ""), kind.files))
    return kind.task.load(path, overrides)


def from_checkpoint(
    checkpoint: dict[str, Any], overrides: Iterable[str] = (), source: str | Path = "checkpoint"
) -> Task:
    """Returns the task of what `read_checkpoint` read, with overrides. Raises UserError that names ``source``."""
    if (name := task_of(checkpoint)) not in KINDS:
        raise UserError(f"{source}: a checkpoint of {name}, expected one of {', '.join(KINDS)}")
    return KINDS[name].task.from_values(checkpoint["hyper_parameters"]["config"], overrides, str(source))


def of(config: Any) -> Task:
    """Returns the task of a configuration as users hold it: a `dk_bench.config.Config`, or another task's own."""
    if isinstance(config, Task):
        return config
    place = f"{type(config).__module__.rpartition('.')[0]}.task:"
    kind = next((kind for kind in KINDS.values() if kind.place.startswith(place)), KINDS[DEFAULT])
    return kind.task(config)


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
