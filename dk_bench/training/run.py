"""One run from a configuration to its record, resuming from its last checkpoint; and evaluation of a checkpoint."""

from __future__ import annotations

import logging
import secrets
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from pytorch_lightning.utilities.exceptions import SIGTERMException

from dk_bench.analysis.cost import count_cost
from dk_bench.config import Config, config_from_dict, to_dict
from dk_bench.data.module import ClassificationData
from dk_bench.errors import UserError
from dk_bench.models import MODELS
from dk_bench.results.record import RunRecord, config_hash, new_record, read_record, utc_now, write_record
from dk_bench.training.callbacks import EpochLines, RunKeeper, Throughput
from dk_bench.training.checkpoint import check_same_model, load_weights, read_checkpoint
from dk_bench.training.classifier import Diverged, LitClassifier


def run_folder(config: Config) -> Path:
    """Where a run keeps record and checkpoint: the same for the same name, cell and seed, so that it finds its own."""
    return Path(config.output) / f"{config.name}-{config_hash(to_dict(config))}-s{config.seed}"


def train(config: Config, *, callbacks: Sequence[Callback] = (), command: Sequence[str] = ()) -> RunRecord:
    """Trains what ``config`` says, from the last checkpoint in the run's folder where there is one.

    A run that has finished is not repeated: its record comes back. A run whose loss is not finite any more ends with
    its record ``failed``, the reason in ``error``. Any other exception is recorded likewise and raised again; an
    interrupt is recorded as ``interrupted``. ``callbacks`` are further Lightning callbacks.

    Raises UserError for bad configuration or data, and for a checkpoint of another model in the run's folder.
    """
    folder = run_folder(config)
    if (folder / "record.json").exists():
        record = read_record(folder / "record.json")
        if record.status == "finished":
            print(f"{folder}: finished {record.ended}, not trained again", file=sys.stderr)
            return record

    with _quiet():
        pl.seed_everything(config.seed, verbose=False)  # the initial weights; every step seeds itself
        data = ClassificationData(config.data, config.seed)
        classes, steps = data.train_images.classes, data.steps_per_epoch
        checkpoint, run_id = _last_checkpoint(folder, config, len(classes))
        module = LitClassifier(to_dict(config), classes, steps, run_id)
        throughput = Throughput()
        # A record in the folder, if any, tells of an interrupted or failed attempt; what it holds is in the checkpoint.
        record = _start_record(config, module, data, command)
        keeper = RunKeeper(record, folder, throughput, config.trainer.checkpoint_every_n_steps)
        watchers = [*_averaging(config), throughput, *_progress(), *callbacks, keeper]
        logger = _wandb_logger(config, run_id, folder)
        trainer = _make_trainer(config, watchers, logger)
        if trainer.is_global_zero:
            write_record(record, keeper.record_path)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except BaseException as error:
            _fail(trainer, record, keeper.record_path, error)
            if isinstance(error, Diverged):
                return record
            if isinstance(error, UserError):
                raise UserError(record.error) from error  # without the worker process's traceback in its text
            raise
        finally:
            if logger:  # else the next run in this process would go on in this one's W&B run
                logger.experiment.finish(exit_code=int(record.status == "failed"))
        record.metrics["final"] = dict(record.metrics["epochs"][-1])
        record.status, record.ended, record.throughput = "finished", utc_now(), throughput.rates()
        if trainer.is_global_zero:
            write_record(record, keeper.record_path)
    return record


