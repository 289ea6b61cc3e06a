"""Parameters and multiply-adds of the large models as we count them, kept in ``costs.json`` beside this file.

Counting all of them takes a minute or two, so the tables read the file; ``dk-bench tables --recount`` makes it again.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import timm
import torch

from dk_bench.errors import UserError
from dk_bench.files import write_atomically
from dk_bench.models.cost import count_cost
from dk_bench.tables.paper import PAPER_FILE

COSTS_FILE = PAPER_FILE.with_name("costs.json")

Costs = dict[str, dict[str, int]]


def count_costs(models: Iterable[str]) -> Costs:
    """Counts params, macs and sampling_macs of each model, for one image of 3 x 224 x 224 and 1000 classes."""
    with torch.device("meta"):  # counting needs no weights
        return {name: dataclasses.asdict(count_cost(timm.create_model(name))) for name in models}


def load_costs(path: str | Path = COSTS_FILE) -> Costs:
    """Returns the counts `write_costs` left, none without a file. Raises UserError for a file that holds no counts."""
    path = Path(path)
    if not path.exists():
        return {}
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))
        return {name: {key: int(count) for key, count in cost.items()} for name, cost in costs.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no counts of parameters and multiply-adds: {error}") from error


def write_costs(costs: Costs, path: str | Path = COSTS_FILE) -> Path:
    """Writes the counts atomically. Raises OSError where the file cannot be written."""
    return write_atomically(path, json.dumps(costs, indent=1) + "\n")
