"""``dk-bench kernels CHECKPOINT --image FILE... [--position Y,X] [--layer NAME]...``: where the taps go."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dk_bench.cli.options import add_output, check_at_least, check_folder

if TYPE_CHECKING:
    from PIL import Image

    from dk_bench.analysis.taps.study import Layer, Offsets

ROWS = 4  # layers in the figure where none are named
TAPS = (
    "Where taps read the image and the scope at the position +, at the start of training and as learnt; the stored "
    "kernel and what the taps sample of it."
)
OFFSETS = "Learned offsets over all positions by layer, and the share of taps outside the scope or the input."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("checkpoint", help="last.ckpt of a run")
    parser.add_argument(
        "--image",
        nargs="+",
        required=True,
        metavar="FILE",
        help="the image to look at; offsets' distributions are over all that are given",
    )
    parser.add_argument(
        "--position",
        type=_position,
        metavar="Y,X",
        help="in pixels of the first image, from its upper left corner (its middle)",
    )
    parser.add_argument("--layer", action="append", metavar="NAME", help="a layer to draw, again for more (four)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="shorter side of the images (as in evaluation)")
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV) (%(default)s)", "kernels")


def _position(text: str) -> tuple[float, float]:
    if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected Y,X in pixels, such as 120,80, got {text!r}")
    y, x = map(float, text.split(","))
    return y, x


def run(args: argparse.Namespace) -> int:
    """Looks, draws and writes. Raises UserError for a bad checkpoint, image, position or layer."""
    from rich.console import Console

    from dk_bench.analysis.drawing import progress, styled
    from dk_bench.analysis.learned import load
    from dk_bench.analysis.objects import whole_image
    from dk_bench.analysis.taps.study import offsets_at, offsets_over
    from dk_bench.data.pixels import open_image

    check_at_least(args, size=1)
    check_folder(args.output)
    loaded = load(args.checkpoint)
    names = _layers(args, loaded.model, loaded.name)
    picture = open_image(args.image[0])
    position = _share(args.position, picture)
    transform = whole_image(loaded.config.data, args.size)
    layers = [each for each in offsets_at(loaded.model, transform(picture), position) if each.name in names]
    console = Console(stderr=True)
    with progress(console) as bar:
        task = bar.add_task("images", total=len(args.image))
        found = offsets_over(
            loaded.model, (transform(open_image(path)) for path in args.image), lambda: bar.advance(task)
        )
    with styled(), console.status("drawing"):
        written = _write(args.output, layers, found, picture, position)
    for each in found:
        print(f"{each.source.layer}, {each.source.kind}: {100 * each.outside:.2f} % of taps outside")
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def _layers(args: argparse.Namespace, model: Any, name: str) -> list[str]:
    """Names of the layers to draw: those asked for, or some spread over the depth. Raises UserError."""
    from dk_bench.analysis.taps.study import moving
    from dk_bench.errors import UserError

    names = list(dict.fromkeys(source.layer for source in moving(model)))
    if not names:
        raise UserError(f"{args.checkpoint}: {name} has experts but no taps that move")
    if args.layer is None:
        return [names[index] for index in sorted({round(i) for i in np.linspace(0, len(names) - 1, ROWS)})]
    if unknown := [layer for layer in args.layer if layer not in names]:
        raise UserError(f"--layer {unknown[0]}: no taps move there, expected one of {', '.join(names)}")
    return args.layer


def _share(position: tuple[float, float] | None, picture: Image.Image) -> tuple[float, float]:
    """Returns a position in pixels as shares of an image's height and width."""
    from dk_bench.errors import UserError

    if position is None:
        return 0.5, 0.5
    (y, x), (width, height) = position, picture.size
    if y >= height or x >= width:
        raise UserError(f"--position {y:g},{x:g}: outside the image, which is {height} pixels high and {width} wide")
    return (y + 0.5) / height, (x + 0.5) / width


def _write(
    folder: Path, layers: list[Layer], found: list[Offsets], picture: Image.Image, position: tuple[float, float]
) -> list[Path]:
    from dk_bench.analysis.drawing import save_figure, write_csv
    from dk_bench.analysis.taps.figures import offsets_figure, taps_figure
    from dk_bench.analysis.taps.study import statistics

    shown = picture.copy()
    shown.thumbnail((640, 640))  # larger ones only make files larger
    return [
        *save_figure(taps_figure(layers, np.asarray(shown), position), folder, "taps", TAPS),
        *save_figure(offsets_figure(found), folder, "offsets", OFFSETS),
        write_csv(
            folder,
            "taps",
            ("layer", "kind", "group", "tap", "before y", "before x", "after y", "after x", "outside"),
            _tap_rows(layers),
        ),
        write_csv(folder, "kernels", ("layer", "channel", "what", "row", "column", "weight"), _kernel_rows(layers)),
        write_csv(
            folder,
            "offsets",
            ("layer", "kind", "axis", "count", "mean", "std", "min", "5 %", "25 %", "median", "75 %", "95 %", "max"),
            (
                [each.source.layer, each.source.kind, axis, each.values[:, 0].size, *values]
                for each in found
                for axis, values in statistics(each.values)
            ),
        ),
        write_csv(
            folder,
            "outside",
            ("layer", "kind", "taps", "share", "share of rigid taps"),
            (
                [each.source.layer, each.source.kind, each.values[:, 0].size, each.outside, each.outside_before]
                for each in found
            ),
        ),
    ]


def _tap_rows(layers: list[Layer]) -> Iterator[list[Any]]:
    from dk_bench.analysis.learned import DATA, KERNEL

    for layer in layers:
        groups = [(KERNEL, 0, layer.kernel)] if layer.kernel else []
        groups += [(DATA, group, taps) for group, taps in enumerate(layer.data or [])]
        for kind, group, taps in groups:
            for tap, outside in enumerate(taps.outside):
                yield [layer.name, kind, group, tap, *map(float, (*taps.before[tap], *taps.after[tap])), int(outside)]


def _kernel_rows(layers: list[Layer]) -> Iterator[list[Any]]:
    """Returns the mean magnitude and the channels that are drawn, over the scope and as sampled."""
    from dk_bench.analysis.taps.figures import channels_shown

    for layer in layers:
        for what, kernels in (("stored", layer.stored), ("sampled", layer.sampled)):
            drawn = {"mean magnitude": np.abs(kernels).mean(0), **{c: kernels[c] for c in channels_shown(layer)}}
            for channel, values in drawn.items():
                for (row, column), weight in np.ndenumerate(values):
                    yield [layer.name, channel, what, row, column, float(weight)]
