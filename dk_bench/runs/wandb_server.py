"""A sweep at W&B's server, as W&B's public API shows it: what it is made of, and its runs as they stand now.

Every question goes over the network. What keeps it from being answered is one sentence, a `UserError`.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dk_bench.errors import UserError
from dk_bench.runs.attempts import is_gone, this_process

ENDED = ("finished", "failed", "crashed", "killed", "preempted")
# W&B calls a run crashed that was not heard of for five minutes. One that was handed out and never begun, as its agent
# was killed meanwhile, it may call pending or running for hours.
SILENCE_SECONDS = 600.0
CELL = "config_hash"  # the key by which a run's configuration at W&B names its cell
CLAIM = "taken_up_by"  # the key of a run's summary that says who is about to go on with it
CLAIM_SECONDS = 600.0  # so long a claim holds; the run that begins takes it away
CLAIM_SETTLES_SECONDS = 3.0  # so long whoever has claimed a run waits before looking whether the claim is still there
PAGE = 100  # runs in one answer


@dataclass(frozen=True)
class RunAtWandb:
    """A run as the server told of it. ``config`` and ``summary`` are plain data; times are in UTC."""

    id: str
    state: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    created: datetime
    heard: datetime  # its last heartbeat
    raw: Any  # wandb.apis.public.Run

    @property
    def silence(self) -> float:
        """Returns how many seconds ago it was heard of."""
        return (datetime.now(timezone.utc) - self.heard).total_seconds()

    @property
    def is_alive(self) -> bool:
        """Tells whether a process may be at it."""
        return self.state not in ENDED and self.silence < SILENCE_SECONDS

    @property
    def has_fallen_silent(self) -> bool:
        """Tells whether W&B still calls it running, or pending, though its process must be gone."""
        return self.state not in ENDED and not self.is_alive

    @property
    def claimed_by(self) -> str | None:
        """Tells who has claimed the run and not begun it yet, and may still do so."""
        claim = self.summary.get(CLAIM) or {}
        is_old = time.time() - claim.get("at", 0.0) > CLAIM_SECONDS
        return None if is_old or is_gone(claim.get("process") or {}) else claim.get("by")

    @property
    def error(self) -> str | None:
        """Returns the error that its record holds, as its summary repeats it."""
        error = self.summary.get("error")
        return " ".join(str(error).split()) if error else None


@contextmanager
def asking(path: str) -> Iterator[None]:
    """Turns what W&B's client raises into a UserError about ``path``."""
    try:
        yield
    except Exception as error:
        its_own = type(error).__module__.partition(".")[0] == "wandb"  # some of its errors are no wandb.Error
        if not its_own and not isinstance(error, ValueError | OSError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: W&B does not give it: {why}") from error


def split_path(path: str, *, projects: bool = False) -> list[str]:
    """Returns the names in ENTITY/PROJECT/SWEEP, with ``projects`` also those in ENTITY/PROJECT. Raises UserError."""
    names = path.split("/")
    if len(names) not in ((2, 3) if projects else (3,)) or not all(names):
        raise UserError(f"--wandb is {path!r}, expected ENTITY/PROJECT/SWEEP{' or ENTITY/PROJECT' * projects}")
    return names


class SweepAtWandb:
    """A sweep at the server. Raises UserError where W&B does not have it or cannot be reached, at every question."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entity, self.project, self.name = split_path(path)
        import wandb

        with asking(path):
            self._api = wandb.Api()
            self._sweep = self._api.sweep(path)

    @property
    def config(self) -> dict[str, Any]:
        """Returns what the sweep's file says, as W&B filled it in."""
        with asking(self.path):
            return self._sweep.config

    def is_running(self) -> bool:
        """Tells whether agents that ask now are given runs."""
        with asking(self.path):
            self._sweep.load(force=True)
            return self._sweep.state.upper() in ("RUNNING", "PENDING")

    def runs(self, cell: str | None = None, seed: int | None = None) -> list[RunAtWandb]:
        """Returns the sweep's runs as they stand now, the oldest first; those of one ``cell`` (a configuration's hash)
        and ``seed`` alone, that have begun."""
        filters = [{"sweep": self.name}]
        if cell is not None:
            filters += [{f"config.{CELL}": cell}, {"config.seed": seed}]
        with asking(self.path):
            self._api.flush()
            project = f"{self.entity}/{self.project}"
            found = [*map(_told, self._api.runs(project, {"$and": filters}, per_page=PAGE, lazy=False))]
        return [run for run in found if cell is None or (run.config.get(CELL), run.config.get("seed")) == (cell, seed)]

    def run(self, run_id: str) -> RunAtWandb:
        """Returns one run as it stands now."""
        with asking(self.path):
            self._api.flush()
            return _told(self._api.run(f"{self.entity}/{self.project}/{run_id}"))

    def claim(self, run_id: str, name: str) -> bool:
        """Claims a run that has ended under ``name``; False where it lives, or somebody else has claimed it.

        W&B has no locks. Whoever finds no claim writes his own, waits longer than writing takes, and looks: of several
        that write at one time the last one's stands. The others see that and leave the run alone.
        """
        run = self.run(run_id)
        if run.is_alive or run.state == "finished" or run.claimed_by not in (None, name):
            return False
        with asking(self.path):
            run.raw.summary.update({CLAIM: {"by": name, "at": time.time(), "process": this_process()}})
        time.sleep(CLAIM_SETTLES_SECONDS)
        run = self.run(run_id)
        return not run.is_alive and run.claimed_by == name


def host_of(run: RunAtWandb) -> str | None:
    """Returns the name of the machine that a run began on; None where it has not said. One more question a run."""
    return (run.raw.metadata or {}).get("host")


def _told(run: Any) -> RunAtWandb:
    """Reads a run of wandb.Api's."""
    created = _time(run.created_at)
    heard = _time(run.heartbeat_at) if getattr(run, "heartbeat_at", None) else created
    return RunAtWandb(run.id, run.state, run.config, dict(run.summary_metrics), created, max(created, heard), run)


def _time(text: str) -> datetime:
    """Reads a time of the server's, which is UTC with or without saying so."""
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=timezone.utc)
