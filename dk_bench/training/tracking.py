"""Which logger a run has, and what it is told besides the metrics: W&B's, TensorBoard's files or a table."""

import sys
from typing import Any, Protocol

from dk_bench.runs.record import RunRecord
from dk_bench.training.file_tracking import CsvTracking, TensorBoardTracking, check_tensorboard
from dk_bench.training.task import Task
from dk_bench.training.wandb_tracking import WandbTracking, in_wandb_sweep


class Tracking(Protocol):
    """A run's logger for Lightning, and what the loop tells it. All but making it is for the first process alone."""

    name: str  # in words
    logger: Any  # Lightning's

    def start(self) -> None:
        """Opens what the logger writes to, or raises what keeps it from that."""

    def begin(self, record: RunRecord) -> None:
        """Logs the configuration by its dotted keys, and what there is of the record."""

    def end(self, record: RunRecord) -> None:
        """Logs the figures of a record that has finished, and closes what was opened."""


def check_logger(task: Task) -> None:
    """Raises UserError where the package of the logger that a configuration names is not there."""
    if task.run.logger == "tensorboard" and not in_wandb_sweep():
        check_tensorboard()


def open_tracking(task: Task, run_id: str, step: int) -> Tracking | None:
    """Returns the logger of a run that begins or goes on at ``step``; None where the configuration wants none and no
    sweep of W&B's needs one."""
    kind = task.run.logger
    if in_wandb_sweep():
        if kind != "wandb":
            print(f"logger={kind} does not count here: W&B's agent waits for the metric at W&B", file=sys.stderr)
        return WandbTracking(task, run_id)
    if kind == "wandb":
        return None if task.run.wandb.mode == "disabled" else WandbTracking(task, run_id)
    if kind == "tensorboard":
        return TensorBoardTracking(task, step)
    return CsvTracking(task, step) if kind == "csv" else None
