"""Lightning's trainer as a configuration describes it."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dk_bench.errors import UserError
from dk_bench.processes.world import HoldOn, own_world
from dk_bench.runs.record import RunRecord
from dk_bench.training.batch_norm import SharedBatchNorm
from dk_bench.training.callbacks import EpochLines, RunKeeper
from dk_bench.training.checkpoint_io import AtomicCheckpointIO
from dk_bench.training.task import Task


def make_trainer(task: Task, callbacks: list[Callback], logger: Any, steps_per_epoch: int = 1) -> pl.Trainer:
    """Returns the trainer that section ``trainer`` of a configuration describes.

    Raises UserError for a precision, accelerator or number of devices that Lightning does not have here.
    """
    settings = task.run.trainer
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,
            deterministic=settings.deterministic,
            max_epochs=task.epochs,
            callbacks=[HoldOn(), *callbacks],
            logger=logger,
            log_every_n_steps=min(50, steps_per_epoch),  # so that short epochs are seen too
            plugins=[own_world(), AtomicCheckpointIO(), *([SharedBatchNorm()] if settings.sync_batchnorm else [])],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours already share the images out
            enable_checkpointing=any(isinstance(c, RunKeeper) for c in callbacks),
            enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
            enable_model_summary=False,
            inference_mode=False,  # in which operators' errors have no type, see dk_bench.reference.checks.NotFinite
            default_root_dir=task.run.output,
            **task.trainer_options(),
        )
    except (ValueError, RuntimeError, ImportError) as error:  # Lightning names what is wrong, or torch_xla is absent
        raise UserError(f"section 'trainer': {error}") from error


def progress(task: Task, record: RunRecord) -> list[Callback]:
    """Returns a progress bar on a terminal, one line an epoch elsewhere."""
    return [pl.callbacks.RichProgressBar()] if sys.stdout.isatty() else [EpochLines(task, record)]


@contextmanager
def quiet(task: Task) -> Iterator[None]:
    """Silences what Lightning says of every run: devices found, workers it would like, where checkpoints go; and what
    the task's own libraries do."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("pytorch_lightning", "lightning_fabric"))}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(), task.quiet():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 under torch 2.11
            # What is logged at an epoch's end is the same on every process already.
            warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
