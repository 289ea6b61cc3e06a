"""The training runs that a sweep's commands stand for, and how far they are, whoever trains them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.runs.attempts import was_interrupted
from dk_bench.runs.lock import claim, is_held
from dk_bench.runs.record import EVALUATION, RunRecord, as_it_stands, attempts_of, find_records, is_tested, read_record
from dk_bench.training.task import Task


@dataclass
class TrainingRun:
    """A training run by its folder, below ``output``. ``attempts``: how many of it this sweep knows."""

    folder: Path
    output: Path
    attempts: int = 0
    taken: FileLock | None = field(default=None, repr=False, compare=False)  # this runner's claim on it
    tests: tuple[str, ...] = ()  # what it is tested on at its end

    @classmethod
    def of(cls, task: Task) -> TrainingRun:
        """Returns the run of a configuration."""
        return cls(task.folder, Path(task.run.output), tests=tuple(task.tests))

    def record(self) -> RunRecord | None:
        """Tells what the run's folder holds; None where there is no record that can be read."""
        with contextlib.suppress(UserError):  # training will say so
            return read_record(self.folder / "record.json")
        return None

    def has_finished(self, record: RunRecord | None) -> bool:
        """Tells whether its record is finished, with test images' figures where there is a checkpoint to give them."""
        if record is None or record.status != "finished":
            return False
        return is_tested(record, self.tests) or not (self.folder / "last.ckpt").exists()

    def know(self) -> None:
        """Takes note of the attempts so far: what others make of the run counts from here on."""
        record = self.record()
        self.attempts = len(attempts_of(record)) if record else 0

    def claim(self) -> bool:
        """Takes the run for this runner, until `release`; False where another runner has it. Raises OSError."""
        self.taken = claim(self.folder)
        return self.taken is not None

    def release(self) -> None:
        """Gives the run back, if this runner has it."""
        if self.taken:
            self.taken.release()
        self.taken = None

    def look(self) -> tuple[str, str]:
        """Tells what others have made of the run since `know`, and why: ``held`` (a process trains it right now),
        ``finished``, ``failed``, or ``free``: nobody has begun it, or whoever did was cut off.

        Nobody holds it and its record says running: cut off, on whatever machine that was. Raises OSError.
        """
        if is_held(self.folder):
            return "held", ""
        record = self.record()
        if self.has_finished(record):
            return "finished", ""
        if record and record.status == "failed" and len(attempts_of(record)) > self.attempts:
            return ("free", "") if was_interrupted(record.error) else ("failed", record.error or "")
        return "free", ""


def task_in(argv: list[str]) -> Task | None:
    """Returns the task, with its configuration, of ``[...] dk-bench train CONFIG key=value...``, or ``-m
    dk_bench`` in place of ``dk-bench``; None for any other command.

    Raises UserError for a configuration that cannot be read.
    """
    for start in range(len(argv) - 2):
        is_module = start > 0 and argv[start - 1 : start + 1] == ["-m", "dk_bench"]
        if (is_module or Path(argv[start]).name == "dk-bench") and argv[start + 1] == "train":
            return tasks.load(argv[start + 2], argv[start + 3 :])
    return None


def training_runs(folder: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Yields folder and record, as it stands now, of the training runs below a folder."""
    for path in find_records([folder]) if folder.exists() else []:
        with contextlib.suppress(UserError):  # a file that is no record is no run
            record = as_it_stands(read_record(path))
            if record.task != EVALUATION:
                yield path.parent, record
