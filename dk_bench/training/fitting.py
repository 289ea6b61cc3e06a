"""What training runs share, whatever they train: the trainer, and a record that tells how the run ended."""

from __future__ import annotations

import logging
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dk_bench.config import RunConfig
from dk_bench.errors import BusyError, UserError
from dk_bench.files import remove_leftovers
from dk_bench.processes import interrupts
from dk_bench.processes.launchers import announced_world, this_rank
from dk_bench.processes.world import HoldOn, ProcessLost, own_process, own_world
from dk_bench.runs.attempts import INTERRUPTED
from dk_bench.runs.lock import hold
from dk_bench.runs.record import RunRecord, note_hardware, read_record, utc_now, write_record
from dk_bench.training.batch_norm import SharedBatchNorm
from dk_bench.training.callbacks import RunKeeper, note_correct
from dk_bench.training.checkpoint_io import AtomicCheckpointIO
from dk_bench.training.tracking import close_logger, in_wandb_sweep, log_config, log_record, tell_sweep

SIGNALS_APART_SECONDS = 0.5


class Diverged(Exception):
    """The loss is not finite any more; training on would only cost time."""


@contextmanager
def open_run(folder: Path) -> Iterator[RunRecord | None]:
    """Returns a run's record so far, if any. Until the block is left no other process opens the run: see `hold`, which
    raises BusyError. The further processes of a run belong to its first, which started them; nobody else's do."""
    with own_process() as rank, nullcontext() if rank.number else _held(folder):
        path = folder / "record.json"
        try:
            record = read_record(path) if path.exists() else None
        except UserError as error:
            raise UserError(f"{error}; move it away, and the run goes on from its last checkpoint, if any") from error
        yield record


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder))
        except BusyError as error:
            if not (world := announced_world()):
                raise
            text = f"{error}. {world}: expected one process, which starts those that trainer.devices asks for itself"
            raise BusyError(text) from error
        yield


def name_run(folder: Path, checkpoint: Mapping[str, Any] | None, previous: RunRecord | None) -> str:
    """Returns the run's name for W&B: what it was called before, or a new one. The random part keeps apart runs of one
    cell on several machines that share a project."""
    if checkpoint:
        return checkpoint["hyper_parameters"]["run_id"]
    if previous:
        return previous.run_id
    cell, seed = folder.name.rsplit("-", 2)[1:]  # after the run's own name, which W&B might not take
    return f"{cell}-{seed}-{secrets.token_hex(4)}"


def make_trainer(
    config: RunConfig, max_epochs: int, callbacks: list[Callback], logger: Any, steps_per_epoch: int = 1, **more: Any
) -> pl.Trainer:
    """Returns the trainer that section ``trainer`` of a configuration describes; ``more`` goes to Lightning as it is.

    Raises UserError for a precision, accelerator or number of devices that Lightning does not have here.
    """
    settings = config.trainer
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,
            deterministic=settings.deterministic,
            max_epochs=max_epochs,
            callbacks=[HoldOn(), *callbacks],
            logger=logger,
            log_every_n_steps=min(50, steps_per_epoch),  # so that short epochs are seen too
            plugins=[own_world(), AtomicCheckpointIO(), *([SharedBatchNorm()] if settings.sync_batchnorm else [])],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours already share the images out
            enable_checkpointing=any(isinstance(c, RunKeeper) for c in callbacks),
            enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
            enable_model_summary=False,
            default_root_dir=config.output,
            **more,
        )
    except (ValueError, RuntimeError, ImportError) as error:  # Lightning names what is wrong, or torch_xla is absent
        raise UserError(f"section 'trainer': {error}") from error


def fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    keeper: RunKeeper,
    *,
    resume: bool,
    logger: Any,
    values: Mapping[str, Any],
    test: Callable[[], Mapping[str, float]] = dict,
) -> RunRecord:
    """Trains to the end, from the keeper's checkpoint with ``resume``, and returns the keeper's record, written.

    ``test`` gives further final figures of the trained model, from the checkpoint that the last epoch left; it is
    called once, on every process.

    A run whose loss is not finite any more, or one of whose processes is gone, ends with its record ``failed``, the
    reason in ``error``. Any other exception is recorded likewise and raised again; an interrupt is recorded as
    ``interrupted``, with its signal. ``values`` is the configuration, plain data, for the logger (False: none).
    """
    record, path = keeper.record, keeper.record_path
    own_world().check_size(trainer.world_size)
    note_hardware(record, trainer.strategy.root_device, trainer.world_size)
    with ExitStack() as at_the_end:
        try:
            if trainer.is_global_zero:
                write_record(record, path)
                remove_leftovers(keeper.checkpoint_path)
                remove_leftovers(path)
            if logger and trainer.is_global_zero and logger.experiment is not None:  # starts W&B's run, or raises
                at_the_end.callback(_end_log, logger, record)
                log_config(logger, values)
                log_record(logger, record)
            checkpoint = str(keeper.checkpoint_path) if resume else None
            with _together(trainer, lambda why: _end(trainer, record, path, why)):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
                record.metrics["final"] = {**record.metrics["epochs"][-1], **test()}
                note_correct(record, module)
            record.throughput = keeper.throughput.rates()
            _end(trainer, record, path)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                interrupts.wind_down()
            _end(trainer, record, path, error)
            if isinstance(error, Diverged | ProcessLost):
                return record
            if isinstance(error, UserError):
                raise UserError(record.error) from error  # without the worker process's traceback in its text
            raise
    return record


