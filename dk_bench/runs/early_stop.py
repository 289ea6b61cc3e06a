"""Why a run is about to be stopped early: a sweep's runner leaves it in the run's folder ahead of the signal, so that
the run's own last record, of which loggers get a copy, can tell."""

from contextlib import suppress
from pathlib import Path

FILE = "early_stop.txt"


def leave_reason(folder: Path, why: str) -> None:
    """Leaves the reason for the process that trains there."""
    with suppress(OSError):  # on a full disk, say: the runner writes it into the record itself, once the run has ended
        (folder / FILE).write_text(why, encoding="utf-8")


def reason_left(folder: Path) -> str:
    """Returns the reason that was left there; empty where the run is not to stop early."""
    try:
        return (folder / FILE).read_text(encoding="utf-8")
    except OSError:
        return ""


def forget_reason(folder: Path) -> None:
    """Takes the reason away, if there is one: it was for one attempt."""
    with suppress(OSError):  # not there, or not to be written to, which the record will say
        (folder / FILE).unlink()
