"""Lightning's trainer as a configuration describes it, and how it writes checkpoints."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import Strategy

from dk_bench.config import TrainerConfig
from dk_bench.errors import UserError
from dk_bench.files import open_atomically
from dk_bench.processes.interrupts import deferred
from dk_bench.processes.world import HoldOn, own_world
from dk_bench.training.batch_norm import SharedBatchNorm
from dk_bench.training.callbacks import RunKeeper
from dk_bench.training.sharded import Sharded
from dk_bench.training.task import Task
from dk_bench.training.weights import write_plain


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a crash at any moment leaves the old one whole.

    Lightning's own way makes the file in the system's folder for temporary files and moves it, which across file
    systems is a copy that a crash leaves half done. Lightning calls this on the first process alone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError where the file cannot be written; the old one is still there then. A signal that asks to stop
        has to wait."""
        with deferred(), open_atomically(path) as stream:
            write_plain(checkpoint, stream)


def make_trainer(task: Task, callbacks: list[Callback], logger: Any, steps_per_epoch: int = 1) -> pl.Trainer:
    """Returns the trainer that section ``trainer`` of a configuration describes.

    Raises UserError for a precision, accelerator or number of devices that Lightning does not have here.
    """
    settings = task.run.trainer
    options = task.trainer_options() | ({} if settings.strategy == "auto" else {"strategy": strategy_of(settings)})
    visible = 0 if settings.accelerator == "cpu" else torch.cuda.device_count()
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            **own_world().shape(settings.devices, settings.num_nodes, visible),
            precision=settings.precision,
            deterministic=settings.deterministic,
            max_epochs=task.epochs,
            accumulate_grad_batches=settings.accumulate_grad_batches,
            callbacks=[HoldOn(), *callbacks],
            logger=logger,
            log_every_n_steps=min(50, steps_per_epoch),  # so that short epochs are seen too
            plugins=[own_world(), AtomicCheckpointIO(), *([SharedBatchNorm()] if settings.sync_batchnorm else [])],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours already share the images out
            enable_checkpointing=any(isinstance(c, RunKeeper) for c in callbacks),
            enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
            enable_model_summary=False,
            default_root_dir=task.run.output,
            **options,
        )
    except (ValueError, RuntimeError, ImportError) as error:  # Lightning names what is wrong, or torch_xla is absent
        raise UserError(f"section 'trainer': {error}") from error


def strategy_of(settings: TrainerConfig) -> Strategy | str:
    """Returns the strategy that a configuration names. Of ``fsdp`` without GPUs Lightning says why it is none."""
    on_gpus = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return Sharded() if settings.strategy == "fsdp" and on_gpus else settings.strategy


@contextmanager
def quiet(task: Task) -> Iterator[None]:
    """Silences what Lightning says of every run (devices, workers, checkpoints), and what the task's libraries do."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("pytorch_lightning", "lightning_fabric"))}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(), task.quiet():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 under torch 2.11
            # A run that goes on with a validation has its mean loss from the checkpoint.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric MeanMetric was called before.*")
            # What is logged at an epoch's end is the same on every process already.
            warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
