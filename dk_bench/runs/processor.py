"""The processor, and which of its instruction sets the libraries compute with.

Nothing here names the machine: no host name, no path.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from dk_bench.files import write_atomically
from dk_bench.runs.environment import told_by

CPUINFO, CPUS = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu")
# What decides how wide a vector is and which products there are; the rest of the flags says nothing of speed here.
FLAGS = re.compile(r"sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|bf16|i8mm|fphp")
HOLDING = (
    "DK_BENCH_CPU ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS MKL_CBWR".split()
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


def processor() -> dict[str, Any]:
    """Returns name, vendor, family, model, stepping and the flags of `FLAGS`, as Linux tells of the first core; the
    name is the architecture's where the system does not tell."""
    first = told_by(CPUINFO).partition("\n\n")[0]
    fields = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", first, re.MULTILINE))
    name = fields.get("model name") or (not first and platform.processor()) or platform.machine()
    known = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}
    told = {key: fields[field] for key, field in known.items() if field in fields}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {"name": name, **told, "flags": [flag for flag in flags if FLAGS.fullmatch(flag)]}


def caches() -> list[dict[str, Any]]:
    """Lists the caches of the first core: level, type, bytes, and how many cores share one."""
    found = []
    for folder in sorted(CPUS.glob("cpu0/cache/index*")):
        level, kind, size, shared = (told_by(folder / n) for n in ("level", "type", "size", "shared_cpu_list"))
        number = re.fullmatch(r"(\d+)([KMG]?)", size)
        if level and kind and number:
            size = int(number[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[number[2]]
            ends = [part.split("-") for part in (shared or "0").split(",")]  # as 0-3,8
            cores = sum(int(each[-1]) - int(each[0]) + 1 for each in ends)
            found.append({"level": int(level), "type": kind, "bytes": size, "cores": cores})
    return found


def own_instruction_set() -> str:
    """Tells what our operators are compiled for on the CPU: baseline, avx2, avx512; reference in plain PyTorch."""
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
    if kept:
        with contextlib.suppress(OSError, ValueError):  # there is none yet, or a damaged one
            answer = json.loads(kept.read_text())
            if isinstance(answer, dict) and answer.keys() == SAID.keys():
                return answer
    answer = _ask()
    if kept and any(answer.values()):
        with contextlib.suppress(OSError):  # a folder that cannot be written: the next process asks again
            write_atomically(kept, json.dumps(answer))
    return answer


def _kept() -> Path | None:
    """Returns the file of the answer, by processor, torch and environment; None where the user has no such folder."""
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
    """Lists those of ``avx2`` and ``avx512`` that this processor has for all three libraries, the wider one first."""
    flags = set(processor()["flags"])
    needed = {"avx512": {"avx512f", "avx512vl", "avx512dq", "avx512bw"}, "avx2": set()}
    return [name for name, also in needed.items() if {"avx2", "fma"} | also <= flags]
