"""Weights & Biases: a run's logger there, and what it is told besides the metrics."""

import os
import time
from pathlib import Path
from typing import Any

from dk_bench.processes import interrupts
from dk_bench.processes.ranks import this_rank
from dk_bench.runs.attempts import INTERRUPTED
from dk_bench.runs.identity import config_hash, flatten
from dk_bench.runs.record import RunRecord, final_figures, write_record
from dk_bench.runs.wandb_records import RECORD_FILE
from dk_bench.runs.wandb_server import CELL, CLAIM
from dk_bench.training.task import Task

# By the warning ahead of a job's end. SIGTERM is also how W&B's server has an agent stop a run for good.
PREEMPTED = f"{INTERRUPTED} by SIGUSR1"
SIGNALS_APART_SECONDS = 0.5

_logged = False  # whether this process has had a run of W&B's


def in_wandb_sweep() -> bool:
    """Tells whether W&B's agent started this process for a run of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


class WandbTracking:
    """A run's logger for W&B, as the configuration says, or for the run that W&B's agent has made."""

    name = "W&B's run"

    def __init__(self, task: Task, run_id: str) -> None:
        global _logged
        _logged = True
        from pytorch_lightning.loggers import WandbLogger  # a second of import time

        self._values, settings, folder = task.values, task.run.wandb, task.folder
        folder.mkdir(parents=True, exist_ok=True)
        models = {"log_model": settings.log_model} if settings.log_model else {}
        if in_wandb_sweep():
            # The agent has made the run in its sweep's project and waits for the metric there: only an online run of
            # its name tells the sweep anything, whatever our configurations say (the demo's says disabled). Ours would
            # be another run, or the same one of two cells.
            self.logger = _outliving(WandbLogger(save_dir=folder, offline=False, **models))
            return
        offline = settings.mode == "offline"
        resume = {} if offline else {"resume": "allow"}  # offline, `wandb sync` joins the parts by their id
        named = {"name": folder.name, "project": settings.project, "id": run_id}
        self.logger = _outliving(WandbLogger(save_dir=folder, offline=offline, **named, **resume, **models))

    def start(self) -> None:
        """Starts W&B's run, or raises what W&B does."""
        _ = self.logger.experiment

    def begin(self, record: RunRecord) -> None:
        """Logs the configuration by its dotted keys, as overrides and the parameters of sweeps name them, and the
        record as it is now."""
        # What the sweep has set stands there under the same name, and W&B refuses to have it set again.
        held = set(self.logger.experiment.config.keys()) if in_wandb_sweep() else set()
        shown = {**dict(flatten(self._values)), CELL: config_hash(self._values)}
        self.logger.log_hyperparams({key: value for key, value in shown.items() if key not in held})
        summary = self.logger.experiment.summary
        for key in {CLAIM, "error"} & set(summary.keys()):  # of the attempt before
            del summary[key]
        self._log_record(record)

    def end(self, record: RunRecord) -> None:
        """Ends W&B's run, or the next one in this process would go on in it, with its record, and a finished record's
        figures or the error in its summary."""
        finished = record.status == "finished"
        self.logger.experiment.summary.update(final_figures(record) if finished else {"error": record.error})
        self._log_record(record)
        if in_wandb_sweep() and record.error == PREEMPTED:
            self.logger.experiment.mark_preempting()  # W&B's server gives it to an agent once more
        self.logger.experiment.finish(exit_code=int(not finished))

    def _log_record(self, record: RunRecord) -> None:
        """Puts the record among the files of W&B's run."""
        run = self.logger.experiment
        path = write_record(record, Path(run.dir) / RECORD_FILE)
        run.save(str(path), base_path=run.dir, policy="now", glob=False)  # a folder's name may hold brackets


def _outliving(logger: Any) -> Any:
    """Returns Lightning's logger so that a run which is asked to stop ends its step: who signals all processes of a job
    has ended W&B's own, and nothing more can be logged."""
    log = logger.log_metrics

    def log_metrics(*args: Any, **kwargs: Any) -> None:
        try:
            log(*args, **kwargs)
        except Exception:
            time.sleep(SIGNALS_APART_SECONDS)  # the signal may reach this process last
            if interrupts.noted() is None:
                raise

    logger.log_metrics = log_metrics
    return logger


def tell_sweep(task: Task, record: RunRecord) -> None:
    """Tells W&B's sweep of a run that was finished before: the agent's run would stay without the metric else."""
    tracking = WandbTracking(task, record.run_id)
    tracking.begin(record)
    for epoch in record.metrics["epochs"]:
        tracking.logger.log_metrics(epoch, step=epoch["epoch"])  # the record does not know the steps
    tracking.end(record)


def tell_sweep_of_failure(error: BaseException) -> None:
    """Tells W&B's sweep that the agent's run failed before there was a logger: it would stay unfinished for ever."""
    if not in_wandb_sweep() or _logged or this_rank().number:
        return
    import wandb

    run = wandb.init()
    run.summary["error"] = str(error)
    run.finish(exit_code=1)
