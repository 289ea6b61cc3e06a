"""Callbacks that watch a run: they write record and checkpoint, measure images per second, print a line an epoch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from dk_bench.runs.correct import pack_correct
from dk_bench.runs.record import RunRecord, write_record

EPOCH_METRICS = ("train/loss", "val/loss", "val/top1", "val/top5")


class Throughput(Callback):
    """Images per second of training and of evaluation, over all devices.

    The clock of every epoch starts when its first batch is done: starting workers, compiling and the first launch are
    not counted, nor is what lies between epochs. None where there was no second batch. A resumed run goes on counting.
    Of the seconds of training those are told apart that this process waited for our loader's batches.
    """

    def __init__(self) -> None:
        self._seconds = {"train": 0.0, "eval": 0.0}
        self._images = {"train": 0, "eval": 0}
        self._since: float | None = None
        self._waited = 0.0  # of the seconds of training
        self._waited_before = 0.0  # the loader's own count, when the clock was read last

    def rates(self) -> dict[str, float | None]:
        """train_images_per_second and eval_images_per_second so far, and loading_share, the part of the seconds of
        training that passed in waiting for images; None where another loader than ours gave them."""
        rates = {
            f"{kind}_images_per_second": round(self._images[kind] / seconds, 2) if seconds > 0 else None
            for kind, seconds in self._seconds.items()
        }
        seconds = self._seconds["train"]
        return rates | {"loading_share": round(self._waited / seconds, 4) if self._waited and seconds else None}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": dict(self._seconds), "images": dict(self._images), "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds, self._images = dict(state_dict["seconds"]), dict(state_dict["images"])
        self._waited = state_dict.get("waited", 0.0)  # older checkpoints do not have it

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._since = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._since = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        waited = getattr(trainer.train_dataloader, "waited", 0.0)
        if self._since is not None:
            self._waited += waited - self._waited_before
        self._waited_before = waited
        self._count("train", trainer, self.images_in(batch))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._count("eval", trainer, self.images_in(batch))

    @staticmethod
    def images_in(batch: Any) -> int:
        """Returns the number of images of a batch (images, labels)."""
        return len(batch[1])

    def _count(self, kind: str, trainer: pl.Trainer, images: int) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._seconds[kind] += now - self._since
            self._images[kind] += images * trainer.world_size
        self._since = now


class RunKeeper(Checkpoint):
    """Writes the run's record and its checkpoint, ``last.ckpt``, at the end of every epoch.

    With ``every_n_steps`` also checkpoints inside epochs. The epochs' metrics are part of the checkpoint, so that the
    record of a resumed run is that of an uninterrupted one, but for its attempts. Only the first process writes.
    """

    def __init__(self, record: RunRecord, folder: Path, throughput: Throughput, every_n_steps: int | None) -> None:
        self.record, self.throughput, self.every_n_steps = record, throughput, every_n_steps
        self.record_path, self.checkpoint_path = folder / "record.json", folder / "last.ckpt"
        self._epoch_began = time.perf_counter()

    @classmethod
    def state_in(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Tells what `state_dict` gave for a checkpoint; of an older one less, or nothing."""
        return checkpoint.get("callbacks", {}).get(cls.__qualname__, {})

    def state_dict(self) -> dict[str, Any]:
        record = self.record
        checksum = record.data.get("checksum")
        return {
            "epochs": record.metrics["epochs"],
            "attempts": record.attempts,
            "correct": record.correct,
            "checksum": checksum,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record.metrics["epochs"] = state_dict["epochs"]
        self.record.correct = state_dict.get("correct", {})  # older checkpoints do not have it

    def epoch_metrics(self, trainer: pl.Trainer) -> dict[str, float | None]:
        """Tells what of the epoch that ends goes into the record, besides its number, learning rate and seconds."""
        return {name: float(trainer.callback_metrics[name]) for name in EPOCH_METRICS}

    def learning_rate(self, trainer: pl.Trainer) -> float:
        """For the next step; the first group is not offsets."""
        return float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_start(self, *_: Any) -> None:
        self._epoch_began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        attempt = self.record.attempts[-1]
        attempt["steps"] = attempt.get("steps", 0) + 1
        # The last batch's checkpoint is the epoch's, after validation.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.checkpoint_path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.perf_counter()
        metrics = self.epoch_metrics(trainer)
        lr = self.learning_rate(trainer)
        seconds = round(now - self._epoch_began, 3)
        self.record.metrics["epochs"].append({"epoch": trainer.current_epoch, **metrics, "lr": lr, "seconds": seconds})
        self._epoch_began = now
        note_correct(self.record, pl_module)
        self.record.throughput = self.throughput.rates()
        if trainer.is_global_zero:
            write_record(self.record, self.record_path)
        trainer.save_checkpoint(self.checkpoint_path)


def note_correct(record: RunRecord, module: pl.LightningModule) -> None:
    """Puts into a record which images its module told rightly in its last evaluations, of every set that it knows."""
    checksums = record.data.get("checksum", {})
    for name, hits in getattr(module, "hits", {}).items():
        record.correct[name] = pack_correct(hits, checksums.get(name))


class EpochLines(Checkpoint):
    """One line an epoch, where no terminal shows a progress bar.

    A Checkpoint to Lightning, which calls those after the module has logged its epoch.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if len(pl_module.hparams.classes) <= 5:
            metrics.pop("val/top5", None)  # every one is right
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {self.text(metrics)}"
        print(line, file=sys.stderr, flush=True)

    @staticmethod
    def text(metrics: dict[str, float]) -> str:
        """Returns the epoch's metrics as the line shows them."""
        top5 = f"  top-5 {metrics['val/top5']:.1f} %" if "val/top5" in metrics else ""
        losses = f"loss {metrics['train/loss']:.3f}  val loss {metrics['val/loss']:.3f}"
        return f"{losses}  top-1 {metrics['val/top1']:.1f} %{top5}"