def evaluate(path: str | Path, overrides: Iterable[str] = (), *, command: Sequence[str] = ()) -> RunRecord:
    """Evaluates a checkpoint on the validation images of its configuration, changed by ``overrides``.

    Returns a record, not written, whose final metrics are val/loss, val/top1 and val/top5. Raises UserError for a file
    that is no checkpoint of ours, for bad data, and where model or classes are not the checkpoint's.
    """
    checkpoint = read_checkpoint(path)
    held = checkpoint["hyper_parameters"]
    config = config_from_dict(held["config"], overrides, source=str(path))
    config.model.checkpoint = None  # the weights come from this checkpoint
    with _quiet():
        data = ClassificationData(config.data, config.seed)
        if data.val_images.classes != held["classes"]:
            raise UserError(
                f"{path}: its model tells {_some(held['classes'])} apart, the images are of "
                f"{_some(data.val_images.classes)}"
            )
        check_same_model(checkpoint, config.model.name, len(held["classes"]), path)
        module = LitClassifier(to_dict(config), held["classes"])
        load_weights(module.model, checkpoint, path)
        throughput = Throughput()
        trainer = _make_trainer(config, [throughput], logger=False)
        record = _start_record(config, module, data, command)
        try:
            trainer.validate(module, datamodule=data, verbose=False)
        except UserError as error:
            raise UserError(_reason(error)) from error
    record.metrics["final"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    record.throughput = throughput.rates()
    record.status, record.ended = "finished", utc_now()
    return record


def _last_checkpoint(folder: Path, config: Config, num_classes: int) -> tuple[str | None, str]:
    """The checkpoint to go on from, if any, and the run's name for W&B: the checkpoint's, or a new one."""
    path = folder / "last.ckpt"
    if not path.exists():
        # The random part keeps apart the runs of one cell on several machines that share a W&B project.
        return None, f"{folder.name.removeprefix(config.name + '-')}-{secrets.token_hex(4)}"
    checkpoint = read_checkpoint(path)
    check_same_model(checkpoint, config.model.name, num_classes, path)
    return str(path), checkpoint["hyper_parameters"]["run_id"]


def _start_record(config: Config, module: LitClassifier, data: ClassificationData, command: Sequence[str]) -> RunRecord:
    """The record of a run that begins, with the model's cost."""
    name, size, classes = config.model.name, config.data.size, module.hparams.classes
    in_chans = 3
    record = new_record(
        name=config.name,
        config=to_dict(config),
        model={
            "name": name,
            "num_classes": len(classes),
            "input_size": [in_chans, size, size],
            "spec": MODELS[name].spec.to_dict() if name in MODELS else None,
        },
        data={
            "name": config.data.name,
            "classes": classes,
            "train_images": len(data.train_images) if module.hparams.run_id else None,
            "val_images": len(data.val_images),
        },
        seed=config.seed,
        command=command or sys.argv,
        run_id=module.hparams.run_id or None,
    )
    cost = count_cost(module.model, (in_chans, size, size))
    record.cost = {
        "params": cost.params,
        "macs": cost.macs,
        "sampling_macs": cost.sampling_macs,
        "input_size": [in_chans, size, size],
    }
    return record


def _make_trainer(config: Config, callbacks: list[Callback], logger: Any) -> pl.Trainer:
    settings = config.trainer
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,
            deterministic=settings.deterministic,
            max_epochs=config.optim.epochs,
            callbacks=callbacks,
            logger=logger,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours already share the images out
            enable_checkpointing=any(isinstance(c, RunKeeper) for c in callbacks),
            enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
            enable_model_summary=False,
            default_root_dir=config.output,
        )
    except (ValueError, RuntimeError) as error:  # Lightning names what is wrong: precision, accelerator, devices
        raise UserError(f"section 'trainer': {error}") from error


def _averaging(config: Config) -> list[Callback]:
    return [EMAWeightAveraging(decay=config.ema.decay)] if config.ema.decay is not None else []


def _progress() -> list[Callback]:
    return [pl.callbacks.RichProgressBar()] if sys.stdout.isatty() else [EpochLines()]


def _wandb_logger(config: Config, run_id: str, folder: Path) -> Any:
    if config.wandb.mode == "disabled":
        return False
    from pytorch_lightning.loggers import WandbLogger  # a second of import time

    folder.mkdir(parents=True, exist_ok=True)
    offline = config.wandb.mode == "offline"
    resume = {} if offline else {"resume": "allow"}  # offline, `wandb sync` joins the parts by their id
    return WandbLogger(
        name=folder.name, save_dir=folder, project=config.wandb.project, id=run_id, offline=offline, **resume
    )


def _fail(trainer: pl.Trainer, record: RunRecord, path: Path, error: BaseException) -> None:
    record.status, record.error, record.ended = "failed", _reason(error), utc_now()
    if trainer.is_global_zero:
        write_record(record, path)


def _reason(error: BaseException) -> str:
    """The exception in one line; Lightning turns an interrupt into an exit."""
    if isinstance(error, KeyboardInterrupt | SystemExit | SIGTERMException):
        return "interrupted"
    if isinstance(error, UserError | Diverged):
        # From a worker process the text is a traceback, the exception itself on its last line.
        return str(error).strip().splitlines()[-1].removeprefix("dk_bench.errors.UserError: ")
    return f"{type(error).__name__}: {error}".strip()


def _some(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}, ...)"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Lightning says of every run: devices found, workers it would like, where checkpoints go."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 under torch 2.11
            warnings.filterwarnings("ignore", message=".*ended before the epoch ended.*")  # StepSampler resumes there
            yield
    finally:
        logger.setLevel(level)
