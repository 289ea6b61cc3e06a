"""The cells of a sweep at W&B's server, with the runs that were handed out for each and what became of them."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dk_bench.runs.attempts import INTERRUPTED
from dk_bench.runs.wandb_server import RunAtWandb, SweepAtWandb
from dk_bench.sweep.grid import DEFAULT_COMMAND, Sweep, as_sent
from dk_bench.sweep.job import Job
from dk_bench.sweep.listing import make_jobs

NEVER, FINISHED, CRASHED = "never started", "finished", "crashed"
# As an agent stops a run that the server ends. Other signals are somebody else's: Ctrl-C, the warning ahead of a limit.
ENDED_BY_SERVER = f"{INTERRUPTED} by SIGTERM"


@dataclass(frozen=True)
class CellAtWandb:
    """A point of a sweep, as the server has it, the job that would start it here, and its runs, the oldest first.
    ``early``: the server ends runs that do badly."""

    point: Mapping[str, Any]
    job: Job
    runs: Sequence[RunAtWandb] = ()
    early: bool = False

    @property
    def name(self) -> str:
        """Returns the values of the parameters that vary, as ``seed=1 model.name=resnet50dw``."""
        return self.job.name

    @property
    def key(self) -> str:
        """Names the point, whatever other points there are: the `name` lists what varies among those known so far."""
        return _key(self.point)

    @property
    def finished(self) -> list[RunAtWandb]:
        """Returns the runs that finished. There should be one; W&B does not keep a second one from it."""
        return [run for run in self.runs if run.state == FINISHED]

    @property
    def run(self) -> RunAtWandb | None:
        """Returns the run by which the cell stands: the first that finished, else one that lives, else the last."""
        living = [run for run in self.runs if run.is_alive]
        return next(iter([*self.finished, *reversed(living), *reversed(self.runs)]), None)

    @property
    def is_alive(self) -> bool:
        """Tells whether a process may be at it."""
        return self.run is not None and self.run.is_alive

    @property
    def state(self) -> str:
        """Returns W&B's word for the run (finished, running, failed, crashed, killed, ...), or `NEVER`. One that W&B
        still calls running long after it was last heard of has crashed."""
        if self.run is None:
            return NEVER
        return CRASHED if self.run.has_fallen_silent else self.run.state

    @property
    def is_lost(self) -> bool:
        """Tells whether it has not finished, nobody is at it, and a grid hands it out no more."""
        return not (self.run is None or self.finished or self.is_alive or self.was_ended_early)

    @property
    def was_ended_early(self) -> bool:
        """Tells whether it may be that the server ended it, for which it did not finish."""
        return self.early and (self.state == "killed" or self.run.error == ENDED_BY_SERVER)

    def told(self) -> str:
        """Returns the state, of which run, and why, in one line."""
        if self.run is None:
            return NEVER
        runs = self.finished if len(self.finished) > 1 else [self.run]
        words = [f"{'runs' if len(runs) > 1 else 'run'} {', '.join(run.id for run in runs)}"]
        if self.state != FINISHED and self.run.error:
            words.append(self.run.error)
        elif self.state == CRASHED:
            words.append(f"not heard of for {self.run.silence / 60:.0f} min")
        words += ["early_terminate ends such runs"] * self.was_ended_early
        return f"{self.state}{' twice or more' * (len(runs) > 1)} ({': '.join(words)})"


def list_cells(server: SweepAtWandb, output: str | None = None) -> tuple[list[CellAtWandb], list[RunAtWandb]]:
    """Returns the cells of a sweep, in the order in which W&B enumerates its grid, and the runs that belong to none:
    those whose agent was killed before W&B knew their parameters, say.

    Of another method than grid, whose points only the server knows, the cells are what it has handed out so far.
    ``output`` takes the place of the parameter of that name. Raises UserError.
    """
    config, runs = server.config, server.runs()
    parameters = config.get("parameters") or {}
    command, name = config.get("command") or DEFAULT_COMMAND, config.get("name") or server.name
    made = (name, config.get("program"), [*map(str, command)], parameters, config.get("run_cap"))
    points = Sweep(*made).points() if config.get("method") == "grid" else _handed_out(runs, parameters)
    by_point: dict[str, list[RunAtWandb]] = defaultdict(list)
    for run in runs:
        by_point[_key({key: run.config.get(key) for key in parameters})].append(run)
    early = bool(config.get("early_terminate"))
    jobs = make_jobs(_Listed(*made, listed=tuple(points)), output) if points else []
    both = zip(points, jobs, strict=True)
    cells = [CellAtWandb(point, job, by_point.pop(_key(point), []), early) for point, job in both]
    return cells, [run for left in by_point.values() for run in left]


def count_states(cells: Sequence[CellAtWandb]) -> str:
    """Tells how many cells there are in each state: ``50 cells: 41 finished, 2 running, 7 never started``."""
    counts = Counter(cell.state for cell in cells)
    return f"{len(cells)} cells: {', '.join(f'{count} {state}' for state, count in counts.most_common())}"


@dataclass(frozen=True)
class _Listed(Sweep):
    """A sweep whose points are known."""

    listed: tuple[dict[str, Any], ...] = ()

    def points(self) -> list[dict[str, Any]]:
        return list(self.listed)


def _handed_out(runs: Sequence[RunAtWandb], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the points that runs were given, each once."""
    complete = [run.config for run in runs if parameters.keys() <= run.config.keys()]
    points = [{key: config[key] for key in sorted(parameters)} for config in complete]
    return list({_key(point): point for point in points}.values())


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps({key: as_sent(value) for key, value in point.items()}, sort_keys=True)
