"""Cells of a sweep at W&B's server that its agents are given no more, trained here as the sweep's own runs.

A grid at the server hands out each point once. Whatever then became of the run, crashed, failed, killed, no agent gets
the point again. So the run is gone on with as W&B's agent would with a preempted one: by its own command, in the same
sweep and under the same name, where W&B's client appends to what it has logged.
"""

import os
import platform
import secrets
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dk_bench.errors import UserError
from dk_bench.runs.record import RunRecord
from dk_bench.runs.wandb_server import SweepAtWandb
from dk_bench.sweep.faults import is_number
from dk_bench.sweep.job import Job, TrainingRun
from dk_bench.sweep.listing import find_runs
from dk_bench.sweep.wandb_cells import FINISHED, NEVER, CellAtWandb, list_cells

ASK_SECONDS = 20.0  # between two questions to the server of how its runs stand


class Queue:
    """The cells of a sweep as they stand at the server, asked at most every `ASK_SECONDS`, and who asks."""

    def __init__(self, server: SweepAtWandb, output: str | None = None) -> None:
        self.server, self.output = server, output
        self.me = f"{platform.node()} process {os.getpid()} {secrets.token_hex(4)}"
        self._asked = time.monotonic()
        self.cells, self.strays = list_cells(server, output)

    def jobs(self, cells: Iterable[CellAtWandb]) -> list[Job]:
        """Returns jobs for cells that are to be trained here, where those that have finished are skipped and those that
        live elsewhere are waited for. Raises UserError as `find_runs` does."""
        cells = list(cells)
        jobs = [_Requeued(**vars(cell.job), queue=self, key=cell.key) for cell in cells]
        find_runs(jobs)
        for cell, job in zip(cells, jobs, strict=True):
            if cell.finished:
                job.state, job.reason = "skipped", f"finished before, run {cell.run.id}"
                took = cell.run.summary.get("_runtime")
                job.seconds = float(took) if is_number(took) else 0.0
        for job in jobs:
            if job.run:
                job.run = _AsFarAsWandbKnows(**vars(job.run))
                job.run.know()
        return jobs

    def cell(self, key: str) -> CellAtWandb | None:
        """Returns the cell of a `CellAtWandb.key` as it stood when the server was last asked; None where the server has
        no such point any more. Raises UserError where it cannot be asked now."""
        if time.monotonic() > self._asked + ASK_SECONDS:
            self._asked = time.monotonic()  # a server that does not answer is not asked the more for it
            self.cells, self.strays = list_cells(self.server, self.output)
        return next((cell for cell in self.cells if cell.key == key), None)


def sort_out(cells: Sequence[CellAtWandb], is_running: bool) -> tuple[list[CellAtWandb], list[CellAtWandb]]:
    """Returns the cells that have to be trained here, or waited for, and those that agents are still given: what was
    never started or was preempted, as long as the sweep is running."""
    given = [cell for cell in cells if is_running and cell.state in (NEVER, "preempted")]
    ours = [cell for cell in cells if cell.is_lost or cell.is_alive or cell.state == NEVER]
    return [cell for cell in ours if cell not in given], given


class _AsFarAsWandbKnows(TrainingRun):
    """A training run that has finished once W&B knows: a process that was killed between its record and its last words
    to W&B is started again, to say them."""

    def has_finished(self, record: RunRecord | None) -> bool:
        return False

    def needs_no_more(self, record: RunRecord | None, code: int) -> bool:
        return code == 0 and super().has_finished(record)


@dataclass
class _Requeued(Job):
    """A cell's job that starts only if its run at the server is nobody else's."""

    queue: Queue | None = None
    key: str = ""  # its cell's
    asked: float = 0.0

    def look(self) -> None:
        """Finds what others have made of the cell, in its folder and at the server, and claims it there."""
        if self.state == "elsewhere" and time.monotonic() < self.asked + ASK_SECONDS:
            return
        self.state = "waiting"
        super().look()
        if self.state != "waiting":
            return
        self.asked = time.monotonic()
        try:
            self.state, self.reason = self._take_up()
        except UserError as error:
            print(f"{self.name}: {error}; asked again in {ASK_SECONDS:.0f} s", file=sys.stderr)
            self.state = "elsewhere"
        if self.state != "waiting":
            self.release()

    def _take_up(self) -> tuple[str, str]:
        """Returns the job's state and its reason."""
        cell = self.queue.cell(self.key)
        if cell is None:  # of a grid every point stays; of other methods, those of runs that are there
            return "failed", "its run is no longer at W&B's server"
        if cell.state == FINISHED:
            return "skipped", f"finished elsewhere, run {cell.run.id}"
        if cell.is_alive or cell.run and not self.queue.server.claim(cell.run.id, self.queue.me):
            return "elsewhere", ""
        self.environment = self._as_agent(cell)
        return "waiting", ""

    def _as_agent(self, cell: CellAtWandb) -> dict[str, str]:
        """Returns the variables by which W&B's agent tells its client whose run this is, and writes the parameters."""
        from wandb.sdk.lib.config_util import save_config_file_from_dict

        server, run_id = self.queue.server, cell.run.id if cell.run else secrets.token_hex(4)
        below = Path(os.environ.get("WANDB_DIR") or ".", "wandb", f"sweep-{server.name}").absolute()
        below.mkdir(parents=True, exist_ok=True)
        parameters = below / f"config-{run_id}.yaml"
        save_config_file_from_dict(str(parameters), {key: {"value": value} for key, value in cell.point.items()})
        names = {"ENTITY": server.entity, "PROJECT": server.project, "SWEEP_ID": server.name, "RUN_ID": run_id}
        names |= {"SWEEP_PARAM_PATH": str(parameters), "MODE": "online"}
        return {f"WANDB_{key}": value for key, value in names.items()}
