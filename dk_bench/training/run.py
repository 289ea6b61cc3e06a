"""One run of any task, from its configuration to its record, resuming by itself; and evaluation of a checkpoint."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dk_bench.data.shifts import TEST
from dk_bench.errors import UserError
from dk_bench.processes import interrupts
from dk_bench.processes.meeting import ProcessLost
from dk_bench.processes.world import own_process, own_world
from dk_bench.runs.record import EVALUATION, RunRecord, attempts_of, note_hardware, utc_now
from dk_bench.training.beats import Beats
from dk_bench.training.callbacks import RunKeeper, Throughput, figures, note_correct
from dk_bench.training.checkpoint import LAST, last_checkpoint, load_weights
from dk_bench.training.ending import end, end_log, together
from dk_bench.training.held_out import evaluate_tests
from dk_bench.training.opening import (
    finished_before,
    go_on_from,
    name_run,
    not_again,
    open_run,
    start_record,
    tell_devices,
)
from dk_bench.training.own_trainer import ConfiguredModule, Diverged
from dk_bench.training.run_data import RunData
from dk_bench.training.task import Task
from dk_bench.training.tracking import Tracking, check_logger, open_tracking
from dk_bench.training.trainer import make_trainer, quiet


def train(task: Task, *, callbacks: Sequence[Callback] = (), command: Sequence[str] = ()) -> RunRecord:
    """Trains what a configuration says, from the last checkpoint in the run's folder where there is one.

    The trained model is then evaluated, once, on the test images, if there are any. A run that has finished is not
    repeated: its record comes back; figures of test images that it is without are added from its checkpoint.
    ``callbacks`` are further Lightning callbacks. How a run ends otherwise: see `fit`.

    Raises UserError for bad configuration or data, and for a record or checkpoint of another task or model in the run's
    folder, and its BusyError where another process is training this run.
    """
    with open_run(task) as previous, quiet(task):
        if finished := finished_before(task, previous):
            return not_again(task, finished)
        check_logger(task)
        checkpoint = last_checkpoint(task)

        # Build: data, model, or what of it the last checkpoint holds.
        pl.seed_everything(task.run.seed, verbose=False)  # the initial weights; every step seeds itself
        data = task.data()
        classes, steps = data.classes, data.steps_per_epoch
        data.check_splits()
        if checkpoint:
            task.check_checkpoint(checkpoint, classes, task.folder / LAST)
        run_id = name_run(task.folder, checkpoint, previous)
        # Going on, all weights are the checkpoint's: those that training began with need not exist any more.
        module = task.module(classes, run_id, initial_weights=checkpoint is None)

        # Record: what is known before the first step, and the epochs before this attempt.
        held = RunKeeper.state_in(checkpoint or {})  # where the record, which knows all, is lost
        earlier = attempts_of(previous) if previous else held.get("attempts", [])
        record = start_record(task, module, data, command, earlier=earlier)
        go_on_from(record, held)

        # Watch: speed, record and checkpoint, a logger, a progress bar on a terminal.
        throughput = Throughput(task.images_in)
        keeper = RunKeeper(task, record, throughput)
        tracking = open_tracking(task, run_id, step=checkpoint["global_step"] if checkpoint else 0)
        bar = [pl.callbacks.RichProgressBar()] if sys.stdout.isatty() else []
        watchers = [*task.callbacks(logged=tracking is not None), throughput, *callbacks, keeper, Beats(task), *bar]
        trainer = make_trainer(task, watchers, tracking.logger if tracking else False, steps)

        resume = checkpoint is not None
        del checkpoint  # its weights would stay in memory beside the model's
        return fit(trainer, module, data, keeper, tracking=tracking, resume=resume)


def fit(
    trainer: pl.Trainer,
    module: ConfiguredModule,
    data: RunData,
    keeper: RunKeeper,
    *,
    tracking: Tracking | None,
    resume: bool,
) -> RunRecord:
    """Trains to the end, from the keeper's checkpoint with ``resume``, and returns the keeper's record, written.

    A run whose loss is not finite any more, or one of whose processes is gone, ends with its record ``failed``, the
    reason in ``error``. Any other exception is recorded likewise and raised again; an interrupt is recorded as
    ``interrupted``, with its signal. ``tracking`` has the trainer's logger, if there is one.
    """
    record, checkpoint = keeper.record, keeper.checkpoint_path
    own_world().check_size(trainer.world_size)
    note_hardware(record, trainer.strategy.root_device, trainer.world_size)
    with ExitStack() as at_the_end:
        try:
            if trainer.is_global_zero:
                tell_devices(record)
                keeper.begin()
                if tracking:
                    tracking.start()
                    at_the_end.callback(end_log, tracking, record)
                    tracking.begin(record)
            with together(trainer, keeper), interrupts.noting():
                trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
                if data.test_images:  # they may take long, and can be stopped anywhere: the next start begins with them
                    if keeper.stop:
                        interrupts.heed(keeper.stop)
                    interrupts.note(False)
                tested = evaluate_tests(trainer, module, data, checkpoint)
                interrupts.note()
                record.metrics["final"] = {**record.metrics["epochs"][-1], **tested}
                note_correct(record, module)
            record.throughput = keeper.throughput.rates()
            end(trainer, keeper)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                interrupts.wind_down()
            end(trainer, keeper, error)
            if isinstance(error, Diverged | ProcessLost):
                return record
            raise
    return record


def evaluate(
    task: Task, checkpoint: Mapping[str, Any], path: str | Path, *, split: str = "val", command: Sequence[str] = ()
) -> RunRecord:
    """Evaluates a checkpoint, read from ``path``, on the images of a configuration: those of validation, or, where
    ``split`` is ``test``, all test sets.

    Returns a record of task ``evaluation``, not written, whose final metrics are the task's, or those of
    `evaluate_tests`. Raises UserError for bad data, where model or classes are not the checkpoint's, and where the
    model's loss or offsets are not finite.
    """
    task.check_split(split)
    with own_process(), own_world().met() as meeting, quiet(task):
        if meeting:
            meeting.agree(f"{task.folder.name} ({split})")
        data = task.data(once=True)
        classes = data.classes_of(split)
        task.check_checkpoint(checkpoint, classes, path)
        module = task.module(classes, initial_weights=False)  # the weights come from this checkpoint
        load_weights(module.model, checkpoint, path)
        throughput = Throughput(task.images_in)
        trainer = make_trainer(task, [throughput], logger=False)
        record = start_record(task, module, data, command, splits=[split], kind=EVALUATION)
        note_hardware(record, trainer.strategy.root_device, trainer.world_size)
        try:
            with together(trainer):
                if split == TEST:
                    record.metrics["final"] = evaluate_tests(trainer, module, data, path)
                else:
                    trainer.validate(module, datamodule=data, verbose=False)
                    record.metrics["final"] = figures(trainer, task.metrics)
        except Diverged as error:
            raise UserError(f"{path}: its model gives no finite loss on these images: {error}") from error
    note_correct(record, module)
    record.throughput = throughput.rates()
    record.status, record.ended = "finished", utc_now()
    return record
