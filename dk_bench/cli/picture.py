"""``dk-bench picture [CONFIG] [key=value...] [--out FILE]``"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("config", nargs="?", help="a file of configs/ whose section data.procedural is drawn")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.procedural.bend=0")
    parser.add_argument("--out", default="shapes.png", metavar="FILE", help="PNG to write (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=6, help="images of every class (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draws a column of training images for every class. Raises UserError."""
    from dk_bench.config import load_config
    from dk_bench.data.procedural import sheet
    from dk_bench.data.sources import open_images
    from dk_bench.errors import UserError

    config = load_config(args.config, args.overrides).data
    if config.source != "procedural":
        raise UserError(f"key 'data.source' is {config.source!r}, expected procedural: there is nothing else to draw")
    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}, expected at least 1")
    if args.config is None:
        config.size = 64
    try:
        sheet(open_images(config, "train"), args.rows).save(args.out, format="PNG")
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror or error}") from error
    print(args.out)
    return 0
