"""Logs in a run's folder, without an account: TensorBoard's event files, and a table of comma-separated values."""

import csv
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

from dk_bench.errors import UserError
from dk_bench.runs.identity import flatten
from dk_bench.runs.record import RunRecord, final_figures
from dk_bench.training.task import Task

FINAL = "final/"  # before the names of a run's last figures: under those of the epochs they would be one point more


def check_tensorboard() -> None:
    """Raises UserError where the package that writes TensorBoard's files is not there."""
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise UserError(
            "which needs the package tensorboard: pip install 'dk_bench[loggers]'", key="logger", value="tensorboard"
        )


class TensorBoardTracking:
    """TensorBoard's files in ``RUN/tensorboard``: ``tensorboard --logdir OUTPUT`` shows all runs, each by its folder.

    A run that goes on at ``step`` adds a file there, and TensorBoard leaves out what an earlier one has from that step
    on. The page of hyperparameters shows a run once it has finished, with its figures.
    """

    name = "TensorBoard's log"

    def __init__(self, task: Task, step: int) -> None:
        from pytorch_lightning.loggers import TensorBoardLogger

        self._step, self._values = step, dict(flatten(task.values))
        purged = {"purge_step": step} if step else {}
        self.logger = TensorBoardLogger(task.folder, "tensorboard", "", default_hp_metric=False, **purged)

    def start(self) -> None:
        """Opens a new file."""
        _ = self.logger.experiment

    def begin(self, record: RunRecord) -> None:
        """Logs the configuration by its dotted keys."""
        self.logger.log_hyperparams(self._values)

    def end(self, record: RunRecord) -> None:
        """Logs a finished record's figures, and closes the file."""
        if record.status == "finished":
            self.logger.log_hyperparams(self._values, _named_final(record), _last_step(record, self._step))
        self.logger.finalize("success" if record.status == "finished" else "failed")


class CsvTracking:
    """One table, ``RUN/csv/metrics.csv``, a row for each step that logged something, and ``hparams.yaml`` beside it.

    A run that goes on at ``step`` keeps the rows before it. The last row of a finished run has its figures.
    """

    name = "the table of metrics"

    def __init__(self, task: Task, step: int) -> None:
        from pytorch_lightning.loggers import CSVLogger

        self._step, self._values = step, dict(flatten(task.values))
        self.logger = CSVLogger(task.folder, "csv", "")

    def start(self) -> None:
        """Begins the table, with the rows that it had: Lightning's logger deletes the file that it finds."""
        table = Path(self.logger.log_dir, "metrics.csv")
        before = table.with_name("metrics.before.csv")  # there until they are written again, also if that is cut off
        if table.exists() and not before.exists():
            table.replace(before)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            _ = self.logger.experiment
        if before.exists():
            for step, row in _rows(before):
                if step < self._step:
                    self.logger.log_metrics(row, step)
            self.logger.save()
            before.unlink()

    def begin(self, record: RunRecord) -> None:
        """Logs the configuration by its dotted keys."""
        self.logger.log_hyperparams(self._values)
        self.logger.save()

    def end(self, record: RunRecord) -> None:
        """Adds a finished record's figures."""
        if record.status == "finished":
            self.logger.log_metrics(_named_final(record), _last_step(record, self._step))
        self.logger.finalize("success" if record.status == "finished" else "failed")


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields step and figures, as they stand there, of every row but one that a killed process left half-written."""
    with open(table, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(line for line in stream if line.endswith("\n")):
            yield int(row.pop("step")), {name: text for name, text in row.items() if text}


def _named_final(record: RunRecord) -> dict[str, float]:
    return {f"{FINAL}{name}": value for name, value in final_figures(record).items()}


def _last_step(record: RunRecord, begun: int) -> int:
    return begun + record.attempts[-1].get("steps", 0)
