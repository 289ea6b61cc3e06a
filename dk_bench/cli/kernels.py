"""``dk-bench kernels CHECKPOINT --image FILE... [--position Y,X] [--layer NAME]...``: where the taps go."""

import argparse

from dk_bench.cli.options import add_number, add_output, check_folder, place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="last.ckpt of a run")
    image = "the image to look at; offsets' distributions are over all that are given"
    parser.add_argument("--image", nargs="+", required=True, metavar="FILE", help=image)
    position = "in pixels of the first image, from its upper left corner (its middle)"
    parser.add_argument("--position", type=place, metavar="Y,X", help=position)
    parser.add_argument("--layer", action="append", metavar="NAME", help="a layer to draw, again for more (four)")
    add_number(parser, "--size", "PIXELS", "shorter side of the images (as in evaluation)")
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV) (%(default)s)", "kernels")


def run(args: argparse.Namespace) -> None:
    """Looks, draws and writes. Raises UserError for a bad checkpoint, image, position or layer."""
    from rich.console import Console

    from dk_bench.analysis.taps.figures import write_figures
    from dk_bench.analysis.taps.study import study_taps
    from dk_bench.analysis.taps.tables import write_tables

    check_folder(args.output)
    study = study_taps(args.checkpoint, args.image, args.layer, args.position, args.size)
    with Console(stderr=True).status("drawing"):
        written = write_figures(study, args.output) + write_tables(study, args.output)
    for each in study.offsets:
        print(f"{each.source.layer}, {each.source.kind}: {100 * each.outside:.2f} % of taps outside")
    print(f"wrote {', '.join(map(str, written))}")
