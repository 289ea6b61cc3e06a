"""Reads records of runs that logged to W&B's server back through its API; the runs' folders hold the same."""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import RunRecord, as_failed, read_record, write_record
from dk_bench.runs.wandb_server import ENDED, asking, split_path

# The record among a run's files. `find_records` must not take the copy that W&B's client keeps in the run's folder.
RECORD_FILE = "dk_bench-record.json"
FETCHED = Path("runs/wandb")


def fetch_records(path: str, folder: str | Path = FETCHED) -> Path:
    """Writes the record of every run of a sweep (``ENTITY/PROJECT/SWEEP``) or of a project (``ENTITY/PROJECT``) below
    ``folder``, and returns the folder below it that then holds those records and no others.

    A record that says running while W&B says that the run has ended (its process was killed) is written as failed. A
    run without a record failed before it had one, or is none of ours; it is named on the standard error. So are runs
    of one cell and seed that both finished.

    Raises UserError where ``path`` is neither, W&B does not have it, or cannot be reached.
    """
    names = split_path(path, projects=True)
    import wandb  # a second

    target, finished = Path(folder, *names), defaultdict(list)
    kept: dict[Path, RunRecord] = {}
    with asking(path):
        api = wandb.Api()
        for run in api.sweep(path).runs if len(names) == 3 else api.runs(path):
            record = record_of(run)
            if record is None:
                print(f"{path}: run {run.id} ({run.state}) has no record", file=sys.stderr)
                continue
            kept[write_record(record, target / run.id / "record.json")] = record
            if record.status == "finished":
                finished[config_hash(record.config), record.seed].append((record, run.id))
    for (cell, seed), runs in finished.items():
        _tell_of_reruns(path, cell, seed, runs)
    target.mkdir(parents=True, exist_ok=True)
    for gone in (
        set(target.rglob("record.json")) - kept.keys()
    ):  # those of the project's sweeps, fetched before, included
        gone.unlink()
    return target


def record_of(run: Any) -> RunRecord | None:
    """Returns the record of a run of wandb.Api's, failed in place of running where W&B says that the run has ended;
    None where it has none. Raises what W&B's client does, and UserError for a file that is no record."""
    with tempfile.TemporaryDirectory() as folder:
        for file in run.files([RECORD_FILE]):
            file.download(folder).close()
        if not Path(folder, RECORD_FILE).exists():
            return None
        record = read_record(Path(folder, RECORD_FILE))
    if record.status == "running" and run.state in ENDED:
        record = as_failed(record, f"its process is gone; W&B calls it {run.state}")
    return record


def _tell_of_reruns(path: str, cell: str, seed: int, runs: Sequence[tuple[RunRecord, str]]) -> None:
    """Says on the standard error that several runs of one cell and seed finished, as `dk_bench.tables.pooling` counts
    them. One record that several runs hold is one run: the others were told of it in place of training again."""
    if len({(record.run_id, record.started) for record, _ in runs}) < 2:
        return
    first, *others = (name for _, name in sorted(runs, key=lambda run: (run[0].started, run[0].run_id)))
    print(
        f"{path}: runs {first} and {', '.join(others)} both finished, of one cell ({cell}) and seed ({seed}); of those "
        f"of one kind of hardware tables count the one that began first, {first}, and mark the others as run again",
        file=sys.stderr,
    )
