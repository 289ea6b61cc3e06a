"""What watches a run of detection: as in classification, with its own metrics."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl

from dk_bench.detection.metrics import NAMES
from dk_bench.training.callbacks import EpochLines, RunKeeper, Throughput

FIGURES = tuple(f"val/{name}" for name in NAMES)


class DetectionThroughput(Throughput):
    """Images per second; batches are mmdet's."""

    @staticmethod
    def images_in(batch: dict[str, Any]) -> int:
        return len(batch["inputs"])


class DetectionKeeper(RunKeeper):
    """Writes record and checkpoint. A figure is null where there was nothing to find, or no validation."""

    def epoch_metrics(self, trainer: pl.Trainer) -> dict[str, float | None]:
        return {"train/loss": float(trainer.callback_metrics["train/loss"])} | self.figures(trainer)

    def learning_rate(self, trainer: pl.Trainer) -> float:
        """Returns the largest of all groups, for the next step: mmengine makes a group of every parameter."""
        return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)

    @staticmethod
    def figures(trainer: pl.Trainer) -> dict[str, float | None]:
        """Takes from the trainer what the last validation logged: the next epoch may go without one."""
        values = {name: float(trainer.callback_metrics.pop(name, math.nan)) for name in FIGURES}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


class DetectionLines(EpochLines):
    """One line an epoch."""

    @staticmethod
    def text(metrics: dict[str, float]) -> str:
        return f"loss {metrics['train/loss']:.3f}  {figures_text(metrics)}"


def figures_text(metrics: dict[str, float | None]) -> str:
    """Returns the figures, each with its name; n/a for one that there is not."""
    parts = []
    for name in FIGURES:
        value = metrics.get(name)
        shown = "n/a" if value is None or math.isnan(value) else f"{value:.1f}"
        parts.append(f"{name.removeprefix('val/').replace('mAP_', 'AP_')} {shown}")
    return "  ".join(parts)
