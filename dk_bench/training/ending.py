"""How a run ends: finished, diverged, interrupted, or because another process of it is gone."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl

from dk_bench.errors import UserError
from dk_bench.files import cannot_write
from dk_bench.processes import interrupts
from dk_bench.processes.meeting import ProcessLost
from dk_bench.processes.requeue import requeue
from dk_bench.processes.world import own_world
from dk_bench.runs.attempts import INTERRUPTED, was_interrupted
from dk_bench.runs.early_stop import reason_left
from dk_bench.runs.record import RunRecord, utc_now, write_record
from dk_bench.training.callbacks import RunKeeper
from dk_bench.training.own_trainer import Diverged
from dk_bench.training.tracking import Tracking

SIGNALS_APART_SECONDS = 0.5


@contextmanager
def together(trainer: pl.Trainer, keeper: RunKeeper | None = None) -> Iterator[None]:
    """Runs what the trainer does in all its processes; a run that trains has a ``keeper``. Where this process exits, as
    it waits for another one that is gone, it does before what is to be done at the end. An interrupt comes out as
    itself, not as Lightning's exit or as what it did to others."""

    def last_words(why: BaseException) -> None:
        if keeper:
            end(trainer, keeper, why)
        interrupted = isinstance(why, interrupts.Interrupted)
        print(f"{why}; the same command goes on" if interrupted else f"failed: {why}", file=sys.stderr, flush=True)
        if keeper and interrupted and (said := requeue(why)):
            print(said, file=sys.stderr)

    try:
        with own_world().together(trainer.world_size, last_words):
            yield
    except BaseException as error:
        # As torch says that a loader's worker is gone: whoever signals a whole group may reach this process last.
        if type(error) is RuntimeError:
            time.sleep(SIGNALS_APART_SECONDS)
        # No signal has brought these with it, and they are to be told in place of one: a launcher signals the others of
        # a rank that is gone.
        is_gone = isinstance(error, ProcessLost) and own_world().meeting is not None
        if is_gone or isinstance(error, Diverged) or cannot_write(error):
            interrupts.wind_down()
        elif not isinstance(error, interrupts.Interrupted):
            interrupts.hold_on()
        raise


def end(trainer: pl.Trainer, keeper: RunKeeper, error: BaseException | None = None) -> None:
    """Writes that the run has finished, failed with an error, or was stopped early by the runner that signalled it."""
    record = keeper.record
    record.status, record.error = ("finished", None) if error is None else ("failed", reason(error))
    if was_interrupted(record.error) and (why := reason_left(keeper.record_path.parent)):
        record.status, record.error = "stopped", why
    record.ended = utc_now()
    record.attempts[-1].setdefault("steps", 0)
    if trainer.is_global_zero:
        write_record(record, keeper.record_path)


def end_log(tracking: Tracking, record: RunRecord) -> None:
    """Ends a run's log. Where that fails, it hides no error that the run itself failed with; another signal ends it."""
    interrupts.heed_another()  # the record is written, and W&B waits for a network as long as it takes
    try:
        tracking.end(record)
    except Exception as error:
        if record.status == "finished":
            raise
        print(f"{tracking.name} could not be ended: {reason(error)}", file=sys.stderr)


def reason(error: BaseException) -> str:
    """Puts an exception into words; Lightning turns a plain KeyboardInterrupt into an exit."""
    if isinstance(error, interrupts.Interrupted | UserError | Diverged):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return INTERRUPTED
    return f"{type(error).__name__}: {error}".strip()
