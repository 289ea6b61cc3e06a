"""Reads records of runs that logged to W&B's server back through its API; the runs' folders hold the same."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError
from dk_bench.runs.record import as_failed, read_record, write_record

# The record among a run's files. `find_records` must not take the copy that W&B's client keeps in the run's folder.
RECORD_FILE = "dk_bench-record.json"
FETCHED = Path("runs/wandb")
ENDED = ("finished", "failed", "crashed", "killed")


def fetch_records(path: str, folder: str | Path = FETCHED) -> Path:
    """Writes the record of every run of a sweep (``ENTITY/PROJECT/SWEEP``) or of a project (``ENTITY/PROJECT``) below
    ``folder``, and returns the folder below it that then holds those records and no others.

    A record that says running while W&B says that the run has ended (its process was killed) is written as failed. A
    run without a record failed before it had one, or is none of ours; it is named on the standard error.

    Raises UserError where ``path`` is neither, W&B does not have it, or cannot be reached.
    """
    names = path.split("/")
    if len(names) not in (2, 3) or not all(names):
        raise UserError(f"--wandb is {path!r}, expected ENTITY/PROJECT/SWEEP or ENTITY/PROJECT")
    import wandb  # a second

    target, kept = Path(folder, *names), set()
    try:
        api = wandb.Api()
        for run in api.sweep(path).runs if len(names) == 3 else api.runs(path):
            if _fetch(run, target / run.id / "record.json"):
                kept.add(target / run.id / "record.json")
            else:
                print(f"{path}: run {run.id} ({run.state}) has no record", file=sys.stderr)
    except (wandb.Error, ValueError, OSError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: W&B does not give it: {why}") from error
    target.mkdir(parents=True, exist_ok=True)
    for gone in set(target.rglob("record.json")) - kept:  # those of the project's sweeps, fetched before, included
        gone.unlink()
    return target


def _fetch(run: Any, path: Path) -> bool:
    """Writes the record of a run of wandb.Api's to ``path``. False where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        for file in run.files([RECORD_FILE]):
            file.download(folder).close()
        if not Path(folder, RECORD_FILE).exists():
            return False
        record = read_record(Path(folder, RECORD_FILE))
    if record.status == "running" and run.state in ENDED:
        record = as_failed(record, f"its process is gone; W&B calls it {run.state}")
    write_record(record, path)
    return True
