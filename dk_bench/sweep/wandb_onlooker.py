"""How the runs of a sweep at W&B's server stand: from what the server knows, so that any machine can tell."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from dk_bench.errors import UserError
from dk_bench.runs.attempts import was_interrupted
from dk_bench.runs.wandb_server import CELL, RunAtWandb, SweepAtWandb, host_of
from dk_bench.sweep.onlooker import FIGURES
from dk_bench.sweep.time_left import words
from dk_bench.sweep.view import Row
from dk_bench.sweep.wandb_cells import CRASHED, FINISHED, NEVER, CellAtWandb, list_cells

# W&B's words for a run -> ours, of those that nobody is at any more.
ENDED = {FINISHED: "finished", "failed": "failed", "killed": "cut off", "preempted": "cut off", CRASHED: "cut off"}
EPOCHS = ("optim.epochs", "train_cfg.max_epochs")  # a classifier's, a detector's


class WandbOnlooker:
    """Tells how each cell of a sweep stands; one question to the server a look, and one about each run that is new.

    ``stalled_after``: seconds after which a run that lives and has logged nothing meanwhile is called stalled.
    """

    def __init__(self, server: SweepAtWandb, *, stalled_after: float) -> None:
        self.server, self.stalled_after = server, stalled_after
        metric = (server.config.get("metric") or {}).get("name")
        self.figures = (metric, *FIGURES) if metric else FIGURES
        self.hosts: dict[str, str] = {}  # by the run's id
        self.known: list[Row] | None = None

    def rows(self) -> list[Row]:
        """Returns a row for every cell; those of the last look where the server does not answer now, which it says on
        the standard error. Raises UserError where it has not answered once."""
        try:
            self.known = [self._row(cell) for cell in list_cells(self.server)[0]]
        except UserError as error:
            if self.known is None:
                raise
            print(f"{error}; shown is what it told before", file=sys.stderr)
        return self.known

    def _row(self, cell: CellAtWandb) -> Row:
        run = cell.run
        if run is None:
            return Row(cell.name, "waiting", reason=NEVER)
        kind, summary = str(run.config.get(CELL, "")), run.summary
        epochs = next((run.config[key] for key in EPOCHS if isinstance(run.config.get(key), int)), None)
        found = ((key, summary.get(key)) for key in self.figures)
        figure = next((f"{key} {value:.4g}" for key, value in found if isinstance(value, int | float)), "")
        took = _number(summary, "_runtime")
        told = {"kind": kind, "epochs": epochs, "figure": figure, "took": took}
        if run.is_alive:
            return self._at_work(cell, run, told)
        state = "stopped" if cell.was_ended_early else ENDED.get(cell.state, "cut off")
        state = "cut off" if state == "failed" and was_interrupted(run.error) else state
        done = epochs if state == "finished" else _done(run)
        return Row(cell.name, state, epoch=done, reason=run.error or "", **told)

    def _at_work(self, cell: CellAtWandb, run: RunAtWandb, told: dict[str, Any]) -> Row:
        logged, done = _number(run.summary, "_timestamp"), _done(run)
        began = logged is not None
        idle = max(0.0, time.time() - logged) if began else run.silence
        state = "stalled" if idle > self.stalled_after else "running" if began else "starting"
        reason = f"nothing logged in {words(idle)}" if state == "stalled" else ""
        left = told["took"] * (told["epochs"] - done) / done if told["took"] and told["epochs"] and done else None
        left = None if left is None else max(0.0, left - idle)
        return Row(cell.name, state, where=self._host(run), epoch=done, idle=idle, left=left, reason=reason, **told)

    def _host(self, run: RunAtWandb) -> str:
        if not self.hosts.get(run.id) and (host := host_of(run)):
            self.hosts[run.id] = host
        return self.hosts.get(run.id, "")


def _done(run: RunAtWandb) -> int | None:
    """Tells how many epochs a run has done: Lightning logs the number of the one that it is in, from 0 on."""
    epoch = _number(run.summary, "epoch")
    return None if epoch is None else int(epoch)


def _number(summary: Mapping[str, Any], key: str) -> float | None:
    value = summary.get(key)
    return value if isinstance(value, int | float) else None
