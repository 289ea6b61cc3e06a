"""``dk-bench erf MODEL... [--images SOURCE] [--output FOLDER]``: measures and draws effective receptive fields."""

import argparse
from dataclasses import replace

from dk_bench.cli.checkpoints import checkpoints_below
from dk_bench.cli.options import add_models, add_number, add_output, check_folder, place
from dk_bench.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = "last.ckpt of a classification run, a folder of runs, or a timm name"
    add_models(parser, "models", "MODEL", models, "summary.csv")
    images = (
        "procedural; own (the procedural images that the models were validated on); random (noise); annotations in "
        "COCO's format; an image or a folder of them (%(default)s)"
    )
    parser.add_argument("--images", default="procedural", metavar="SOURCE", help=images)
    parser.add_argument("--root", metavar="FOLDER", help="where the annotations' images lie (images/ beside them)")
    add_number(parser, "--count", "N", "number of images (%(default)s)", default=16)
    add_number(parser, "--side", "PIXELS", "pixels the images are resized to (what the model was trained at)")
    parser.add_argument("--layer", metavar="NAME", help="module whose unit it is (the last feature map)")
    position = "unit by a place in the image, pixels (the object's centre)"
    parser.add_argument("--position", type=place, metavar="Y,X", help=position)
    parser.add_argument("--fixed-offsets", action="store_true", help="no gradient through the offset generators")
    held = "beside each model that adapts itself with offsets held at their mean over the images"
    parser.add_argument("--held-offsets", action="store_true", help=held)
    parser.add_argument("--replknet", action="store_true", help="also print what RepLKNet's tool would, to compare")
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV) (%(default)s)", "runs/erf")


def run(args: argparse.Namespace) -> None:
    """Measures every model on the same images; writes figures (PNG, PDF) and their numbers (CSV). Raises UserError."""
    from rich.console import Console

    from dk_bench.analysis.erf.study import FieldPlan, study_fields
    from dk_bench.analysis.erf.summary import summary
    from dk_bench.analysis.erf.tables import document, read_summary, write_study, write_summary
    from dk_bench.tables.terminal import show

    if bool(args.models) == bool(args.tables_from):
        raise UserError("expected models, or --tables-from CSV; one of them")
    for path in args.tables_from:
        print(*write_summary(*read_summary(path), path.parent, path.stem), sep="\n")
    if args.tables_from:
        return
    check_folder(args.output)
    if args.root and not args.images.lower().endswith(".json"):
        raise UserError(f"--root {args.root}: goes with --images and annotations, got {args.images}")
    source = (args.images, args.root, args.count, args.side)
    plan = FieldPlan(*source, args.layer, args.position, not args.fixed_offsets, args.held_offsets)
    study = study_fields(checkpoints_below(args.models, args.only), plan)
    numbers = (summary(study.observations), study.about, study.origins)
    with Console(stderr=True).status("drawing"):
        files = write_study(study.observations, study.pictures, args.output) + write_summary(*numbers, args.output)
    tables = document(*numbers)
    show(replace(tables, tables=tables.tables[:-1]), Console())  # where checkpoints are from is in the file
    if args.replknet:
        _print_replknet(study, args.layer)
    print(*files, sep="\n")


def _print_replknet(study, layer: str | None) -> None:
    from dk_bench.analysis.erf.study import replknet

    for subject in study.subjects:
        ratios = replknet(subject, study.pictures, layer)
        if ratios is None:  # the tool takes the positive part
            print(f"{subject.name}: no positive gradient of the middle unit, of which RepLKNet's tool could tell")
        else:
            shares = ", ".join(f"{share:.0%} in {ratio:.1%} of the area" for share, ratio in ratios.items())
            print(f"{subject.name}: {shares}")
