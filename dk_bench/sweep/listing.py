"""Lists the runs of a sweep before any is started: their commands, their order, which training runs they are."""

import contextlib
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dk_bench.errors import UserError
from dk_bench.reading.overrides import split_override, standing
from dk_bench.runs.attempts import STALE
from dk_bench.runs.record import EVALUATION, as_it_stands, find_records, read_record
from dk_bench.sweep.grid import Sweep
from dk_bench.sweep.job import Job, TrainingRun, task_in
from dk_bench.sweep.time_left import seconds_taken


def make_queue(files: Sequence[Path], sweeps: Sequence[Sweep], output: str | None) -> list[list[Job]]:
    """Returns the jobs of several sweep files, see `make_jobs`, with names and logs of their own: those of sweeps of
    one name are told apart by their files and commands. Raises UserError for a run that would be there twice."""
    names, parts = Counter(sweep.name for sweep in sweeps), []
    for file, sweep in zip(files, sweeps, strict=True):
        label = sweep.name if names[sweep.name] == 1 else str(file)
        parts.append(make_jobs(sweep, output, label=label if len(sweeps) > 1 else ""))
    jobs = [job for part in parts for job in part]
    logs = Counter(job.log.name for job in jobs)
    for sweep, part in zip(sweeps, parts, strict=True):
        for job in part:
            if logs[job.log.name] > 1:
                job.log = job.log.with_name(f"{job.log.stem}-{_digest(sweep, job)}.log")
    owners: dict[Path, Job] = {}
    for job in jobs:
        if (other := owners.setdefault(job.log.resolve(), job)) is not job:
            same = f"runs {other.name!r} and {job.name!r} are one command, {shlex.join(job.argv)}"
            raise UserError(f"{same}; expected sweep files of one name to have no run in common")
    return parts


def make_jobs(sweep: Sweep, output: str | None, *, label: str = "") -> list[Job]:
    """Returns one job a run, in the grid's order. ``output`` takes the place of the parameter of that name. ``label``:
    what the jobs' names begin with. Raises UserError for two runs of one command."""
    points = [dict(sorted({**point, "output": output}.items())) if output else point for point in sweep.points()]
    origin = f"method random with seed {sweep.seed}" if sweep.method == "random" else ""
    shown = {key: _words([point[key] for point in points]) for key in points[0]}
    varying = [key for key, words in shown.items() if len(set(words)) > 1]
    jobs = []
    for number, point in enumerate(points, start=1):
        name = " ".join(f"{key}={shown[key][number - 1]}" for key in varying) or sweep.name
        values = _file_name("-".join(str(point[key]) for key in varying)) or "run"
        log = f"{_file_name(sweep.name) or 'sweep'}-{number:03d}-{values}.log"
        folder = Path(str(point.get("output", "runs"))) / "logs"
        if label:
            name = label if name == sweep.name else f"{label} {name}"
        jobs.append(Job(name, sweep.argv(point), folder / log, point=point, origin=origin, early=sweep.early))
    _check_apart(jobs)
    return jobs


def _digest(sweep: Sweep, job: Job) -> str:
    """Names a job's run by what it is, but its output: the order of files, their place and --output do not count."""
    own = {key: value for key, value in job.point.items() if key != "output"}
    return hashlib.sha256(json.dumps([sweep.program, sweep.command, own]).encode()).hexdigest()[:8]


def _words(values: Sequence[Any]) -> list[str]:
    """Returns a parameter's values as names have them: 1 and "1", which are two where both are there, as JSON."""
    texts, exact = [str(value) for value in values], [json.dumps(value) for value in values]
    several = Counter(text for text, _ in set(zip(texts, exact, strict=True)))
    return [written if several[text] > 1 else text for text, written in zip(texts, exact, strict=True)]


def check_parameter(jobs: list[Job], parameter: str, source: Path) -> None:
    """Raises UserError for a parameter that the jobs' file has not."""
    if unknown := [job for job in jobs if parameter not in job.point]:
        named = ", ".join(sorted(unknown[0].point))
        raise UserError(f"--by is {parameter!r}, expected a parameter of {source}: {named}")


def ordered(jobs: list[Job], parameter: str) -> list[Job]:
    """Returns the jobs by their value of a parameter, as the files list its values, else in the order given: a sweep
    that is cut off leaves whole blocks."""
    values = list(dict.fromkeys(str(job.point[parameter]) for job in jobs))
    return sorted(jobs, key=lambda job: values.index(str(job.point[parameter])))


