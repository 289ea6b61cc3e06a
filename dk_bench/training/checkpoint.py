"""Reading back what training left. Checkpoints hold plain data alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dk_bench.errors import UserError
from dk_bench.training.task import Task, task_of
from dk_bench.training.weights import is_ours, read_plain, weights_in

LAST = "last.ckpt"  # in a run's folder
# How older checkpoints of detectors call the states of callbacks.
OLDER_STATES = {"DetectionKeeper": "RunKeeper", "DetectionThroughput": "Throughput"}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns a checkpoint that `train` left, its tensors on the CPU; nothing in it can run code.

    Raises UserError for a file that is missing, is no checkpoint, holds more than plain data, or is not ours.
    """
    checkpoint = read_plain(path)
    if not is_ours(checkpoint):
        raise UserError(f"{path}: not a checkpoint of dk_bench, which holds the configuration and the classes' names")
    return checkpoint


def last_checkpoint(task: Task) -> dict[str, Any] | None:
    """Returns the checkpoint to go on from, if any. Raises UserError for one of another task."""
    if not (path := task.folder / LAST).exists():
        return None
    checkpoint = read_checkpoint(path)
    task.check_own(task_of(checkpoint))
    return checkpoint


def states_of_callbacks(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the states of callbacks that a checkpoint holds, by the names that callbacks have now."""
    return {OLDER_STATES.get(name, name): state for name, state in checkpoint.get("callbacks", {}).items()}


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Puts a checkpoint's weights into the model. Raises UserError unless every one fits."""
    try:
        model.load_state_dict(weights_in(checkpoint))
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path}: its weights do not fit {type(model).__name__}: {text[:300]}") from error
