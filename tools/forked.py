"""Runs that are forked from this process, for where importing would take longer than what they do."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import IO

from dk_bench.processes.interrupts import begin_anew


class Forked:
    """A function in a process forked from this one, with what the runner needs of a Popen, in place of what
    `dk_bench.sweep.runner.launch` starts. The function gives the exit status.

    This process may have threads that wait, but must not have used a GPU, which no fork could use then.
    """

    def __init__(self, function: Callable[[], int], log: IO[bytes], environment: Mapping[str, str]) -> None:
        def child() -> None:
            os.setsid()
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            os.environ.update(environment)
            begin_anew()
            sys.exit(function())

        self.process = multiprocessing.get_context("fork").Process(target=child)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        """Returns the exit status, negative for the signal that ended it; None while it runs."""
        return self.process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status, once it has ended. Raises subprocess.TimeoutExpired."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked process", timeout)
        return self.returncode
