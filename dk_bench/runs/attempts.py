"""The attempts a run took: one, unless it failed or was interrupted and went on from its checkpoint.

An attempt is plain data: started, ended, status, error, git, device, versions; ``steps``, those of batches that it
trained on, which one that was killed may be without; while it runs also ``process``, by which a record can be told
whose process is gone without having written so (killed, or the machine went down).
"""

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dk_bench.runs.environment import told_by

FIELDS = ("started", "ended", "git", "device", "versions", "status", "error")
STALE = "stale: its process is gone and did not say why"
INTERRUPTED = "interrupted"  # how the error of an attempt that was asked to stop begins; " by SIGTERM" may follow


def attempt_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attempt that a record's own fields tell of; records from before there were attempts hold no other."""
    return {name: fields[name] for name in FIELDS}


def close_attempts(attempts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns attempts as they stand once another begins: one that still says ``running`` did not live to say more."""
    began = [{name: value for name, value in attempt.items() if name != "process"} for attempt in attempts]
    stale = {"status": "failed", "error": STALE}
    return [attempt | stale if attempt["status"] == "running" else attempt for attempt in began]


def was_interrupted(error: str | None) -> bool:
    """Tells whether an attempt's error says that it was asked to stop."""
    return error is not None and error.partition(" by ")[0] == INTERRUPTED


def this_process() -> dict[str, Any]:
    """Names this process among those of all machines, but not the machine: records are committed and passed on."""
    host = f"{platform.node()} {told_by('/etc/machine-id')}"
    boot = told_by("/proc/sys/kernel/random/boot_id")
    pid = os.getpid()
    return {"host": _digest(host), "boot": _digest(boot) if boot else None, "pid": pid, "began": _began(pid)}


def is_gone(process: Mapping[str, Any]) -> bool:
    """Tells whether a process that `this_process` named has ended; False where nobody knows: on another machine, and on
    Windows, where to ask is to interrupt it."""
    here = this_process()
    if process.get("host") != here["host"]:
        return False
    if process.get("boot") != here["boot"]:
        return True
    if here["began"] is not None:
        # A number is used again, after a restart of a container at once; the time at which its process began is not.
        return _began(process["pid"]) != process.get("began")
    if sys.platform == "win32":
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's by now, or still
        return False
    return False


def _began(pid: int) -> int | None:
    """Tells when a living process began, in the kernel's ticks since boot; None once it has ended, or without /proc."""
    # The second field, the program's name, may hold spaces and brackets; what is needed comes after it.
    fields = told_by(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if fields and fields[0] not in "ZX" else None  # Z: dead, its parent has not taken note


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
