"""One run of detection from a configuration to its record, resuming by itself; and evaluation of a checkpoint."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from dk_bench.config import ModelConfig
from dk_bench.detection.building import quiet_mmengine
from dk_bench.detection.data import DetectionData
from dk_bench.detection.mmengine_config import DetectionConfig, config_from_values
from dk_bench.detection.module import TASK, LitDetector
from dk_bench.detection.watch import DetectionKeeper, DetectionLines, DetectionThroughput
from dk_bench.errors import UserError
from dk_bench.models.cost import count_cost
from dk_bench.processes.world import own_process
from dk_bench.runs import identity
from dk_bench.runs.record import EVALUATION, RunRecord, attempts_of, new_record, note_hardware, utc_now
from dk_bench.training.checkpoint import kernel_spec, read_checkpoint
from dk_bench.training.fitting import (
    check_same_data,
    fit,
    make_trainer,
    name_run,
    not_again,
    open_run,
    progress,
    quiet,
    validate,
)
from dk_bench.training.tracking import wandb_logger
from dk_bench.training.weights import weights_in


def run_folder(config: DetectionConfig) -> Path:
    """Tells where the run keeps its record and checkpoint, see `dk_bench.runs.identity.run_folder`."""
    return identity.run_folder(config.run, config.to_dict())


def train(config: DetectionConfig, *, callbacks: Sequence[Callback] = (), command: Sequence[str] = ()) -> RunRecord:
    """Trains what ``config`` says, from the last checkpoint in the run's folder where there is one.

    A run that has finished is not repeated: its record comes back. How a run ends otherwise: see
    `dk_bench.training.fitting.fit`. ``callbacks`` are further Lightning callbacks.

    Raises UserError for bad configuration or data, for a checkpoint of another model in the run's folder, and its
    BusyError where another process is training this run.
    """
    folder, values, run = run_folder(config), config.to_dict(), config.run
    with open_run(folder) as previous, _quiet():
        if previous and previous.status == "finished":
            not_again(run, values, previous, folder)
            return previous

        pl.seed_everything(run.seed, verbose=False)  # the initial weights; every step seeds itself
        data = DetectionData(config)
        classes = data.classes
        data.check_splits()
        checkpoint = _last_checkpoint(folder, classes)
        run_id = name_run(folder, checkpoint, previous)
        module = LitDetector(values, classes, run_id, initial_weights=checkpoint is None)
        held = DetectionKeeper.state_in(checkpoint) if checkpoint else {}
        # The record knows attempts that left no checkpoint; the checkpoint does where the record is lost.
        earlier = attempts_of(previous) if previous else held.get("attempts", [])
        record = _start_record(config, module, data, command, train_images=len(data.train_images), earlier=earlier)
        check_same_data(record, held)
        record.metrics["epochs"] = list(held.get("epochs", []))  # at once: what follows may fail before it is restored
        throughput = DetectionThroughput()
        keeper = DetectionKeeper(record, folder, throughput, run.trainer.checkpoint_every_n_steps)
        logger = wandb_logger(run, run_id, folder)
        watchers = [throughput, *progress(DetectionLines()), *callbacks, keeper]
        trainer = _make_trainer(config, watchers, logger, data.steps_per_epoch)
        resume = checkpoint is not None
        del checkpoint  # its weights would stay in memory beside the model's
        return fit(trainer, module, data, keeper, resume=resume, logger=logger, values=values)


def evaluate(path: str | Path, overrides: Iterable[str] = (), *, command: Sequence[str] = ()) -> RunRecord:
    """Evaluates a checkpoint on the validation images of its configuration, changed by ``overrides``.

    Returns a record of task ``evaluation``, not written, whose final metrics are val/mAP and its parts in percent.
    Raises UserError for a file that is no checkpoint of detection, for bad data, where model or classes are not the
    checkpoint's, and where the model's offsets are not finite.
    """
    checkpoint = _read(path)
    held = checkpoint["hyper_parameters"]
    config = config_from_values(held["config"], overrides, source=str(path))
    with own_process(), _quiet():
        data = DetectionData(config)
        _check_classes(checkpoint, data.classes, path)
        module = LitDetector(config.to_dict(), data.classes, initial_weights=False)
        load_weights(module.model, checkpoint, path)
        throughput = DetectionThroughput()
        trainer = _make_trainer(config, [throughput], logger=False)
        record = _start_record(config, module, data, command, task=EVALUATION)
        note_hardware(record, trainer.strategy.root_device, trainer.world_size)
        validate(trainer, module, data)
    record.metrics["final"] = DetectionKeeper.figures(trainer)
    record.throughput = throughput.rates()
    record.status, record.ended = "finished", utc_now()
    return record


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Puts a checkpoint's weights into mmdet's detector. Raises UserError unless every one fits."""
    try:
        model.load_state_dict(weights_in(checkpoint))
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path}: its weights do not fit {type(model).__name__}: {text[:300]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning and mmengine, and the warning of modules that mmdet keeps in evaluation mode in training."""
    with quiet(), quiet_mmengine(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        yield


def _read(path: str | Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    if checkpoint.get("task") != TASK:
        raise UserError(f"{path}: not a checkpoint of a detector")
    return checkpoint


def _last_checkpoint(folder: Path, classes: list[str]) -> dict[str, Any] | None:
    """Returns the checkpoint to go on from, if any."""
    path = folder / "last.ckpt"
    if not path.exists():
        return None
    checkpoint = _read(path)
    _check_classes(checkpoint, classes, path)
    return checkpoint


def _check_classes(checkpoint: dict[str, Any], classes: list[str], path: str | Path) -> None:
    held = checkpoint["hyper_parameters"]["classes"]
    if list(held) != classes:
        raise UserError(f"{path}: its model finds {_some(held)}, the images are of {_some(classes)}")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _make_trainer(config: DetectionConfig, callbacks: list[Callback], logger: Any, steps: int = 1) -> pl.Trainer:
    cfg = config.cfg
    return make_trainer(
        config.run,
        config.max_epochs,
        callbacks,
        logger,
        steps,
        strategy="ddp_find_unused_parameters_true" if cfg.get("find_unused_parameters") else "auto",
    )


def _start_record(
    config: DetectionConfig,
    module: LitDetector,
    data: DetectionData,
    command: Sequence[str],
    *,
    task: str = TASK,
    train_images: int | None = None,
    **more: Any,
) -> RunRecord:
    """Returns the record of a run that begins; ``more`` goes to `new_record`."""
    model = _describe(config)
    record = new_record(
        name=config.run.name,
        config=_as_json(config.to_dict()),
        model=model,
        data={
            "name": data.name,
            "classes": data.classes,
            "train_images": train_images,
            "val_images": len(data.val_images),
            "checksum": data.checksums(*(["train"] * (train_images is not None)), "val"),
        },
        seed=config.run.seed,
        command=command or sys.argv,
        run_id=module.hparams.run_id or None,
        task=task,
        **more,
    )
    record.cost = _cost(module.model, model["input_size"])
    return record


def _describe(config: DetectionConfig) -> dict[str, Any]:
    """Tells what a record says of the model: the backbone by its timm name or mmdet's type, and what deforms it."""
    cfg = config.cfg
    backbone = cfg.model.get("backbone") or {}
    name = backbone.get("model_name") or f"{backbone.get('type')}{backbone.get('depth') or ''}"
    given = backbone.get("spec")
    spec = kernel_spec(ModelConfig(name, dict(given) if given else None))
    return {
        "name": name,
        "detector": str(cfg.model.type).rpartition(".")[2],
        "spec": spec.to_dict() if spec else None,
        "input_size": _input_size(cfg.val_dataloader.dataset),
    }


def _input_size(dataset: Any) -> list[int] | None:
    """[3, height, width] of the box that validation images are scaled to fit; None where the pipeline has no size."""
    for step in dataset.get("pipeline") or ():
        scale = step.get("scale") or step.get("img_scale")
        if scale is not None and "Resize" in str(step.get("type")):
            width, height = (scale, scale) if isinstance(scale, int) else scale
            return [3, int(height), int(width)]
    return None


def _cost(model: nn.Module, input_size: list[int] | None) -> dict[str, Any]:
    """Returns the detector's parameters, and the backbone's multiply-adds for one image where they can be counted: what
    follows the backbone does more or less work as the image has it."""
    params = sum(parameter.numel() for parameter in model.parameters())
    cost = {"params": params, "macs": None, "sampling_macs": None, "input_size": input_size}
    try:
        backbone = count_cost(model.backbone, tuple(input_size or (3, 224, 224)))
    except (AttributeError, NotImplementedError, RuntimeError, AssertionError) as error:
        return cost | {"error": str(error).strip().splitlines()[0]}
    return cost | {
        "note": "multiply-adds depend on the image; the backbone's alone are counted",
        "backbone_params": backbone.params,
        "backbone_macs": backbone.macs,
        "backbone_sampling_macs": backbone.sampling_macs,
    }


def _as_json(value: Any) -> Any:
    """Tuples as lists, so that a record in memory is the one that is read back."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
