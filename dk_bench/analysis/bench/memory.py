"""How much memory operators with a bounded workspace take, in calls of a few images and of many."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from dk_bench.analysis.bench.calls import Setting, Shape
from dk_bench.analysis.bench.clock import peak_memory
from dk_bench.analysis.bench.operator_sets import OperatorSet

MANY = 16  # times the shape's batch


def measure_memory(
    chosen: OperatorSet, shapes: Iterable[Shape], setting: Setting, device: torch.device
) -> list[dict[str, Any]]:
    """Returns, of every call of the operators that have a bound, the most bytes that it holds beyond its operands, and
    the bytes of its results, which are among them; for the shape's batch and for many times as many images."""
    rows = []
    for shape in (replace(shape, batch=times * shape.batch) for shape in shapes for times in (1, MANY)):
        for call in chosen.make_calls(shape, setting, device):
            if call.operator in chosen.bounded:
                about = {"shape": str(shape), "batch": shape.batch, "operator": call.operator, "mode": call.mode}
                rows.append(about | {"peak": peak_memory(call.function, device), "results": call.results})
    return rows
