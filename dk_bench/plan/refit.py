"""Makes ``efficiency.json`` again, by the records of ``dk-bench bench`` that there are."""

import json
from collections.abc import Iterable
from pathlib import Path

import timm
import torch

from dk_bench.errors import UserError
from dk_bench.files import write_atomically
from dk_bench.models.workload import Workload, count_workload
from dk_bench.plan.measured import read_speeds
from dk_bench.plan.roofline import FILE, fit_efficiency, load_efficiency


def refit(places: Iterable[Path], path: Path = FILE) -> Path:
    """Writes the efficiency that the records below the places show. Raises UserError where they lack a kind of device
    that the present file has."""
    places = list(places)
    fitted = fit_efficiency(places, base_workloads(places))
    if lacking := load_efficiency().keys() - fitted.keys():
        raise UserError(f"--refit: no records of {', '.join(sorted(lacking))} in {', '.join(map(str, places))}")
    return write_atomically(path, json.dumps(fitted, indent=1) + "\n")


def base_workloads(places: Iterable[Path]) -> dict[tuple[str, int], Workload]:
    """Counts what the rigid models of records do, by name and size."""
    found: dict[tuple[str, int], Workload] = {}
    for speed in read_speeds(places):
        key = speed.model, speed.size
        if speed.model == speed.base and key not in found:
            with torch.device("meta"):
                model = timm.create_model(speed.model).train()
            found[key] = count_workload(model, model, (3, speed.size, speed.size))
    return found
