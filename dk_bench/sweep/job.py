"""A run of a sweep on its way: waiting, at another process, running here, ended; and the training run that it is."""

import contextlib
import math
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from filelock import FileLock

from dk_bench import tasks
from dk_bench.errors import BusyError, UserError
from dk_bench.runs.attempts import was_interrupted
from dk_bench.runs.early_stop import forget_reason
from dk_bench.runs.lock import claim, hold, is_held
from dk_bench.runs.record import TRAINING, RunRecord, attempts_of, is_tested, read_record, utc_now, write_record
from dk_bench.sweep.hyperband import Hyperband
from dk_bench.sweep.time_left import seconds_taken, seconds_trained
from dk_bench.training.task import Task

LOOK_SECONDS = 1.0  # between looking whether a run that another process is at has ended
SEED = re.compile(r"-*seed=")  # how the argument begins that a run's seed is given by
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# Starts a command with its output going to a log, in an environment; what it returns is used like a Popen.
Starter = Callable[[list[str], IO[bytes], dict[str, str]], Any]


@dataclass
class TrainingRun:
    """A training run by its folder, below ``output``. ``attempts``: how many of it this sweep knows."""

    folder: Path
    output: Path
    attempts: int = 0
    spared: float = 0.0  # seconds of training that its checkpoint holds
    taken: FileLock | None = field(default=None, repr=False, compare=False)  # this runner's claim on it
    tests: tuple[str, ...] = ()  # what it is tested on at its end
    task: str = TRAINING  # its name, as in the record that the run leaves
    metrics: tuple[str, ...] = ()  # what its record holds of every epoch
    ends_early: bool = False  # whether a run that was stopped early has ended; otherwise it goes on

    @classmethod
    def of(cls, task: Task) -> Self:
        """Returns the run of a configuration."""
        metrics = ("train/loss", *task.metrics)
        return cls(task.folder, Path(task.run.output), tests=tuple(task.tests), task=task.name, metrics=metrics)

    def record(self) -> RunRecord | None:
        """Tells what the run's folder holds; None where no record can be read, or it is of another task."""
        with contextlib.suppress(UserError):  # training will say so
            record = read_record(self.folder / "record.json")
            return record if record.task == self.task else None  # the same
        return None

    def has_finished(self, record: RunRecord | None) -> bool:
        """Tells whether its record is finished, with test images' figures where there is a checkpoint to give them."""
        if record is None or record.status != "finished":
            return False
        return is_tested(record, self.tests) or not (self.folder / "last.ckpt").exists()

    def needs_no_more(self, record: RunRecord | None, code: int) -> bool:
        """Tells whether a process of the run that has ended with an exit status has left nothing to do. What came after
        a finished record, as telling W&B, may have failed: tables and the next start go by the record."""
        return self.has_finished(record)

    def was_stopped(self, record: RunRecord | None) -> bool:
        """Tells whether its record says that it was stopped early, which this sweep does too."""
        return self.ends_early and record is not None and record.status == "stopped"

    def note_stop(self, why: str) -> bool:
        """Tells whether the record says that the run was stopped early. Writes it where the run did not live to do so,
        if what ended it is that it was asked to."""
        forget_reason(self.folder)
        if (record := self.record()) and record.status == "stopped":
            return True
        with contextlib.suppress(OSError, BusyError), hold(self.folder):
            record = self.record()
            asked = record is not None and (record.status == "running" or was_interrupted(record.error))
            if asked and record.status in ("running", "failed"):
                record.status, record.error, record.ended = "stopped", why, record.ended or utc_now()
                write_record(record, self.folder / "record.json")
                return True
        return False

    def is_judged(self, record: RunRecord) -> bool:
        """Tells whether a record's epochs are those that the attempt under way goes on from. Until that has begun they
        are an earlier one's, whose checkpoint may be lost; and a run that finished before is only tested."""
        attempts = attempts_of(record)
        return len(attempts) > self.attempts and all(attempt["status"] != "finished" for attempt in attempts)

    def know(self) -> None:
        """Takes note of the attempts so far: what others make of the run counts from here on."""
        record = self.record()
        self.attempts = len(attempts_of(record)) if record else 0
        goes_on = record is not None and (self.folder / "last.ckpt").exists()
        self.spared = seconds_trained(record) if goes_on else 0.0

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
        ``finished``, ``stopped`` (early), ``failed``, or ``free``: nobody has begun it, or whoever did was cut off.

        Nobody holds it and its record says running: cut off, on whatever machine that was. Raises OSError.
        """
        if is_held(self.folder):
            return "held", ""
        record = self.record()
        if self.has_finished(record):
            return "finished", ""
        if self.was_stopped(record):
            return "stopped", record.error
        if record and record.status == "failed" and len(attempts_of(record)) > self.attempts:
            return ("free", "") if was_interrupted(record.error) else ("failed", record.error or "")
        return "free", ""


@dataclass
class Job:
    """One run on its way: what to start, where its output goes, and how it went."""

    name: str
    argv: list[str]
    log: Path
    run: TrainingRun | None = None  # where it leaves its record, if it is a training run
    # waiting, elsewhere (another process is at it), running, finished, failed, stopped (early), skipped
    state: str = "waiting"
    reason: str = ""  # why it failed, was stopped or was skipped
    failures: int = 0
    started: float = 0.0  # time.monotonic()
    seconds: float = 0.0  # how long it took, once it has ended
    process: subprocess.Popen | None = field(default=None, repr=False)
    looked: float = -math.inf  # time.monotonic() when it was last seen to be at another process
    point: Mapping[str, Any] = field(default_factory=dict)  # the values of the sweep's parameters
    early: Hyperband | None = None  # the sweep's rule of which runs stop early
    stopping: str = ""  # why it was asked to stop early
    kill_at: float = math.inf  # time.monotonic() from which on it has had its time to do so
    origin: str = ""  # how the point was found, where that is no grid's order: for its log
    environment: Mapping[str, str] = field(default_factory=dict)  # its own variables, beside its worker's

    @property
    def kind(self) -> str:
        """Names what takes equally long: commands that differ in the seed alone."""
        return " ".join(part for part in self.argv if not SEED.match(part))

    @property
    def has_ended(self) -> bool:
        return self.state in ("finished", "failed", "stopped", "skipped")

    def last_line(self) -> str:
        """Returns the last line of output that says something, without terminal codes; empty before there is one."""
        try:
            with open(self.log, "rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 4096))
                tail = stream.read().decode(errors="replace")
        except OSError:  # not started, or the log could not be made
            return ""
        lines = (TERMINAL_CODES.sub("", line).strip() for line in re.split(r"[\r\n]", tail))
        return next((line for line in reversed([*lines]) if line), "")

    def look(self) -> None:
        """Finds what others have made of the run: it is theirs, has ended, or is for us to start (``waiting``), and
        then no other runner's until it has ended."""
        if self.run is None or (self.state == "elsewhere" and time.monotonic() < self.looked + LOOK_SECONDS):
            return
        self.looked = time.monotonic()
        try:
            fate, why = self.run.look() if self.run.claim() else ("held", "")
        except OSError as error:
            self._fail_to_start(error)
            return
        if fate != "free":
            self.run.release()
        self.state = {"held": "elsewhere", "finished": "skipped", "free": "waiting"}.get(fate, fate)
        if fate == "finished" and (record := self.run.record()):
            self.seconds = seconds_taken(record) or 0.0
        told = {"finished": "finished elsewhere", "failed": f"elsewhere: {why}", "stopped": why}
        self.reason = told.get(fate, self.reason)

    def start(self, starter: Starter, environment: dict[str, str]) -> bool:
        """Tells whether it runs now; otherwise it failed."""
        self.started = time.monotonic()
        if self.run:
            self.run.know()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as log:
                origin = f"# {self.origin}\n" if self.origin else ""
                log.write(f"{origin}$ {shlex.join(self.argv)}\n".encode())
                log.flush()
                self.process = starter(self.argv, log, {**environment, **self.environment})
        except (OSError, ValueError) as error:  # ValueError: an argument with a zero byte
            self._fail_to_start(error)
            return False
        self.state = "running"
        return True

    def end(self) -> None:
        """Takes note of how its process has ended: by the record of a training run, else by the exit status."""
        stopped = bool(self.stopping and self.run) and self.run.note_stop(self.stopping)
        self.release()
        self.seconds = time.monotonic() - self.started
        if stopped:
            self.state, self.reason = "stopped", self.stopping
            return
        self.stopping, self.kill_at = "", math.inf
        code = self.process.returncode
        if code == BusyError.status and self.run:  # another process was quicker
            self.state, self.looked = "elsewhere", -math.inf
            return
        ended = f"exit status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        if self.run is None:
            self.state, self.reason = ("failed", ended) if code else ("finished", "")
        elif self.run.needs_no_more(record := self.run.record(), code):
            self.state, self.reason = "finished", f"{ended}, but its record is finished" if code else ""
        else:
            error = f": {record.error}" if record and record.error else ""
            says = f"its record says {record.status}{error}" if record else "it left no record"
            if record and record.status == "finished" and not is_tested(record, self.run.tests):
                says += f", without figures of {', '.join(self.run.tests)}"
            self.state, self.reason = "failed", ended if code else f"{ended}, but {says}"

    def fail(self, retries: int) -> None:
        """Counts a failure; up to ``retries`` times the run waits for another try."""
        self.failures += 1
        if self.failures <= retries:
            self.state = "waiting"
            if self.run:
                self.run.know()

    def release(self) -> None:
        """Gives back the run, if this runner has it."""
        if self.run:
            self.run.release()

    def _fail_to_start(self, error: Exception) -> None:
        self.release()
        self.state, self.reason = "failed", f"cannot be started: {error}"


def task_in(argv: list[str]) -> Task | None:
    """Returns the task, with its configuration, of ``[...] dk-bench train CONFIG key=value...``, or ``-m dk_bench`` in
    place of ``dk-bench``; None for any other command. Raises UserError for a configuration that cannot be read."""
    arguments = training_arguments(argv)
    return tasks.load(arguments[0], arguments[1:]) if arguments else None


def training_arguments(argv: list[str]) -> list[str]:
    """Returns configuration and overrides of such a command; nothing of any other."""
    for start in range(len(argv) - 2):
        is_module = start > 0 and argv[start - 1 : start + 1] == ["-m", "dk_bench"]
        if (is_module or Path(argv[start]).name == "dk-bench") and argv[start + 1] == "train":
            return argv[start + 2 :]
    return []
