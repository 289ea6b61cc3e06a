"""``dk-bench models``: the models by timm name, with parameters and multiply-adds beside the paper's."""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from fnmatch import fnmatch

import timm
import torch
from rich.console import Console

from dk_bench.errors import UserError
from dk_bench.models import MODELS, Variant
from dk_bench.models.cost import Cost, count_cost
from dk_bench.tables.paper import figures_of_model
from dk_bench.tables.terminal import print_table

COLUMNS = ("name", "#P (M)", "paper #P (M)", "GMACs", "paper GFLOPs", "sampling GMACs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-size", type=int, default=224, metavar="PIXELS", help="height and width (224)")
    parser.add_argument("--filter", default="*", metavar="GLOB", help="names to list, for example 'resnet50dw*' (all)")
    parser.add_argument("--csv", action="store_true", help="comma-separated values, unrounded, in place of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the table. Raises UserError if no model has such a name or the input is too small for one."""
    models = [model for name, model in MODELS.items() if fnmatch(name, args.filter)]
    if not models:
        raise UserError(f"--filter: no model matches {args.filter!r}; the names are {', '.join(MODELS)}")
    if args.input_size < 1:
        raise UserError(f"--input-size: expected at least 1 pixel, got {args.input_size}")
    lines = [_line(model, args.input_size) for model in models]
    if args.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(COLUMNS)
        writer.writerows(line.cells("") for line in lines)
    else:
        _print_table(lines, args.input_size)
    return 0


@dataclass(frozen=True)
class _Line:
    name: str
    cost: Cost
    paper_params: float | None
    paper_flops: float | None

    def cells(self, decimals: str) -> tuple[str, ...]:
        """Returns the columns as text; ``decimals`` is the format of counted figures, "" for all digits."""
        paper = ["" if figure is None else str(figure) for figure in (self.paper_params, self.paper_flops)]
        counted = [
            format(figure, decimals)
            for figure in (self.cost.params / 1e6, self.cost.macs / 1e9, self.cost.sampling_macs / 1e9)
        ]
        return self.name, counted[0], paper[0], counted[1], paper[1], counted[2]


def _line(model: Variant, size: int) -> _Line:
    with torch.device("meta"):
        module = timm.create_model(model.name)
    figures = figures_of_model(model.name)
    return _Line(model.name, count_cost(module, (3, size, size)), figures.get("params"), figures.get("flops"))


def _print_table(lines: list[_Line], size: int) -> None:
    note = (
        "MACs are multiply-adds of convolutions and matrix products; bilinear sampling is apart. "
        "The paper's figures are for 224 x 224."
    )
    title = f"Cost of one image, 3 x {size} x {size}"
    print_table(Console(), title, COLUMNS, [line.cells(".3f") for line in lines], notes=[note])
