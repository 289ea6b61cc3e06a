"""What a run that trains writes down every few seconds for those who watch it: ``progress.json`` in its folder.

It is no part of the record, and nothing is computed from it: it may be missing, and once the run has ended it is of no
use.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dk_bench.files import open_atomically, remove_leftovers

FILE = "progress.json"


@dataclass(frozen=True)
class Beat:
    """How far a run was at ``time``, in seconds since 1970 by the clock of ``host``.

    ``epoch`` epochs of ``epochs`` were done, and ``step`` batches of ``steps``, where that is known; ``first`` of them
    when, at ``began``, the first step of this attempt was done.
    """

    time: float
    epoch: int
    epochs: int
    step: int
    steps: int | None
    began: float
    first: int
    host: str
    pid: int

    def seconds_left(self) -> float | None:
        """Estimates how long the rest takes, as what this attempt has done so far; None before it can be told."""
        if not self.steps or self.step <= self.first:
            return None
        return (self.time - self.began) * (self.steps - self.step) / (self.step - self.first)


def clear_beats(folder: Path) -> None:
    """Removes the last beat, of an attempt that has ended or, killed, has left it, half-written too."""
    with suppress(OSError):  # who watches knows that it is old; the run itself needs none of it
        (folder / FILE).unlink(missing_ok=True)
        remove_leftovers(folder / FILE)


def write_beat(folder: Path, beat: Beat) -> None:
    """Writes a beat in place of the one before; on a full disk, or without the right to, it does not."""
    with suppress(OSError), open_atomically(folder / FILE, lasting=False) as stream:
        stream.write(json.dumps(asdict(beat)).encode())


def read_beat(folder: Path) -> Beat | None:
    """Returns a run's last beat; None where it has written none that can be read."""
    try:
        return Beat(**json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError):  # not written yet, or by another version
        return None


def seconds_idle(beat: Beat | None, since: float, now: float) -> float:
    """Tells for how many seconds a run that began at ``since`` has done no step; times in seconds since 1970. Clocks of
    several machines differ a little: it is never below 0."""
    return max(0.0, now - max(since, beat.time if beat else since))
