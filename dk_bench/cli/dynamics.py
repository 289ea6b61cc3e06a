"""``dk-bench dynamics CHECKPOINT... [--data FILE] [--output FOLDER]``: what the offsets know of the objects."""

import argparse
from dataclasses import replace
from pathlib import Path

from dk_bench.analysis.dynamics import MIN_OBJECTS, PROCEDURAL
from dk_bench.cli.checkpoints import checkpoints_below
from dk_bench.cli.options import add_models, add_number, add_output, check_device, check_folder
from dk_bench.errors import UserError

SHOWN = 3  # tables on the terminal; the rest is in the file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    checkpoints = (
        "last.ckpt of a run, or a folder of runs; several of one model, of different seeds, give intervals over seeds"
    )
    add_models(parser, "checkpoints", "CHECKPOINT", checkpoints, "probe.csv")
    data = "annotations in COCO's format (the procedural images that the models are validated on)"
    parser.add_argument("--data", default=PROCEDURAL, metavar="FILE", help=data)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="of --data: its images (../images beside it)")
    add_number(parser, "--size", "PIXELS", "shorter side of the images (as in evaluation)")
    add_number(parser, "--objects", "N", "how many objects, at most (%(default)s)", default=2000, least=MIN_OBJECTS)
    add_number(parser, "--tsne", "N", "of them for t-SNE; 0: none (1000)", default=1000, least=0)
    add_number(parser, "--perplexity", "NUMBER", "of t-SNE (%(default)g)", default=30.0, least=0.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the models run (cpu)")
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV, Markdown) (%(default)s)", "dynamics")


def run(args: argparse.Namespace) -> None:
    """Collects, probes, draws and writes. Raises UserError for bad checkpoints, data and numbers."""
    from rich.console import Console

    from dk_bench.analysis.dynamics.figures import write_figures
    from dk_bench.analysis.dynamics.study import DynamicsPlan, study_dynamics
    from dk_bench.analysis.dynamics.tables import document, read_tables, write_dynamics, write_tables
    from dk_bench.tables.terminal import show

    if bool(args.checkpoints) == bool(args.tables_from):
        raise UserError("expected checkpoints, or --tables-from CSV; one of them")
    for path in args.tables_from:
        print(*write_tables(read_tables(path), path.parent, path.stem), sep="\n")
    if args.tables_from:
        return
    check_folder(args.output)
    if args.images and args.data == PROCEDURAL:
        raise UserError(f"--images {args.images}: goes with --data, annotations that name them")
    check_device(args.device)
    plan = DynamicsPlan(args.data, args.images, args.objects, args.size, args.device, args.tsne, args.perplexity)
    study = study_dynamics(checkpoints_below(args.checkpoints, args.only), plan)
    with Console(stderr=True).status("drawing"):
        written = write_tables(study.results, args.output)
        written += [write_dynamics(args.output, each, study.objects) for each in study.drawn]
        written += write_figures(study, args.output, args.tsne, args.perplexity)
    tables = document(study.results)
    show(replace(tables, tables=tables.tables[:SHOWN]), Console())
    print(f"wrote {', '.join(map(str, written))}")