def _end_log(logger: Any, record: RunRecord) -> None:
    """Ends W&B's run. Where that fails, it hides no error that the run itself failed with; another signal ends it."""
    interrupts.heed_another()  # the record is written, and W&B waits for a network as long as it takes
    try:
        close_logger(logger, record)
    except Exception as error:
        if record.status != "failed":
            raise
        print(f"W&B's run could not be ended: {reason(error)}", file=sys.stderr)


def validate(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
    """Returns the module's figures on the validation images. Raises as `evaluating`."""
    with evaluating(trainer):
        trainer.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@contextmanager
def evaluating(trainer: pl.Trainer) -> Iterator[None]:
    """Evaluates in the block, in all processes.

    Raises UserError, with the last line of a worker process's traceback alone, and its ProcessLost.
    """
    try:
        with _together(trainer, lambda why: None):
            yield
    except ProcessLost:
        raise
    except UserError as error:
        raise UserError(reason(error)) from error


def not_again(config: RunConfig, values: Mapping[str, Any], record: RunRecord, folder: Path) -> None:
    """Says of a run that finished before that it is not repeated; a sweep of W&B's gets its metrics all the same."""
    print(f"{folder}: finished {record.ended}, not trained again", file=sys.stderr)
    if in_wandb_sweep() and this_rank().number == 0:
        tell_sweep(config, values, record, folder)


def check_same_data(record: RunRecord, held: Mapping[str, Any]) -> None:
    """Raises UserError where a run that goes on had other images before. ``held`` is what its checkpoint holds, which
    an older one does not say of its images; a run without a checkpoint begins anew, with whatever images."""
    now, then = record.data.get("checksum") or {}, held.get("checksum") or {}
    if other := [split for split in now if then.get(split, now[split]) != now[split]]:
        split = other[0]
        raise UserError(
            f"the {split} images are others than when this run began (checksum {now[split]}, then {then[split]}): "
            "expected the same images, or another output, in which the run begins anew"
        )


def progress(lines: Callback) -> list[Callback]:
    """Returns a progress bar on a terminal, ``lines`` elsewhere."""
    return [pl.callbacks.RichProgressBar()] if sys.stdout.isatty() else [lines]


def reason(error: BaseException) -> str:
    """Returns the exception in one line; Lightning turns a plain KeyboardInterrupt into an exit."""
    if isinstance(error, interrupts.Interrupted):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return INTERRUPTED
    if isinstance(error, UserError | Diverged):
        # From a worker process the text is a traceback, the exception itself on its last line.
        return str(error).strip().splitlines()[-1].removeprefix("dk_bench.errors.UserError: ")
    return f"{type(error).__name__}: {error}".strip()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Lightning says of every run: devices found, workers it would like, where checkpoints go."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("pytorch_lightning", "lightning_fabric"))}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 under torch 2.11
            # What is logged at an epoch's end is the same on every process already.
            warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def _together(trainer: pl.Trainer, tell: Callable[[BaseException], None]) -> Iterator[None]:
    """Runs what the trainer does in all its processes. ``tell`` is called before the process exits because it waits for
    another one that is gone. An interrupt comes out as itself, not as Lightning's exit or as what it did to others."""

    def last_words(why: BaseException) -> None:
        tell(why)
        interrupted = isinstance(why, interrupts.Interrupted)
        print(f"{why}; the same command goes on" if interrupted else f"failed: {why}", file=sys.stderr)

    try:
        with own_world().together(trainer.world_size, last_words):
            yield
    except BaseException as error:
        if "DataLoader worker" in str(error):  # is gone; whoever signals a whole group may reach this process last
            time.sleep(SIGNALS_APART_SECONDS)
        if not isinstance(error, interrupts.Interrupted):
            interrupts.hold_on()
        raise


def _end(trainer: pl.Trainer, record: RunRecord, path: Path, error: BaseException | None = None) -> None:
    """Writes that the run has finished, or failed with an error."""
    record.status, record.error = ("finished", None) if error is None else ("failed", reason(error))
    record.ended = utc_now()
    record.attempts[-1].setdefault("steps", 0)
    if trainer.is_global_zero:
        write_record(record, path)
