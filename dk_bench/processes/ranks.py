"""Which process of its run this one is: the only one, one that our own first one has started, or one that torchrun or
srun has started as a rank."""

import functools
import os
import threading
import time
from dataclasses import dataclass

from dk_bench.errors import UserError
from dk_bench.processes.launched import Place, launched

RANK = "DK_BENCH_RANK"  # what the first process tells a further one of: see `Rank`
LOOK_SECONDS = 0.5  # between looks whether the process that started this one is there


@dataclass(frozen=True)
class Rank:
    """The place of this process among those of its run: its number, how many there are, the port at which they meet on
    this machine, and the process that started it (0: nobody of ours). ``place`` says more where a launcher did."""

    number: int = 0
    size: int = 1
    port: int = 0
    parent: int = 0
    place: Place | None = None

    def environment(self) -> dict[str, str]:
        """Returns the variable by which a process that is started learns that it is this one."""
        return {RANK: f"{self.number} {self.size} {self.port} {self.parent}"}


@functools.cache  # it never changes, while the variables are taken away
def this_rank() -> Rank:
    """Tells which process of its run this one is: the first, unless another of ours started it to be a further one, or
    a launcher did so, see `dk_bench.processes.launched`.

    Raises UserError where our variable was set by somebody else, or came from a further process to what that started.
    """
    value = os.environ.get(RANK)
    if value is None:
        place = launched()
        return Rank(place.number, place.size, place.port, place=place) if place else Rank()
    try:
        rank = Rank(*map(int, value.split()))
    except (TypeError, ValueError):
        rank = None
    if rank is None or not 0 < rank.number < rank.size or rank.parent != os.getppid():
        raise UserError(f"environment variable {RANK} is {value!r}, expected none: dk-bench sets it itself")
    threading.Thread(target=_follow, args=(rank.parent,), daemon=True, name="follow-the-first-process").start()
    return rank


def _follow(parent: int) -> None:
    """Ends this process when the one that started it is gone: it has nothing to write, and would wait for ever."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
