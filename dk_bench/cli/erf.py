"""``dk-bench erf MODEL... [--images SOURCE] [--output FOLDER]``"""

from __future__ import annotations

import argparse

from dk_bench.cli.options import add_output, check_at_least, check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="last.ckpt of a classification run, or a timm name")
    parser.add_argument(
        "--images", default="procedural", metavar="SOURCE",
        help="procedural; random (noise); annotations in COCO's format; an image or a folder of them (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--root", metavar="FOLDER", help="where the annotations' images lie (images/ beside them)")
    parser.add_argument("--count", type=int, metavar="N", default=16, help="number of images (%(default)s)")
    parser.add_argument("--side", type=int, metavar="PIXELS",
                        help="pixels the images are resized to (what the model was trained at)")
    parser.add_argument("--layer", metavar="NAME", help="module whose unit it is (the last feature map)")
    parser.add_argument("--position", metavar="Y,X", help="unit by a place in the image, pixels (the object's centre)")
    parser.add_argument("--fixed-offsets", action="store_true", help="no gradient through the offset generators")
    parser.add_argument("--replknet", action="store_true", help="also print what RepLKNet's tool would, to compare")
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV) (%(default)s)", "runs/erf")


def run(args: argparse.Namespace) -> int:
    """Measures every model on the same images; writes figures (PNG, PDF) and their numbers (CSV). Raises UserError."""
    from rich.console import Console

    from dk_bench.analysis.erf_study import print_summary, replknet, study, write_study
    from dk_bench.analysis.pictures import open_model, open_pictures
    from dk_bench.errors import UserError

    check_at_least(args, count=1, side=1)
    check_folder(args.output)
    if args.root and not args.images.lower().endswith(".json"):
        raise UserError(f"--root {args.root}: goes with --images and annotations, got {args.images}")
    subjects = [open_model(text, args.side) for text in args.models]
    sides = {subject.side for subject in subjects}
    if len(sides) > 1:
        raise UserError(f"the models were made for images of {', '.join(map(str, sorted(sides)))} pixels; give --side")
    if twice := sorted({subject.name for subject in subjects if [s.name for s in subjects].count(subject.name) > 1}):
        raise UserError(f"{twice[0]}: several models of that name, kernels and seed; expected each once")
    side = sides.pop()
    position = _position(args.position, side)
    console = Console(stderr=True)
    try:
        with console.status("opening images"):
            pictures = open_pictures(args.images, side, args.count, args.root)
        rows = study(subjects, pictures, args.layer, position, not args.fixed_offsets)
        with console.status("drawing"):
            files = write_study(rows, pictures, args.output)
    except ValueError as error:
        raise UserError(f"{error}") from error
    print_summary(rows)
    for subject in subjects if args.replknet else ():
        with console.status(f"RepLKNet's numbers of {subject.name}"):
            try:
                ratios = replknet(subject, pictures, args.layer)
            except ValueError:  # it takes the positive part
                print(f"{subject.name}: no positive gradient of the middle unit, of which RepLKNet's tool could tell")
                continue
        text = ", ".join(f"{share:.0%} in {ratio:.1%} of the area" for share, ratio in ratios.items())
        print(f"{subject.name}: {text}")
    print("\n".join(map(str, files)))
    return 0


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
