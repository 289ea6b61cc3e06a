"""One run from a configuration to its record, resuming from its last checkpoint; and evaluation of a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor
from torch import nn

from dk_bench.classification.data import ClassificationData, OneTest
from dk_bench.classification.module import LitClassifier
from dk_bench.config import Config, config_from_dict, to_dict
from dk_bench.data.shifts import TEST, held_out_sets
from dk_bench.data.sources import Images, data_name
from dk_bench.errors import UserError
from dk_bench.models.cost import count_cost
from dk_bench.processes.world import own_process
from dk_bench.runs import identity
from dk_bench.runs.environment import portable
from dk_bench.runs.record import EVALUATION, RunRecord, attempts_of, is_tested, new_record, note_hardware, utc_now
from dk_bench.training.callbacks import EpochLines, RunKeeper, Throughput, note_correct
from dk_bench.training.checkpoint import (
    check_same_model,
    kernel_spec,
    load_weights,
    read_checkpoint,
    without_initial_weights,
)
from dk_bench.training.fitting import (
    Diverged,
    check_same_data,
    evaluating,
    fit,
    make_trainer,
    name_run,
    not_again,
    open_run,
    progress,
    quiet,
    reason,
    validate,
)
from dk_bench.training.tracking import wandb_logger

DECODED = "decoded"  # folder of decoded images, beside those of the runs


def run_folder(config: Config) -> Path:
    """Tells where the run keeps its record and checkpoint, see `dk_bench.runs.identity.run_folder`."""
    return identity.run_folder(config, to_dict(config))


def train(config: Config, *, callbacks: Sequence[Callback] = (), command: Sequence[str] = ()) -> RunRecord:
    """Trains what ``config`` says, from the last checkpoint in the run's folder where there is one.

    The trained model is then evaluated, once, on the test images, if there are any. A run that has finished is not
    repeated: its record comes back; figures of test images that it is without are added from its checkpoint. A run
    whose loss is not finite any more ends with its record ``failed``, the reason in ``error``. Any other exception is
    recorded likewise and raised again; an interrupt is recorded as ``interrupted``. ``callbacks`` are further Lightning
    callbacks.

    Raises UserError for bad configuration or data, and for a checkpoint of another model in the run's folder, and its
    BusyError where another process is training this run.
    """
    folder = run_folder(config)
    with open_run(folder) as previous, quiet():
        if previous and previous.status == "finished" and not _wants_test(config, previous, folder):
            not_again(config, to_dict(config), previous, folder)
            _tell_other_tests(config, previous, folder)
            return previous

        pl.seed_everything(config.seed, verbose=False)  # the initial weights; every step seeds itself
        data = ClassificationData(config.data, config.seed, cache=Path(config.output, DECODED))
        classes, steps = data.train_images.classes, data.steps_per_epoch
        data.check_splits()
        checkpoint = _last_checkpoint(folder, config, len(classes))
        run_id = name_run(folder, checkpoint, previous)
        # Going on, all weights are the checkpoint's: those that training began with need not exist any more.
        module = LitClassifier(to_dict(config), classes, steps, run_id, initial_weights=checkpoint is None)
        throughput = Throughput()
        held = RunKeeper.state_in(checkpoint) if checkpoint else {}
        # The record knows attempts that left no checkpoint; the checkpoint does where the record is lost.
        earlier = attempts_of(previous) if previous else held.get("attempts", [])
        record = _start_record(config, module, data, command, earlier=earlier)
        check_same_data(record, held)
        record.metrics["epochs"] = list(held.get("epochs", []))  # at once: what follows may fail before it is restored
        keeper = RunKeeper(record, folder, throughput, config.trainer.checkpoint_every_n_steps)
        logger = wandb_logger(config, run_id, folder)
        rates = [LearningRateMonitor(logging_interval="step")] if logger else []
        watchers = [*_averaging(config), throughput, *progress(EpochLines()), *rates, *callbacks, keeper]
        trainer = make_trainer(config, config.optim.epochs, watchers, logger, steps)
        resume = checkpoint is not None
        del checkpoint  # its weights would stay in memory beside the model's

        def test() -> dict[str, float]:
            return evaluate_tests(trainer, module, data, keeper.checkpoint_path)

        return fit(trainer, module, data, keeper, resume=resume, logger=logger, values=to_dict(config), test=test)


def evaluate_tests(
    trainer: pl.Trainer, module: LitClassifier, data: ClassificationData, path: Path
) -> dict[str, float]:
    """Evaluates the weights in a checkpoint, of EMA the averaged ones, on every test set, one after the other.

    Gives test/loss, test/top1 and test/top5, and the same under test/SHIFT/ for each shifted set. Loggers are told
    nothing: no search may have these figures among those that it watches during training.
    """
    if not data.test_images:
        return {}
    load_weights(module.model, read_checkpoint(path), path)
    trainer.loggers, figures, hits = [], {}, {}
    for name in data.test_images:
        trainer.test(module, datamodule=OneTest(data, name), verbose=False)
        found = trainer.callback_metrics.items()
        figures |= {f"{name}{metric.removeprefix(TEST)}": float(value) for metric, value in found}
        hits[name] = module.hits[TEST]
    module.hits |= hits
    return figures


def _wants_test(config: Config, record: RunRecord, folder: Path) -> bool:
    """Tells whether a finished run is without figures of test images that its configuration names, and can have
    them.
    """
    return not is_tested(record, held_out_sets(config.data)) and (folder / "last.ckpt").exists()


def _tell_other_tests(config: Config, record: RunRecord, folder: Path) -> None:
    """Says of a finished run where its figures of test images are not of those that the configuration names now."""
    now = portable(to_dict(config), distinct=True)
    both = ((key, identity.setting(record.config, key), identity.setting(now, key)) for key in identity.TESTS)
    other = [f"{key}={then} (now {named})" for key, then, named in both if then != named]
    if other and held_out_sets(config.data) and is_tested(record, [TEST]):
        print(f"{folder}: was tested on {', '.join(other)}; dk-bench eval --split test has others", file=sys.stderr)


def evaluate(
    path: str | Path, overrides: Iterable[str] = (), *, split: str = "val", command: Sequence[str] = ()
) -> RunRecord:
    """Evaluates a checkpoint on the images of its configuration, changed by ``overrides``: those of validation, or,
    where ``split`` is ``test``, all test sets.

    Returns a record of task ``evaluation``, not written, whose final metrics are val/loss, val/top1 and val/top5, or
    those of `evaluate_tests`. Raises UserError for a file that is no checkpoint of ours, for bad data, where model or
    classes are not the checkpoint's, and where the model's loss is not finite.
    """
    checkpoint = read_checkpoint(path)
    held = checkpoint["hyper_parameters"]
    config = config_from_dict(held["config"], overrides, source=str(path))
    config.model = without_initial_weights(config.model)  # the weights come from this checkpoint
    with own_process(), quiet():
        data = ClassificationData(config.data, config.seed, cache="off")  # every image is seen once
        if (classes := _evaluated(data, split).classes) != held["classes"]:
            raise UserError(
                f"{path}: its model tells {_some(held['classes'])} apart, the images are of {_some(classes)}"
            )
        check_same_model(checkpoint, config.model.name, len(held["classes"]), path)
        module = LitClassifier(to_dict(config), held["classes"])
        load_weights(module.model, checkpoint, path)
        throughput = Throughput()
        trainer = make_trainer(config, config.optim.epochs, [throughput], logger=False)
        record = _start_record(config, module, data, command, splits=[split], task=EVALUATION)
        try:
            note_hardware(record, trainer.strategy.root_device, trainer.world_size)
            if split == TEST:
                with evaluating(trainer):
                    record.metrics["final"] = evaluate_tests(trainer, module, data, path)
            else:
                record.metrics["final"] = validate(trainer, module, data)
        except Diverged as error:
            raise UserError(f"{path}: its model gives no finite loss on these images: {reason(error)}") from error
    note_correct(record, module)
    record.throughput = throughput.rates()
    record.status, record.ended = "finished", utc_now()
    return record


def _evaluated(data: ClassificationData, split: str) -> Images:
    """Returns the images of a split to evaluate. Raises UserError where the configuration names no test images."""
    if split != TEST:
        return data.val_images
    if not data.test_images:
        key = "data.test=PLACE" if data.config.source == "timm" else "data.procedural.test_images=N"
        raise UserError(f"the configuration has no test images: expected {key}")
    return data.test_images[TEST]


def _last_checkpoint(folder: Path, config: Config, num_classes: int) -> dict[str, Any] | None:
    """Returns the checkpoint to go on from, if any."""
    path = folder / "last.ckpt"
    if not path.exists():
        return None
    checkpoint = read_checkpoint(path)
    check_same_model(checkpoint, config.model.name, num_classes, path)
    return checkpoint


def _start_record(
    config: Config,
    module: LitClassifier,
    data: ClassificationData,
    command: Sequence[str],
    splits: Sequence[str] = ("train", "val", "test"),
    **more: Any,
) -> RunRecord:
    """Returns the record of a run that begins, with the model's cost and what of ``data`` it is about; ``more`` goes to
    `new_record`."""
    name, size, classes = config.model.name, config.data.size, module.hparams.classes
    spec, in_chans = kernel_spec(config.model), 3
    record = new_record(
        name=config.name,
        config=to_dict(config),
        model={
            "name": name,
            "num_classes": len(classes),
            "input_size": [in_chans, size, size],
            "spec": spec.to_dict() if spec else None,
        },
        data={
            "name": data_name(config.data),
            "classes": classes,
            **_counts(data, splits),
            "checksum": data.checksums(*splits),
        },
        seed=config.seed,
        command=command or sys.argv,
        run_id=module.hparams.run_id or None,
        **more,
    )
    record.data["decoded"] = data.decoded  # filled in when they are: an image that cannot be read is a run's failure
    record.cost = _cost(module.model, (in_chans, size, size))
    return record


def _counts(data: ClassificationData, splits: Sequence[str]) -> dict[str, int | None]:
    """Tells how many images there are of the splits that a record is about, and, where folders and tars were scanned,
    how many service files and folders of theirs were passed over."""
    images = {
        "train": data.train_images if "train" in splits else None,
        "val": data.val_images if "val" in splits else None,
        "test": data.test_images.get(TEST) if TEST in splits else None,
    }
    counts = {f"{split}_images": len(found) if found else None for split, found in images.items()}
    if counts["test_images"] is None:  # as in older records
        del counts["test_images"]
    left_out = [found.left_out for found in images.values() if hasattr(found, "left_out")]
    return counts | ({"left_out": sum(left_out)} if left_out else {})


def _cost(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Tells what one image costs, as records hold it. Counting must not keep a model from training: where it fails, at
    an operator without a formula or one that cannot run without data, only the parameters are known, and the reason."""
    try:
        return dataclasses.asdict(count_cost(model, input_size)) | {"input_size": list(input_size)}
    except (NotImplementedError, RuntimeError) as error:
        params = sum(parameter.numel() for parameter in model.parameters())
        reason = str(error).strip().splitlines()[0]
        print(f"multiply-adds are not known: {reason}", file=sys.stderr)
        unknown = {"macs": None, "sampling_macs": None}
        return {"params": params, **unknown, "input_size": list(input_size), "error": reason}


def _averaging(config: Config) -> list[Callback]:
    return [EMAWeightAveraging(decay=config.ema.decay)] if config.ema.decay is not None else []


def _some(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}, ...)"
