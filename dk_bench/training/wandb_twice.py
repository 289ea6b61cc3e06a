"""A run that W&B's agent started, and whether another run of the sweep is the same: one cell and seed train once."""

import os
import sys

from dk_bench.errors import BusyError, UserError
from dk_bench.processes.launchers import this_rank
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import RunRecord, write_record
from dk_bench.runs.wandb_records import record_of
from dk_bench.runs.wandb_server import SweepAtWandb, asking
from dk_bench.training.checkpoint import LAST
from dk_bench.training.task import Task

THIS_SWEEP = ("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_SWEEP_ID")  # as `wandb agent ENTITY/PROJECT/SWEEP` sets them


def finished_in_sweep(task: Task) -> RunRecord | None:
    """Returns the record of a run of the same cell and seed that has finished in the sweep of W&B's that this process
    is started for; it is then in the run's folder, too. None where there is none, or no sweep.

    Raises BusyError where a run of the same cell and seed lives. A server that does not answer stops no run.
    """
    path = "/".join(os.environ.get(name, "") for name in THIS_SWEEP)
    if not all(path.split("/")) or this_rank().number:
        return None
    try:
        found = SweepAtWandb(path).runs(config_hash(task.values), task.run.seed)
        others = [run for run in found if run.id != os.environ.get("WANDB_RUN_ID")]
        with asking(path):
            records = (record_of(run.raw) for run in others if run.state == "finished")
            record = next((record for record in records if record and record.status == "finished"), None)
    except UserError as error:
        print(f"{error}; whether another run of the sweep is the same is not known", file=sys.stderr)
        return None
    if record:
        if not (task.folder / LAST).exists():  # tests are added from a checkpoint, which must be the record's
            write_record(record, task.folder / "record.json")
        return record
    for run in others:
        if run.is_alive:
            heard = f"heard of {run.silence:.0f} s ago"
            raise BusyError(f"{path}: run {run.id}, {heard}, is training this cell and seed; expected one at a time")
    return None
