"""``dk-bench models``: the models by timm name, with parameters and multiply-adds beside the paper's; or what a spec
makes of the convolutions of one."""

import argparse
import csv
import dataclasses
import sys
from fnmatch import fnmatch

import timm
import torch
from rich.console import Console

from dk_bench.classification.timm_models import base_and_spec, build_model, deform_as_named, without_initial_weights
from dk_bench.cli.options import add_number
from dk_bench.config import ModelConfig, load_config
from dk_bench.errors import UserError
from dk_bench.models import MODELS, KernelSpec, Outcome, outcomes_of
from dk_bench.models.cost import Cost, count_cost
from dk_bench.tables.entries import Number, Right
from dk_bench.tables.paper import figures_of_model
from dk_bench.tables.table import Column, Document, Table, make_table
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
SIZE = 224  # pixels, as the paper has it
NOTE = (
    "MACs are multiply-adds of convolutions and matrix products; bilinear sampling is apart. "
    "The paper's figures are for 224 x 224."
)
CONVOLUTIONS: list[Column[Outcome]] = [
    Column("convolution", lambda each: each.name),
    Column("kernel", lambda each: each.kernel),
    Column("becomes", lambda each: each.layer),
    Column("stays", lambda each: each.reason),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = "list the convolutions of one model, and what becomes of each: model.name=resnet50 model.spec.dense=local"
    parser.add_argument("overrides", nargs="*", metavar="model.key=value", help=model)
    add_number(parser, "--input-size", "PIXELS", f"height and width ({SIZE})", default=SIZE)
    parser.add_argument("--filter", default="*", metavar="GLOB", help="names to list, for example 'resnet50dw*' (all)")
    parser.add_argument("--csv", action="store_true", help="comma-separated values, unrounded, in place of a table")


def run(args: argparse.Namespace) -> None:
    """Prints the table. Raises UserError if no model has such a name, the input is too small for one, and for a spec
    that does not fit the model, below the table of its convolutions."""
    if args.overrides:
        _print_convolutions(args)
    else:
        _print(args, *_costs(args.filter, args.input_size))


def _costs(pattern: str, pixels: int) -> tuple[str, str, Table]:
    names = [name for name in MODELS if fnmatch(name, pattern)]
    if not names:
        raise UserError(f"--filter: no model matches {pattern!r}; the names are {', '.join(MODELS)}")
    size = (3, pixels, pixels)
    with torch.device("meta"):
        rows = [(name, count_cost(timm.create_model(name), size), figures_of_model(name)) for name in names]
    return "Cost of one image,", NOTE, make_table(f"3 x {pixels} x {pixels}", COLUMNS, rows)


def _print_convolutions(args: argparse.Namespace) -> None:
    if args.filter != "*" or args.input_size != SIZE:
        raise UserError("--filter and --input-size: are of the list of models; leave model.key=value out")
    if beside := [each for each in args.overrides if not each.startswith("model.")]:
        raise UserError(f"{beside[0]}: expected a key of the model, as model.name=resnet50")
    config = load_config(None, args.overrides).model
    base, spec = base_and_spec(config)
    with torch.device("meta"):
        model = build_model(_rigid(config, base), None)
    rows = outcomes_of(model, spec or KernelSpec())
    changed = f"{sum(bool(each.layer) for each in rows)} of {len(rows)} convolutions change"
    note = f"Deformed: {spec.words}." if spec else "Rigid."
    _print(args, f"{base}: {changed},", note, make_table("by name", CONVOLUTIONS, rows))
    deform_as_named(model, spec, config)  # what it refuses is told below


def _rigid(config: ModelConfig, base: str) -> ModelConfig:
    return dataclasses.replace(without_initial_weights(config), name=base, spec=None)


def _print(args: argparse.Namespace, title: str, note: str, table: Table) -> None:
    if args.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(table.columns)
        writer.writerows([getattr(value, "value", value) for value in row] for row in table.rows)
    else:
        show(Document("models", title, [note], [table]), Console())
