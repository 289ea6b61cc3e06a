"""``dk-bench picture [CONFIG] [key=value...] [--out FILE]``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "config", nargs="?", help="a file of configs/ (its data.procedural is drawn) or configs/det/ (with boxes)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.procedural.bend=0")
    parser.add_argument("--out", default="shapes.png", metavar="FILE", help="PNG to write (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=6, help="images of every class, or rows of five (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draws a column of training images for every class, or the training images of a detector. Raises UserError."""
    from PIL.PngImagePlugin import PngInfo

    from dk_bench.errors import UserError

    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}, expected at least 1")
    page = _detection(args) if str(args.config).endswith(".py") else _classification(args)
    texts = PngInfo()  # where `dk-bench report` finds the caption
    texts.add_text("Description", "Training images, before augmentation.")
    try:
        page.save(args.out, format="PNG", pnginfo=texts)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror or error}") from error
    print(args.out)
    return 0


def _classification(args: argparse.Namespace) -> Image.Image:
    from dk_bench.config import load_config
    from dk_bench.data.procedural import sheet
    from dk_bench.data.sources import open_images
    from dk_bench.errors import UserError

    config = load_config(args.config, args.overrides).data
    if config.source != "procedural":
        raise UserError(f"key 'data.source' is {config.source!r}, expected procedural: there is nothing else to draw")
    if args.config is None:
        config.size = 64
    return sheet(open_images(config, "train"), args.rows)


def _detection(args: argparse.Namespace) -> Image.Image:
    from dk_bench.detection.config import load_detection_config
    from dk_bench.detection.sheet import sheet

    return sheet(load_detection_config(args.config, args.overrides), args.rows)
