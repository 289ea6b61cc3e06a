"""``dk-bench models``: the models by timm name, with parameters and multiply-adds beside the paper's."""

import argparse
import csv
import sys
from fnmatch import fnmatch

import timm
import torch
from rich.console import Console

from dk_bench.cli.options import add_number
from dk_bench.errors import UserError
from dk_bench.models import MODELS
from dk_bench.models.cost import Cost, count_cost
from dk_bench.tables.entries import Number, Right
from dk_bench.tables.paper import figures_of_model
from dk_bench.tables.table import Column, Document, make_table
from dk_bench.tables.terminal import show

Row = tuple[str, Cost, dict[str, float]]  # a model's name, what it costs, and the paper's figures
COLUMNS: list[Column[Row]] = [
    Column("name", lambda row: row[0]),
    Column("#P (M)", lambda row: Number(row[1].params / 1e6, 3)),
    Column("paper #P (M)", lambda row: Right(row[2].get("params", ""))),
    Column("GMACs", lambda row: Number(row[1].macs / 1e9, 3)),
    Column("paper GFLOPs", lambda row: Right(row[2].get("flops", ""))),
    Column("sampling GMACs", lambda row: Number(row[1].sampling_macs / 1e9, 3)),
]
NOTE = (
    "MACs are multiply-adds of convolutions and matrix products; bilinear sampling is apart. "
    "The paper's figures are for 224 x 224."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--input-size", "PIXELS", "height and width (224)", default=224)
    parser.add_argument("--filter", default="*", metavar="GLOB", help="names to list, for example 'resnet50dw*' (all)")
    parser.add_argument("--csv", action="store_true", help="comma-separated values, unrounded, in place of a table")


def run(args: argparse.Namespace) -> None:
    """Prints the table. Raises UserError if no model has such a name or the input is too small for one."""
    names = [name for name in MODELS if fnmatch(name, args.filter)]
    if not names:
        raise UserError(f"--filter: no model matches {args.filter!r}; the names are {', '.join(MODELS)}")
    size = (3, args.input_size, args.input_size)
    with torch.device("meta"):
        rows = [(name, count_cost(timm.create_model(name), size), figures_of_model(name)) for name in names]
    table = make_table(f"3 x {args.input_size} x {args.input_size}", COLUMNS, rows)
    if args.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(table.columns)
        writer.writerows([getattr(value, "value", value) for value in row] for row in table.rows)
    else:
        show(Document("models", "Cost of one image,", [NOTE], [table]), Console())
