"""Callbacks that watch a run: they write record and checkpoint, measure images per second."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from dk_bench.files import remove_leftovers
from dk_bench.processes import interrupts
from dk_bench.runs.correct import pack_correct
from dk_bench.runs.early_stop import forget_reason
from dk_bench.runs.record import RunRecord, write_record
from dk_bench.training.checkpoint import LAST, states_of_callbacks
from dk_bench.training.own_trainer import ConfiguredModule
from dk_bench.training.task import Task

WORTH_SECONDS = (
    60.0  # of training since the last checkpoint: then one is written before a validation, which may be long
)


class Throughput(Callback):
    """Images per second of training and of evaluation, over all devices.

    The clock of every epoch starts when its first batch is done: starting workers, compiling and the first launch are
    not counted, nor is what lies between epochs. None where there was no second batch. A resumed run goes on counting.
    Of the seconds of training those are told apart that this process waited for our loader's batches.
    """

    def __init__(self, images_in: Callable[[Any], int]) -> None:
        self.images_in = images_in  # the number of images of a batch
        self._seconds = {"train": 0.0, "eval": 0.0}
        self._images = {"train": 0, "eval": 0}
        self._since: float | None = None
        self._waited = 0.0  # of the seconds of training
        self._waited_before = 0.0  # the loader's own count, when the clock was read last

    def rates(self) -> dict[str, float | None]:
        """Returns train_images_per_second and eval_images_per_second so far, and loading_share, the part of the seconds
        of training that passed in waiting for images; None where another loader than ours gave them."""
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

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since = None

    on_validation_epoch_start = on_train_epoch_start

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        waited = getattr(trainer.train_dataloader, "waited", 0.0)
        if self._since is not None:
            self._waited += waited - self._waited_before
        self._waited_before = waited
        self._count("train", trainer, self.images_in(batch))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._count("eval", trainer, self.images_in(batch))

    def _count(self, kind: str, trainer: pl.Trainer, images: int) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._seconds[kind] += now - self._since
            self._images[kind] += images * trainer.world_size
        self._since = now


class RunKeeper(Checkpoint):
    """Writes the run's record and its checkpoint, ``last.ckpt``, at the end of every epoch.

    As the configuration says it, also checkpoints inside epochs; one before a validation, where training took so long
    that it is worth it; and one where a signal asks to stop: at the end of the step, or, in a validation without one
    before it, at the end of the epoch. Then it raises `interrupts.Interrupted` where the next batch, validation or
    epoch begins, so that loggers have had what this one logs.

    The epochs' metrics are part of the checkpoint: the record of a resumed run is that of an uninterrupted one, but for
    its attempts. Only the first process writes, also a line an epoch where no terminal shows a bar. A figure is null
    without validation, and where it is no number.
    """

    # What Lightning's loggers ask its own ModelCheckpoint: one file is kept, and it is the last, whatever its score.
    save_top_k, current_score, best_model_path = 1, None, ""

    def __init__(self, task: Task, record: RunRecord, throughput: Throughput) -> None:
        self.task, self.record, self.throughput = task, record, throughput
        self.every_n_steps = task.run.trainer.checkpoint_every_n_steps
        self.record_path, self.checkpoint_path = task.folder / "record.json", task.folder / LAST
        self._epoch_began, self._is_validated = time.perf_counter(), False
        self.stop: int | None = None  # the signal that is to be heeded, on which all processes agree
        self._saved_at, self._is_saved = time.perf_counter(), True  # whether the checkpoint holds what was trained
        self._validates_next = False  # whether the one that is being written is of the moment before a validation

    @classmethod
    def state_in(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Tells what `state_dict` gave for a checkpoint; of an older one less, or nothing."""
        return states_of_callbacks(checkpoint).get(cls.__qualname__, {})

    def state_dict(self) -> dict[str, Any]:
        record, checksum = self.record, self.record.data.get("checksum")
        kept = {"attempts": record.attempts, "correct": record.correct, "checksum": checksum}
        return {"epochs": record.metrics["epochs"], **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record.metrics["epochs"] = state_dict["epochs"]
        self.record.correct = state_dict.get("correct", {})  # older checkpoints do not have it

    @property
    def last_model_path(self) -> str:
        """Tells where the checkpoint is, as Lightning's loggers ask."""
        return str(self.checkpoint_path)

    def begin(self) -> None:
        """Writes the record of a run that begins, in place of what a killed process has left half-written."""
        forget_reason(self.record_path.parent)  # ahead of the record, from which on this attempt may be given one
        write_record(self.record, self.record_path)
        remove_leftovers(self.checkpoint_path)
        remove_leftovers(self.record_path)

    def on_train_start(self, *_: Any) -> None:
        self._epoch_began = self._saved_at = time.perf_counter()
        self.stop, self._is_saved = None, True
        interrupts.note()

    def on_train_epoch_start(self, *_: Any) -> None:
        if self.stop:
            interrupts.heed(self.stop)

    on_train_batch_start = on_train_epoch_start

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: ConfiguredModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        attempt = self.record.attempts[-1]
        attempt["steps"] = attempt.get("steps", 0) + 1
        self._is_saved = False
        # The last batch's checkpoint is the epoch's, after validation; inside a step of several batches, none would
        # hold their gradients.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.stop = pl_module.asked_to_stop()
        if self.stop or self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: ConfiguredModule) -> None:
        self.stop = pl_module.agree_to_stop()
        is_worth_it = trainer.strategy.broadcast(time.perf_counter() - self._saved_at >= WORTH_SECONDS)
        if not self._is_saved and (self.stop or is_worth_it):
            self._validates_next = True
            trainer.save_checkpoint(self.checkpoint_path)
            self._validates_next, self._is_saved = False, True
        if self.stop:
            interrupts.heed(self.stop)
        interrupts.note(not self._is_saved)  # with nothing to lose, it can stop anywhere

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Has Lightning begin with the validation where it goes on from a checkpoint that was written before one: to
        it, that is a validation whose first batch was begun."""
        if self._validates_next:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts["processed"] = counts["completed"]
                counts["ready"] = counts["started"] = counts["completed"] + 1
            progress["is_last_batch"] = False

    def on_validation_end(self, *_: Any) -> None:
        self._is_validated = True
        interrupts.note()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: ConfiguredModule) -> None:
        now = time.perf_counter()
        metrics = self.task.metrics
        found = figures(trainer, metrics) if self._is_validated else dict.fromkeys(metrics)
        loss, lr = float(trainer.callback_metrics["train/loss"]), pl_module.learning_rate()
        seconds = round(now - self._epoch_began, 3)
        epoch = {**self.task.place(trainer.current_epoch), "train/loss": loss, **found, "lr": lr, "seconds": seconds}
        self.record.metrics["epochs"].append(epoch)
        self._epoch_began, self._is_validated = now, False
        note_correct(self.record, pl_module)
        self.record.throughput = self.throughput.rates()
        if trainer.is_global_zero:
            write_record(self.record, self.record_path)
        self._save(trainer)
        self.stop = pl_module.agree_to_stop()
        if trainer.is_global_zero and not sys.stdout.isatty():
            line = self.task.epoch_line(epoch, len(self.record.data["classes"]))
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {line}", file=sys.stderr, flush=True)

    def _save(self, trainer: pl.Trainer) -> None:
        """Writes the checkpoint, and tells the logger of it as Lightning's own callback does: it may want to upload."""
        trainer.save_checkpoint(self.checkpoint_path)
        self._saved_at, self._is_saved = time.perf_counter(), True
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)


def figures(trainer: pl.Trainer, metrics: Iterable[str]) -> dict[str, float | None]:
    """Returns what the last evaluation logged under these names; None for what is no number."""
    values = {name: float(trainer.callback_metrics[name]) for name in metrics}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def note_correct(record: RunRecord, module: ConfiguredModule) -> None:
    """Puts into a record which images its module told rightly in its last evaluations, of every set that it knows."""
    checksums = record.data.get("checksum", {})
    for name, hits in module.hits.items():
        record.correct[name] = pack_correct(hits, checksums.get(name))
