"""``dk-bench picture [CONFIG] [key=value...] [--output FILE]``: draws a sheet of a data set's images."""

import argparse
from pathlib import Path

from dk_bench.cli.options import add_number, add_output, check_file
from dk_bench.errors import system_errors

CAPTIONS = {
    "train": "Training images, before augmentation.",
    "test": "Test images: a row a test set, row by row the same scenes with one factor replaced by one from beyond "
    "training.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config = "a file of configs/ (its data.procedural is drawn) or configs/det/ (with boxes)"
    parser.add_argument("config", nargs="?", help=config)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.procedural.bend=0")
    add_output(parser, "FILE", "PNG to write (%(default)s)", "shapes.png")
    add_number(parser, "--rows", "N", "images of every class, or rows of five (%(default)s)", default=6)
    split = "images to draw; test: of every class the same scene in all test sets (%(default)s)"
    parser.add_argument("--split", choices=("train", "test"), default="train", help=split)


def run(args: argparse.Namespace) -> None:
    """Draws a column of images for every class, or the training images of a detector. Raises UserError."""
    from PIL.PngImagePlugin import PngInfo

    from dk_bench import tasks

    if args.config and "=" in args.config and not Path(args.config).exists():  # the first is a configuration, if any
        args.config, args.overrides = None, [args.config, *args.overrides]
    check_file(args.output)
    sized = [] if args.config else ["data.size=64"]
    page = tasks.load(args.config, [*sized, *args.overrides]).sheet(args.rows, args.split)
    texts = PngInfo()  # where `dk-bench report` finds the caption
    texts.add_text("Description", CAPTIONS[args.split])
    with system_errors(f"--output {args.output}"):
        page.save(args.output, format="PNG", pnginfo=texts)
    print(args.output)
