"""The machine that something was timed on: its processor, the instruction sets in use, and how quiet it was.

Nothing here names the machine: no host name, no path.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dk_bench.files import write_atomically
from dk_bench.runs.environment import cpu_name

CPUINFO, CPUS = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu")
# What decides how wide a vector is and which products there are; the rest of the flags says nothing of speed here.
FLAGS = re.compile(r"sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|bf16|i8mm|fphp")
HOLDING = (
    "DK_BENCH_CPU",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
# The libraries say what they chose at their first call, to whoever asks by these variables.
PROBE = """import torch
x = torch.ones(4, 64, 32, 32)
torch.nn.functional.conv2d(x, torch.ones(64, 64, 3, 3))
x.view(256, 1024) @ x.view(1024, 256)
"""
SAID = {
    "oneDNN": re.compile(r"^onednn_verbose.*,cpu,isa:(.+)$", re.MULTILINE),
    "MKL": re.compile(
        r"^MKL_VERBOSE .*?64 architecture (.+?)(?:(?: enabled)? processors)?, \w+ [\d.]+[GM]Hz", re.MULTILINE
    ),
}
LOAD_MARGIN = 0.25  # of the load average, what a system does beside any program
LEAST_CPU_SHARE = 0.97


def collect_machine(*, probe: bool = True) -> dict[str, Any]:
    """Returns the processor, its caches and cores, torch's threads, and the instruction sets that the libraries chose.

    What the system does not tell is None or left out. ``probe=False`` leaves out oneDNN and MKL.
    """
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "caches": _caches(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "threads": torch.get_num_threads(),
        "governor": _read(CPUS / "cpu0/cpufreq/scaling_governor"),
        "instruction_sets": instruction_sets(probe=probe),
        "held_by": {name: os.environ[name] for name in HOLDING if name in os.environ},
    }


def processor() -> dict[str, Any]:
    """Name, vendor, family, model, stepping and the flags of `FLAGS`, as Linux tells of the first core."""
    first = (_read(CPUINFO) or "").partition("\n\n")[0]
    fields = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", first, re.MULTILINE))
    known = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}
    told = {name: fields[field] for name, field in known.items() if field in fields}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {"name": cpu_name(), **told, "flags": [flag for flag in flags if FLAGS.fullmatch(flag)]}


def _caches() -> list[dict[str, Any]]:
    """Caches of the first core: level, type, bytes, and how many cores share one."""
    caches = []
    for folder in sorted(CPUS.glob("cpu0/cache/index*")):
        level, kind, size, shared = (_read(folder / n) for n in ("level", "type", "size", "shared_cpu_list"))
        found = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level and kind and found:
            size = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]
            caches.append({"level": int(level), "type": kind, "bytes": size, "cores": _count(shared or "0")})
    return caches


def _count(cores: str) -> int:
    """Tells how many cores a list such as ``0-3,8`` names."""
    ranges = [part.split("-") for part in cores.split(",")]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


def own_instruction_set() -> str:
    """Tells what our operators on the CPU are compiled for: baseline, avx2 or avx512; reference where plain PyTorch
    runs.
    """
    import torch

    from dk_bench.functional.loading import COMPILED, REFERENCE, operators_on

    return torch.ops.dk_bench.cpu_variant() if operators_on("cpu") == COMPILED else REFERENCE


def instruction_sets(*, probe: bool = True) -> dict[str, str | None]:
    """Tells what torch and our library compute with, and, with ``probe``, oneDNN and MKL under this process's
    environment; None where one does not say.

    These two are asked in a process of its own (3 s), once for a processor, version of torch and environment: the
    answer is kept below the user's cache folder, if there is one.
    """
    import torch

    own = {"torch": torch.backends.cpu.get_cpu_capability(), "dk_bench": own_instruction_set()}
    return own | (_probe() if probe else {})


@functools.cache
def _probe() -> dict[str, str | None]:
    kept = _kept()
    if answer := kept and _answer_in(kept):
        return answer
    answer = _ask()
    if kept and any(answer.values()):
        with contextlib.suppress(OSError):  # a folder that cannot be written: the next process asks again
            write_atomically(kept, json.dumps(answer))
    return answer


def _answer_in(kept: Path) -> dict[str, str | None] | None:
    """Returns the answer that a file holds; None where there is none, or a damaged one."""
    try:
        answer = json.loads(kept.read_text())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) and answer.keys() == SAID.keys() else None


def _kept() -> Path | None:
    """Returns the file of the answer that processor, torch and environment decide; None where the user has no such
    folder.
    """
    import torch

    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    asked = [PROBE, *(words.pattern for words in SAID.values())]
    known = [processor(), torch.__version__, {name: os.environ.get(name) for name in HOLDING}, asked]
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    return folder / "dk_bench" / f"instruction-sets-{name}.json" if folder.is_absolute() else None


def _ask() -> dict[str, str | None]:
    """Tells what oneDNN and MKL say of themselves under this process's environment; None where one says nothing."""
    environment = os.environ | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return dict.fromkeys(SAID)
    found = {name: words.search(done.stdout) for name, words in SAID.items()}
    return {name: match and match[1].strip() for name, match in found.items()}


def instruction_sets_here() -> list[str]:
    """Returns those of ``avx2`` and ``avx512`` that this processor has for all three libraries, the wider one first."""
    flags = set(processor()["flags"])
    needed = {"avx512": {"avx512f", "avx512vl", "avx512dq", "avx512bw"}, "avx2": set()}
    return [name for name, also in needed.items() if {"avx2", "fma"} | also <= flags]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


class Watch:
    """How quiet the machine is from here to `finish`: the load average, and the share of the time that this process
    had a core. A machine without a load average has None."""

    def __init__(self) -> None:
        self.load, self.wall, self.cpu = _load(), time.perf_counter(), time.process_time()

    def finish(self) -> dict[str, float | None]:
        """Load averages over a minute at start and end, and processor seconds of this process by seconds that went."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"load_start": self.load, "load_end": _load(), "cpu_share": cpu / wall}


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def disturbances(watched: dict[str, float | None], threads: int) -> list[str]:
    """Sentences on what says that others were at work on the machine, of what `Watch.finish` returned."""
    said = []
    for moment in ("start", "end"):
        load = watched[f"load_{moment}"]
        if load is not None and load > threads + LOAD_MARGIN:
            said.append(f"the load average at the {moment} was {load:.2f}, with {threads} thread(s) in use here")
    share = watched["cpu_share"]
    if threads == 1 and share < LEAST_CPU_SHARE:
        said.append(f"this process had a core for {100 * share:.0f} % of the time")
    return said
