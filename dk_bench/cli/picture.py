"""``dk-bench picture [CONFIG] [key=value...] [--output FILE]``: draws a sheet of a data set's images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dk_bench.cli.options import add_number, add_output, check_file, writing
from dk_bench.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


CAPTIONS = {
    "train": "Training images, before augmentation.",
    "test": "Test images: a row a test set, row by row the same scenes with one factor replaced by one from beyond "
    "training.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "config", nargs="?", help="a file of configs/ (its data.procedural is drawn) or configs/det/ (with boxes)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.procedural.bend=0")
    add_output(parser, "FILE", "PNG to write (%(default)s)", "shapes.png")
    add_number(parser, "--rows", "N", "images of every class, or rows of five (%(default)s)", default=6)
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        default="train",
        help="images to draw; test: of every class the same scene in all test sets (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Draws a column of images for every class, or the training images of a detector. Raises UserError."""
    from PIL.PngImagePlugin import PngInfo

    if args.config and "=" in args.config and not Path(args.config).exists():  # the first is a configuration, if any
        args.config, args.overrides = None, [args.config, *args.overrides]
    check_file(args.output)
    page = _detection(args) if str(args.config).endswith(".py") else _classification(args)
    texts = PngInfo()  # where `dk-bench report` finds the caption
    texts.add_text("Description", CAPTIONS[args.split])
    with writing(args.output):
        page.save(args.output, format="PNG", pnginfo=texts)
    print(args.output)
    return 0


def _classification(args: argparse.Namespace) -> Image.Image:
    from dk_bench.config import load_config
    from dk_bench.data.procedural import sheet
    from dk_bench.data.shifts import held_out_sets
    from dk_bench.data.sources import open_images

    config = load_config(args.config, args.overrides).data
    if config.source != "procedural":
        raise UserError(f"key 'data.source' is {config.source!r}, expected procedural: there is nothing else to draw")
    if args.config is None:
        config.size = 64
    if args.split == "train":
        return sheet([open_images(config, "train")], args.rows)
    if not (names := held_out_sets(config)):
        raise UserError("there are no test images: expected data.procedural.test_images=N")
    return sheet([open_images(config, name) for name in names], args.rows, names)


def _detection(args: argparse.Namespace) -> Image.Image:
    if args.split != "train":
        raise UserError(f"--split is {args.split}, expected train: detectors have no test images of their own")
    from dk_bench.detection.mmengine_config import load_detection_config
    from dk_bench.detection.sheet import sheet

    return sheet(load_detection_config(args.config, args.overrides), args.rows)
