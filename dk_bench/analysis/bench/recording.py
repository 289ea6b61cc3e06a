"""Records of ``dk-bench bench``: what each says beside its figures; and one record of several instruction sets, each
measured in a process of its own, since libraries choose as they are loaded."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dk_bench.errors import UserError
from dk_bench.runs.environment import collect_git, collect_versions
from dk_bench.runs.hardware import collect_device, collect_machine
from dk_bench.runs.processor import HOLDING, instruction_sets_here, own_instruction_set

NATIVE = "native"
#: What holds our library, torch and oneDNN to an instruction set, in the environment.
HELD = {
    "avx512": {"DK_BENCH_CPU": "avx512", "ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "DEFAULT"},
    "avx2": {"DK_BENCH_CPU": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
LAST_WORDS = 500  # characters of what a process that failed said
LOAD_MARGIN = 0.25  # of the load average, what a system does beside any program
LEAST_CPU_SHARE = 0.97


class Watch:
    """Tells how quiet the machine is from here to `finish`: the load average, and the share of the time that this
    process had a core. A machine without a load average has None."""

    def __init__(self) -> None:
        self.load, self.wall, self.cpu = _load(), time.perf_counter(), time.process_time()

    def finish(self) -> dict[str, float | None]:
        """Returns load averages over a minute at start and end, and this process's processor seconds by the clock's."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"load_start": self.load, "load_end": _load(), "cpu_share": cpu / wall}


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def disturbances(watched: dict[str, float | None], threads: int, workers: int = 0) -> list[str]:
    """Tells, a sentence each, what in the answer of `Watch.finish` says that others were at work on the machine beside
    the threads of this process and its ``workers``, processes that it waits for."""
    said = []
    busy = threads + workers
    for moment in ("start", "end"):
        load = watched[f"load_{moment}"]
        if load is not None and load > busy + LOAD_MARGIN:
            said.append(f"the load average at the {moment} was {load:.2f}, with {busy} thread(s) in use here")
    share = watched["cpu_share"]
    if busy == 1 and share < LEAST_CPU_SHARE:
        said.append(f"this process had a core for {100 * share:.0f} % of the time")
    return said


def bench_record(
    kind: str,
    schema_version: int,
    settings: dict[str, Any],
    device: torch.device,
    measure: Callable[[], dict[str, Any]],
    workers: int = 0,
) -> dict[str, Any]:
    """Returns a record of what ``measure`` measures, as its one part, of the instruction set that this process uses;
    with up to so many ``workers`` at a time, processes that it waits for.

    To the part's ``warnings`` come, on the CPU, those of a machine that was not quiet meanwhile.
    """
    started = datetime.now(timezone.utc)
    machine, watch = collect_machine(), Watch()
    measured = measure()
    watched = watch.finish()
    others = disturbances(watched, torch.get_num_threads(), workers) if device.type == "cpu" else []
    part = {"instruction_set": own_instruction_set(), "machine": machine, "watched": watched} | measured
    return {
        "schema_version": schema_version,
        "kind": kind,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": collect_device(device),
        "versions": collect_versions(),
        "git": collect_git(),
        "settings": settings,
        "parts": [part | {"warnings": [*others, *measured["warnings"]]}],
    }


def default_instruction_sets() -> list[str]:
    """Returns both where the processor has both and the environment holds no library to one; else the native one."""
    here = instruction_sets_here()
    return here if len(here) > 1 and not any(name in os.environ for name in HOLDING) else [NATIVE]


def check_instruction_set(name: str) -> None:
    """Raises UserError for an instruction set that this processor has not."""
    here = [NATIVE, *instruction_sets_here()]
    if name not in here:
        raise UserError(f"--isa {name}: this processor has not what it needs, expected one of {', '.join(here)}")


def measure_held(
    names: Iterable[str], arguments: Sequence[str], on_start: Callable[[str], Any] = lambda name: None
) -> dict[str, Any]:
    """Returns one record of ``dk-bench`` with these arguments under each instruction set, one after the other.

    The arguments do not say where to write. Raises UserError if a process fails.
    """
    records = []
    for name in names:
        on_start(name)
        environment = os.environ | HELD.get(name, {})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "record.json"
            command = [sys.executable, "-m", "dk_bench", *arguments, "--isa", NATIVE, "--output", str(path)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip()[-LAST_WORDS:]
                raise UserError(f"--isa {name}: the process that measures ended with status {done.returncode}: {said}")
            records.append(json.loads(path.read_text(encoding="utf-8")))
    return join(records)


def join(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one record of the parts of several, which were measured one after the other."""
    parts = [part for record in records for part in record["parts"]]
    return records[0] | {"ended": records[-1]["ended"], "parts": parts}
