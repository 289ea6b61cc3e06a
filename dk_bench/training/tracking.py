"""Weights & Biases: the logger of a run, and what it is told besides the metrics."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dk_bench.processes.launchers import this_rank
from dk_bench.runs.identity import flatten
from dk_bench.runs.record import RunRecord, write_record
from dk_bench.runs.wandb_records import RECORD_FILE
from dk_bench.training.task import Task

_logged = False  # whether this process has had a run of W&B's


def in_wandb_sweep() -> bool:
    """Tells whether W&B's agent started this process for a run of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def wandb_logger(task: Task, run_id: str) -> Any:
    """Returns Lightning's logger, or False where the configuration wants none and no sweep needs one."""
    sweep, settings, folder = in_wandb_sweep(), task.run.wandb, task.folder
    if settings.mode == "disabled" and not sweep:
        return False
    global _logged
    _logged = True
    from pytorch_lightning.loggers import WandbLogger  # a second of import time

    folder.mkdir(parents=True, exist_ok=True)
    if sweep:
        # The agent has made the run in its sweep's project and waits for the metric there: only an online run of its
        # name tells the sweep anything, whatever our configurations say (the demo's says disabled). Ours would be
        # another run, or the same one of two cells.
        return WandbLogger(save_dir=folder, offline=False)
    offline = settings.mode == "offline"
    resume = {} if offline else {"resume": "allow"}  # offline, `wandb sync` joins the parts by their id
    return WandbLogger(
        name=folder.name, save_dir=folder, project=settings.project, id=run_id, offline=offline, **resume
    )


def log_config(logger: Any, values: Mapping[str, Any]) -> None:
    """Logs a configuration, plain data, by its dotted keys, as overrides and the parameters of sweeps name them.

    To be called on the first process.
    """
    # What the sweep has set stands there under the same name, and W&B refuses to have it set again.
    held = set(logger.experiment.config.keys()) if in_wandb_sweep() else set()
    logger.log_hyperparams({key: value for key, value in flatten(values) if key not in held})


def log_record(logger: Any, record: RunRecord) -> None:
    """Puts the record, as it is now, among the files of W&B's run. To be called on the first process."""
    run = logger.experiment
    path = write_record(record, Path(run.dir) / RECORD_FILE)
    run.save(str(path), base_path=run.dir, policy="now", glob=False)  # a folder's name may hold brackets


def close_logger(logger: Any, record: RunRecord) -> None:
    """Ends W&B's run, or the next one in this process would go on in it, with its record, and a finished record's
    figures or the error in its summary. To be called on the first process."""
    if record.status == "finished":
        figures = {**record.metrics["final"], **record.throughput, **record.cost}
        summary = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    else:
        summary = {"error": record.error}
    logger.experiment.summary.update(summary)
    log_record(logger, record)
    logger.experiment.finish(exit_code=int(record.status == "failed"))


def tell_sweep(task: Task, record: RunRecord) -> None:
    """Tells W&B's sweep of a run that was finished before: the agent's run would stay without the metric else."""
    logger = wandb_logger(task, record.run_id)
    log_config(logger, task.values)
    for epoch in record.metrics["epochs"]:
        logger.log_metrics(epoch, step=epoch["epoch"])  # the record does not know the steps
    close_logger(logger, record)


def tell_sweep_of_failure(error: BaseException) -> None:
    """Tells W&B's sweep that the agent's run failed before there was a logger: it would stay unfinished for ever."""
    if not in_wandb_sweep() or _logged or this_rank().number:
        return
    import wandb

    run = wandb.init()
    run.summary["error"] = str(error)
    run.finish(exit_code=1)