def find_runs(jobs: list[Job]) -> list[tuple[Job, UserError]]:
    """Sets the training run that each job of ``dk-bench train`` stands for. Returns the jobs whose configuration
    cannot be read, and why: started, such a run fails by itself, and says so in its log.

    Raises UserError for two jobs that are one run, by other words, and for a value that a key takes for another.
    """
    unread: list[tuple[Job, UserError]] = []
    owners: dict[Path, Job] = {}
    for job in jobs:
        try:
            task = task_in(job.argv)
        except UserError as error:
            unread.append((job, error))
            continue
        if task is None:
            _check_early(job)
            continue
        _check_values(job, task.values)
        job.run = TrainingRun.of(task)
        _check_early(job)
        other = owners.setdefault(job.run.folder.resolve(), job)
        if other.argv != job.argv:
            why = "they differ in what changes no result; expected parameters that do"
            raise UserError(f"points {other.name!r} and {job.name!r} are one run, {job.run.folder}: {why}")
    return unread


def skip_finished(jobs: list[Job]) -> list[Path]:
    """Finds the runs that jobs of ``dk-bench train`` stand for, and marks those that have a finished record in their
    folder, which has the run's name, cell and seed in its own, or were stopped early by the sweep.

    Training would see that itself and return at once, but only after half a minute of imports for every few runs.
    Returns the folders of runs that were cut off on this machine; their jobs wait to be run, from the last checkpoint.
    Raises UserError as `find_runs` does.
    """
    find_runs(jobs)
    known = [job for job in jobs if job.run]
    for job in known:
        record = job.run.record()
        if job.run.has_finished(record):
            job.state, job.reason, job.seconds = "skipped", "finished before", seconds_taken(record) or 0.0
        elif job.run.was_stopped(record):
            job.state, job.reason = "stopped", record.error
        job.run.know()
    return [folder for output in dict.fromkeys(job.run.output for job in known) for folder in _stale_below(output)]


def _stale_below(folder: Path) -> Iterator[Path]:
    """Yields the folders of the training runs below a folder whose record says running while their process is gone."""
    for path in find_records([folder]) if folder.exists() else []:
        with contextlib.suppress(UserError):  # a file that is no record is no run
            record = as_it_stands(read_record(path))
            if record.error == STALE and record.task != EVALUATION:
                yield path.parent


def _check_apart(jobs: list[Job]) -> None:
    """Raises UserError for two points of one command: they would be one run, and the grid a run short."""
    seen: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        other = seen.setdefault(tuple(job.argv), job)
        if other is job:
            continue
        for key, value in job.point.items():
            if str(value) == str(other.point[key]) and repr(value) != repr(other.point[key]):
                same = f"which are one argument, {key}={value}; expected one of them"
                raise UserError(f"parameter '{key}' has {other.point[key]!r} and {value!r}, {same}")
        expected = "key 'command' with ${args_no_hyphens} or the like, so that every parameter that varies reaches it"
        same = f"points {other.name!r} and {job.name!r} are one command, {shlex.join(job.argv)}"
        raise UserError(f"{same}; expected {expected}")


def _check_early(job: Job) -> None:
    """Lets a run end early where its sweep says so. Raises UserError where nothing would tell when."""
    if job.early is None:
        return
    if job.run is None:
        raise UserError(f"early_terminate goes by the records of `dk-bench train`, and {job.argv[0]!r} writes none")
    if job.early.metric not in job.run.metrics:
        expected = f"which {job.name} has not; expected one of {', '.join(job.run.metrics)} for early_terminate"
        raise UserError(expected, key="metric.name", value=job.early.metric)
    job.run.ends_early = True


def _check_values(job: Job, values: Mapping[str, Any]) -> None:
    """Raises UserError where a parameter's value is not the one that its argument gives the configuration."""
    for name, written in job.point.items():
        if f"{name}={written}" not in job.argv or name == "data_root":  # which moves paths, and may lose a slash
            continue
        read = standing(values, split_override(f"{name}=")[0], ...)
        if read is not ... and not _is_same(written, read):
            raise UserError(
                f"run {job.name!r}: parameter '{name}' is {written!r} in the sweep file, and {read!r} to the "
                f"configuration, by the argument {name}={written}; expected a value of the kind that the key takes"
            )


def _is_same(written: Any, read: Any) -> bool:
    if isinstance(written, Mapping):
        return isinstance(read, Mapping) and all(_is_same(written[key], read[key]) for key in written if key in read)
    if isinstance(written, list):
        return isinstance(read, list | tuple) and len(written) == len(read) and all(map(_is_same, written, read))
    if isinstance(written, str) and isinstance(read, int | float) and not isinstance(read, bool):
        return yaml.safe_load(written) == written  # 1e-4, for which YAML has no number without quotes
    if isinstance(read, str):
        return written == read or type(written) is int and str(written) == read
    return written is read if isinstance(written, bool | None) else written == read


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text)[:100]
