"""``dk-bench erf MODEL... [--images SOURCE] [--output FOLDER]``: measures and draws effective receptive fields."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dk_bench.cli.options import add_only, add_output, check_at_least, check_folder, checkpoints_below

if TYPE_CHECKING:
    from dk_bench.analysis.pictures import Picture, Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="last.ckpt of a classification run, a folder of runs, or a timm name"
    )
    add_only(parser)
    parser.add_argument(
        "--images",
        default="procedural",
        metavar="SOURCE",
        help="procedural; own (the procedural images that the models were validated on); random (noise); annotations "
        "in COCO's format; an image or a folder of them (%(default)s)",
    )
    parser.add_argument("--root", metavar="FOLDER", help="where the annotations' images lie (images/ beside them)")
    parser.add_argument("--count", type=int, metavar="N", default=16, help="number of images (%(default)s)")
    parser.add_argument(
        "--side", type=int, metavar="PIXELS", help="pixels the images are resized to (what the model was trained at)"
    )
    parser.add_argument("--layer", metavar="NAME", help="module whose unit it is (the last feature map)")
    parser.add_argument("--position", metavar="Y,X", help="unit by a place in the image, pixels (the object's centre)")
    parser.add_argument("--fixed-offsets", action="store_true", help="no gradient through the offset generators")
    parser.add_argument(
        "--held-offsets",
        action="store_true",
        help="beside each model that adapts itself with offsets held at their mean over the images",
    )
    parser.add_argument("--replknet", action="store_true", help="also print what RepLKNet's tool would, to compare")
    parser.add_argument(
        "--tables-from",
        nargs="+",
        type=Path,
        default=(),
        metavar="CSV",
        help="measure nothing: write the tables of such summary.csv again, beside them",
    )
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV) (%(default)s)", "runs/erf")


def run(args: argparse.Namespace) -> int:
    """Measures every model on the same images; writes figures (PNG, PDF) and their numbers (CSV). Raises UserError."""
    from rich.console import Console

    from dk_bench.analysis.erf.study import study, write_study
    from dk_bench.analysis.erf.tables import print_summary, summary, write_summary
    from dk_bench.analysis.pictures import OWN, open_pictures
    from dk_bench.errors import UserError

    if bool(args.models) == bool(args.tables_from):
        raise UserError("expected models, or --tables-from CSV; one of them")
    if args.tables_from:
        return _tables_again(args.tables_from)
    subjects = _subjects(args)
    side = subjects[0].side
    position = _position(args.position, side)
    console = Console(stderr=True)
    try:
        with console.status("opening images"):
            pictures = open_pictures(args.images, side, args.count, args.root, subjects[0].data)
        if args.held_offsets:
            subjects = _with_controls(subjects, pictures)
        rows = study(subjects, pictures, args.layer, position, not args.fixed_offsets)
        images = f"validation images of {subjects[0].data.name}" if args.images == OWN else args.images
        about = {
            "images": images,
            "pictures": len(pictures),
            "side": side,
            "layer": args.layer,
            "position": position,
            "through_offsets": not args.fixed_offsets,
        }
        origins = list(dict.fromkeys(subject.origin for subject in subjects if subject.origin))  # controls share it
        lines = summary(rows)
        with console.status("drawing"):
            files = write_study(rows, pictures, args.output) + write_summary(lines, about, origins, Path(args.output))
    except ValueError as error:
        raise UserError(f"{error}") from error
    print_summary(lines)
    if args.replknet:
        _print_replknet(args, subjects, pictures, console)
    print("\n".join(map(str, files)))
    return 0


def _subjects(args: argparse.Namespace) -> list[Subject]:
    """Returns the models, of one side and each once. Raises UserError."""
    from dk_bench.analysis.pictures import OWN, open_model
    from dk_bench.errors import UserError

    check_at_least(args, count=1, side=1)
    check_folder(args.output)
    if args.root and not args.images.lower().endswith(".json"):
        raise UserError(f"--root {args.root}: goes with --images and annotations, got {args.images}")
    subjects = [open_model(text, args.side) for text in checkpoints_below(args.models, args.only)]
    sides = {subject.side for subject in subjects}
    if len(sides) > 1:
        raise UserError(f"the models were made for images of {', '.join(map(str, sorted(sides)))} pixels; give --side")
    if twice := sorted({subject.name for subject in subjects if [s.name for s in subjects].count(subject.name) > 1}):
        raise UserError(f"{twice[0]}: several models of that name, kernels and seed; expected each once")
    own = [subject for subject in subjects if args.images == OWN]
    for other in own[1:]:
        if other.data is None or own[0].data is None or other.data.procedural != own[0].data.procedural:
            raise UserError(f"--images {OWN}: {other.name} has other images than {own[0].name}; compare them apart")
    return subjects


def _with_controls(subjects: list[Subject], pictures: list[Picture]) -> list[Subject]:
    """Behind each model that adapts itself with offsets held. Raises UserError where nothing adapts in any."""
    from dk_bench.analysis.held import held_at_mean
    from dk_bench.errors import UserError

    held = [held_at_mean(subject, pictures) for subject in subjects]
    if not any(held):
        raise UserError(f"--held-offsets: nothing adapts in {', '.join(subject.name for subject in subjects)}")
    return [each for pair in zip(subjects, held, strict=True) for each in pair if each]


def _tables_again(paths: list[Path]) -> int:
    from dk_bench.analysis.erf.tables import read_summary, write_summary

    for path in paths:
        print("\n".join(map(str, write_summary(*read_summary(path), path.parent, path.stem))))
    return 0


def _print_replknet(args: argparse.Namespace, subjects: list[Subject], pictures: list[Picture], console) -> None:
    from dk_bench.analysis.erf.study import replknet

    for subject in subjects:
        with console.status(f"RepLKNet's numbers of {subject.name}"):
            try:
                ratios = replknet(subject, pictures, args.layer)
            except ValueError:  # it takes the positive part
                print(f"{subject.name}: no positive gradient of the middle unit, of which RepLKNet's tool could tell")
                continue
        text = ", ".join(f"{share:.0%} in {ratio:.1%} of the area" for share, ratio in ratios.items())
        print(f"{subject.name}: {text}")


def _position(text: str | None, side: int) -> tuple[float, float] | None:
    from dk_bench.errors import UserError

    if text is None:
        return None
    try:
        y, x = map(float, text.split(","))
    except ValueError as error:
        raise UserError(f"--position is {text!r}, expected two numbers: Y,X") from error
    if not (0 <= y < side and 0 <= x < side):
        raise UserError(f"--position is {text}, expected a place in the image of {side} x {side} pixels")
    return y, x
