"""Processes that are started apart, in a group of their own: asked to stop, or ended, together with their children."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any


def apart() -> dict[str, Any]:
    """Returns what `subprocess.Popen` is told to start a process in a group of its own, so that Ctrl-C reaches only us,
    and `ask_to_stop` its data loaders too."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def ask_to_stop(process: subprocess.Popen) -> None:
    """Asks a group to stop in good order, by a signal that `interrupts` heeds; nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            os.killpg(process.pid, signal.SIGTERM)


def end(process: subprocess.Popen) -> None:
    """Ends a group at once; on Windows the process alone, whose children notice. Nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
