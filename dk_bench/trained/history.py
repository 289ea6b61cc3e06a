"""What is known of how a model was trained: how far, and with which figures at the end."""

import re
from dataclasses import dataclass, field
from typing import Any, Self

from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.trained.load import Trained
from dk_bench.training.callbacks import RunKeeper

DIVERGED = re.compile(r"\b(nan|inf|infinity|not finite)\b", re.IGNORECASE)  # in the errors of such runs


@dataclass(frozen=True)
class History:
    """Tells how far training got, in epochs, and the figures at its end, by their names in records.

    ``asked`` is None where no configuration says it. ``error`` is why a run failed. ``finished`` is None where nothing
    is known, as of weights that have neither record nor checkpoint.
    """

    done: int = 0
    asked: int | None = None
    final: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    finished: bool | None = None

    @classmethod
    def of(cls, trained: Trained) -> Self:
        """Reads the record or, where there is none, what the checkpoint holds of it."""
        record, checkpoint = trained.record, trained.checkpoint
        asked = tasks.from_checkpoint(checkpoint, source=trained.path).epochs if checkpoint else None
        if record:
            epochs, final = record.metrics["epochs"], record.metrics["final"]
            final = final or (epochs[-1] if epochs else {})
            return cls(len(epochs), asked, final, record.error, record.status == "finished")
        epochs = RunKeeper.state_in(checkpoint or {}).get("epochs", [])
        return cls(len(epochs), asked, epochs[-1] if epochs else {}, None, len(epochs) == asked if asked else None)

    @property
    def progress(self) -> str:
        """Tells in words how far training got."""
        words = f"{self.done} of {self.asked} epochs" if self.asked else f"{self.done} epochs"
        return f"{words} ({self.error})" if self.error else words


def check_trained(trained: Trained, history: History, *, unfinished: bool = False) -> None:
    """Raises UserError for the model of a run that diverged, as its record says, and of one that has not ended, unless
    ``unfinished``. Weights that are not finite never come so far, see `dk_bench.load`."""
    if history.error and DIVERGED.search(history.error):
        raise UserError(f"{trained.path}: the run diverged: {history.error}; its model is of no use")
    if history.finished is False and not unfinished:
        raise UserError(f"{trained.path}: training got to {history.progress}; expected a finished run, or --unfinished")
