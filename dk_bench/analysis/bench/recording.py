"""Notes what every record of ``dk-bench bench`` says beside its figures: when, on what machine, with which code."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import torch

from dk_bench.analysis.bench.quiet import Watch, disturbances
from dk_bench.runs.environment import collect_git, collect_versions
from dk_bench.runs.hardware import collect_device, collect_machine
from dk_bench.runs.processor import own_instruction_set


def bench_record(
    kind: str,
    schema_version: int,
    settings: dict[str, Any],
    device: torch.device,
    measure: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Returns a record of what ``measure`` measures, as its one part, of the instruction set that this process uses.

    To the part's ``warnings`` come, on the CPU, those of a machine that was not quiet meanwhile.
    """
    started = datetime.now(timezone.utc)
    machine, watch = collect_machine(), Watch()
    measured = measure()
    watched = watch.finish()
    others = disturbances(watched, torch.get_num_threads()) if device.type == "cpu" else []
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
