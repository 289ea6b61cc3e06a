"""How the runs in folders stand: from their locks, records, heartbeats and logs alone, so that any machine that has the
folder can tell. Nothing in the folders is changed."""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dk_bench.errors import UserError
from dk_bench.runs.attempts import STALE, was_interrupted
from dk_bench.runs.heartbeat import read_beat, seconds_idle
from dk_bench.runs.identity import is_mmengines, setting
from dk_bench.runs.lock import CLAIM, LOCK, holder, is_held
from dk_bench.runs.record import EVALUATION, RunRecord
from dk_bench.sweep.job import Job
from dk_bench.sweep.record_cache import RecordCache
from dk_bench.sweep.time_left import seconds_taken, words
from dk_bench.sweep.view import Row

OF_A_RUN = {"record.json", LOCK, CLAIM}  # files that only a run's folder has
FIGURES = ("val/top1", "val/mAP", "train/loss")  # the first of them that an epoch has is shown


class Onlooker:
    """Finds the runs below folders, or those of a sweep's jobs, and tells how each stands.

    ``stalled_after``: seconds without a step after which a run that its process still holds is called stalled.
    ``metric``: the figure to show in place of the first of `FIGURES`.
    """

    def __init__(
        self, folders: Iterable[Path], jobs: Sequence[Job] | None = None, *, stalled_after: float, metric: str = ""
    ) -> None:
        self.folders, self.jobs, self.stalled_after = list(folders), jobs, stalled_after
        self.figures = (metric, *FIGURES) if metric else FIGURES
        self.records = RecordCache()

    def rows(self) -> list[Row]:
        """Returns a row for every run that there is, and, of jobs, for every one that is to come; runs of one name are
        told with their folders. Raises UserError for a folder that is not there and a job that is no training run."""
        found = {run: folder for folder in self.folders for run in _runs_below(folder)}
        by_name: dict[str, list[Path]] = {}
        for run in found:
            by_name.setdefault(run.name, []).append(run)
        if self.jobs is None:
            named = [(run, _name(run.name, run, by_name[run.name])) for run in found]
            return [row for run, name in named if (row := self._row(run, name))]
        owned = {job.run.folder.resolve() for job in self.jobs if job.run}
        rows = []
        for job in self.jobs:
            if job.run is None:
                rows.append(_without_run(job))
                continue
            places = by_name.get(job.run.folder.name, [])
            others = owned - {job.run.folder.resolve()}  # a sweep over `output` has runs of one name itself
            places = [place for place in places if place.resolve() not in others]
            seen = [self._row(at, _name(job.name, at, places), found[at] / "logs" / job.log.name) for at in places]
            rows += [row for row in seen if row] or [Row(job.name, "waiting", kind_of(job.run.folder))]
        return rows

    def _row(self, run: Path, name: str, log: Path | None = None) -> Row | None:
        record = self.records.read(run / "record.json")
        if record is not None and record.task == EVALUATION:
            return None
        if record is not None and record.status == "finished":  # its lock need not be asked, over a network say
            return self._told(run, name, record, "finished")
        held = _holds(run, LOCK)
        if held or (held is None and record is not None and record.status == "running"):
            return self._at_work(run, name, record)
        if record is None:
            return _without_record(run, name, log)
        if record.status == "stopped":
            return self._told(run, name, record, "stopped")
        # By the lock alone, not `as_it_stands`, which knows processes of this machine only: all tell the same.
        is_cut = record.status == "running" or record.error == STALE or was_interrupted(record.error)
        return self._told(run, name, record, "cut off" if is_cut else "failed")

    def _at_work(self, run: Path, name: str, record: RunRecord | None) -> Row:
        now, beat, began = time.time(), read_beat(run), _modified(run / LOCK)
        began = began if began is not None else now
        if beat is not None and beat.time < began - 1:  # an earlier attempt's; some file systems know seconds alone
            beat = None
        idle = seconds_idle(beat, began, now)
        state = "stalled" if idle > self.stalled_after else "running" if beat or record else "starting"
        reason = f"no step in {words(idle)}" if state == "stalled" else ""
        left = beat.seconds_left() if beat and state == "running" else None
        left = None if left is None else max(0.0, left - idle)
        where = holder(run) or (beat.host if beat else "")
        row = self._told(run, name, record, state, beat.epochs if beat else None)
        took = row.took if row.took is not None else now - began
        return dataclasses.replace(row, where=where, idle=idle, left=left, took=took, reason=reason)

    def _told(self, run: Path, name: str, record: RunRecord | None, state: str, epochs: int | None = None) -> Row:
        """Returns a row with what a run's record tells, if there is one."""
        if record is None:
            return Row(name, state, kind_of(run), epochs=epochs)
        done = record.metrics["epochs"]
        last = done[-1] if done else {}
        figure = next((f"{key} {last[key]:.4g}" for key in self.figures if isinstance(last.get(key), int | float)), "")
        told = {"took": seconds_taken(record), "reason": record.error or ""}
        return Row(name, state, kind_of(run), "", len(done), epochs or _epochs_asked(record), figure, **told)


def _name(name: str, run: Path, alike: Sequence[Path]) -> str:
    """Returns a run's name, with the folder that it is in where there are several alike."""
    return f"{name} in {run.parent}" if len(alike) > 1 else name


def _without_run(job: Job) -> Row:
    """Tells of a job whose configuration cannot be read, which fails. Raises UserError for one of another command."""
    if job.state != "failed":
        raise UserError(f"run {job.name!r}: only those of `dk-bench train` leave what can be watched")
    return Row(job.name, "failed", reason=job.reason)


def _without_record(run: Path, name: str, log: Path | None) -> Row:
    """Tells of a run that has left no record: its process imports still, or ended before there was one."""
    if _holds(run, CLAIM):
        now = time.time()
        return Row(name, "starting", kind_of(run), idle=seconds_idle(None, _modified(run / CLAIM) or now, now))
    said = Job(name, [], log).last_line() if log else ""
    return Row(name, "failed", kind_of(run), reason=f"it left no record{f': {said}' if said else ''}")


def _holds(run: Path, lock: str) -> bool | None:
    """Tells whether a process has a run's lock; None where nobody may ask, in a folder that may only be read."""
    try:
        return is_held(run, lock)
    except OSError:
        return None


def kind_of(run: Path) -> str:
    """Returns what names the runs that take as long as that of a folder: those of its name and cell, whatever seed."""
    return run.name.rpartition("-s")[0]


def _runs_below(folder: Path) -> Iterator[Path]:
    """Yields the folders of runs below a folder, sorted; what lies inside a run's is not looked through."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    for place, folders, files in os.walk(folder):
        folders.sort()
        if OF_A_RUN & set(files):
            folders.clear()
            yield Path(place)


def _epochs_asked(record: RunRecord) -> int | None:
    if is_mmengines(record.config):
        return (record.config.get("train_cfg") or {}).get("max_epochs")
    return setting(record.config, "optim.epochs")


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
