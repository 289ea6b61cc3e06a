"""``dk-bench dynamics CHECKPOINT... [--data FILE] [--output FOLDER]``: what the offsets know of the objects."""

from __future__ import annotations

import argparse
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dk_bench.cli.options import add_only, add_output, check_at_least, check_folder, checkpoints_below

if TYPE_CHECKING:
    from rich.console import Console

    from dk_bench.analysis.dynamics.study import Dynamics, Line
    from dk_bench.analysis.held import HeldAccuracy
    from dk_bench.analysis.learned import Loaded
    from dk_bench.analysis.objects import Objects
    from dk_bench.analysis.origin import Origin

PROCEDURAL = "procedural"
MIN_OBJECTS = 20
PROBE = "What linear probes tell of held-out objects from learned dynamics, with 95 % intervals."
TSNE = "t-SNE of learned dynamics, a point an object: coloured by class above, by decile of its scale below."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="last.ckpt of a run, or a folder of runs; several of one model, of different seeds, give "
        "intervals over seeds",
    )
    add_only(parser)
    parser.add_argument(
        "--data",
        default=PROCEDURAL,
        metavar="FILE",
        help="annotations in COCO's format (the procedural images that the models are validated on)",
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="of --data: its images (../images beside it)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="shorter side of the images (as in evaluation)")
    parser.add_argument(
        "--objects", type=int, metavar="N", default=2000, help="how many objects, at most (%(default)s)"
    )
    parser.add_argument("--tsne", type=int, default=1000, metavar="N", help="of them for t-SNE; 0: none (1000)")
    parser.add_argument("--perplexity", type=float, metavar="NUMBER", default=30, help="of t-SNE (%(default)g)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the models run (cpu)")
    parser.add_argument(
        "--tables-from",
        nargs="+",
        type=Path,
        default=(),
        metavar="CSV",
        help="measure nothing: write the tables of such probe.csv again, beside them",
    )
    add_output(parser, "FOLDER", "for figures (PNG, PDF) and numbers (CSV, Markdown) (%(default)s)", "dynamics")


def run(args: argparse.Namespace) -> int:
    """Collects, probes, draws and writes. Raises UserError for bad checkpoints, data and numbers."""
    import torch
    from rich.console import Console

    from dk_bench.analysis.drawing import styled
    from dk_bench.analysis.dynamics.study import known_alone
    from dk_bench.analysis.dynamics.tables import document
    from dk_bench.analysis.origin import origin_of
    from dk_bench.errors import UserError
    from dk_bench.tables.render import show

    if bool(args.checkpoints) == bool(args.tables_from):
        raise UserError("expected checkpoints, or --tables-from CSV; one of them")
    if args.tables_from:
        return _tables_again(args.tables_from)
    check_at_least(args, size=1, objects=MIN_OBJECTS, tsne=0)
    check_folder(args.output)
    if args.tsne and not 0 < args.perplexity < math.inf:
        raise UserError(f"--perplexity {args.perplexity:g}: expected a positive number")
    if args.images and args.data == PROCEDURAL:
        raise UserError(f"--images {args.images}: goes with --data, annotations that name them")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine or this torch has no CUDA device")
    loaded = _load(checkpoints_below(args.checkpoints, args.only))
    objects = _objects(args, loaded)
    console = Console(stderr=True)
    dynamics = _collect(args, loaded, objects, console)
    try:
        lines, alone = _probe(dynamics, objects, console), known_alone(objects)
    except ValueError as error:
        raise UserError(f"{objects.source}: {error}") from error
    chance = 100 * float(np.bincount(objects.label).max()) / len(objects)
    origins = [origin_of(each.path, each.name, each.config, each.run_id) for each in loaded]
    held = _held(args, loaded, objects, console)
    tables = document(lines, alone, origins, objects.source, chance, held)
    with styled(), console.status("drawing"):
        written = _write(args, dynamics, objects, lines, alone, origins, chance, held)
    first = dataclasses.replace(tables, tables=tables.tables[:3])  # the rest is in the file
    show(first, Console())
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def _tables_again(paths: list[Path]) -> int:
    from dk_bench.analysis.dynamics.tables import read_held, read_tables, write_tables

    for path in paths:
        print("\n".join(map(str, write_tables(*read_tables(path), path.parent, path.stem, read_held(path)))))
    return 0


def _load(paths: list[str]) -> list[Loaded]:
    from dk_bench.analysis.learned import load
    from dk_bench.errors import UserError

    loaded: list[Loaded] = []
    for path in paths:
        each = load(path)
        same = [other for other in loaded if (other.cell, other.config.seed) == (each.cell, each.config.seed)]
        if same:
            raise UserError(f"{path}: the same model, settings and seed as {same[0].path}")
        loaded.append(each)
    return loaded


def _objects(args: argparse.Namespace, loaded: list[Loaded]) -> Objects:
    """Returns the objects that all models see. Raises UserError where their own validation images differ, and for too
    few.
    """
    from dk_bench.analysis.objects import coco_objects, procedural_objects
    from dk_bench.errors import UserError

    if args.data != PROCEDURAL:
        objects = coco_objects(args.data, args.images, args.objects)
    else:
        first = loaded[0].config.data
        for other in loaded[1:]:
            if (other.config.data.procedural, other.config.data.size) != (first.procedural, first.size):
                raise UserError(f"{other.path}: other procedural images than {loaded[0].path}; compare them apart")
        objects = procedural_objects(first, args.objects)
    if len(objects) < MIN_OBJECTS:
        raise UserError(f"{objects.source}: too few to tell anything, expected at least {MIN_OBJECTS} objects")
    if args.tsne and args.perplexity >= (shown := min(args.tsne, len(objects))):
        raise UserError(
            f"--perplexity {args.perplexity:g}: t-SNE wants it below its number of objects, {shown}; "
            "give a lower one, or --tsne 0"
        )
    return objects


def _collect(args: argparse.Namespace, loaded: list[Loaded], objects: Objects, console: Console) -> list[Dynamics]:
    from dk_bench.analysis.drawing import progress
    from dk_bench.analysis.dynamics.study import collect

    with progress(console) as bar:
        task = bar.add_task("images", total=len(loaded) * len(objects.images))
        return [
            collect(each, objects, size=args.size, device=args.device, on_images=partial(bar.advance, task))
            for each in loaded
        ]


def _held(args: argparse.Namespace, loaded: list[Loaded], objects: Objects, console: Console) -> list[HeldAccuracy]:
    from dk_bench.analysis.drawing import progress
    from dk_bench.analysis.held import held_accuracy

    with progress(console) as bar:
        task = bar.add_task("offsets held", total=2 * len(loaded) * len(objects.images))
        found = [
            held_accuracy(each, objects, size=args.size, device=args.device, on_images=partial(bar.advance, task))
            for each in loaded
        ]
    return [each for each in found if each]


def _probe(dynamics: list[Dynamics], objects: Objects, console: Console) -> list[Line]:
    """Returns all scores; what is compared at one number of components has as many as the smallest dynamics."""
    from dk_bench.analysis.drawing import progress
    from dk_bench.analysis.dynamics.study import probe_all

    dims = min(each.joined(kind).shape[1] for each in dynamics for kind in each.learned)
    lines: list[Line] = []
    with progress(console) as bar:
        task = bar.add_task("probes", total=sum(4 + len(layers) for d in dynamics for layers in d.learned.values()))
        for each in dynamics:
            for found in probe_all(each, objects, dims):
                lines += found
                bar.advance(task)
    return lines


def _write(
    args: argparse.Namespace,
    dynamics: list[Dynamics],
    objects: Objects,
    lines: list[Line],
    alone: list[Line],
    origins: list[Origin],
    chance: float,
    held: list[HeldAccuracy],
) -> list[Path]:
    """Returns all files. Of several seeds of a model the first is drawn, and its dynamics written."""
    from dk_bench.analysis.drawing import save_figure
    from dk_bench.analysis.dynamics.figures import probe_figure
    from dk_bench.analysis.dynamics.tables import write_tables

    written = write_tables(lines, alone, origins, {"objects": objects.source, "chance": chance}, args.output, held=held)
    drawn: dict[str, Dynamics] = {}
    for each in dynamics:
        drawn.setdefault(each.loaded.cell, each)
    words = [each.loaded.words for each in drawn.values()]
    names = {
        cell: each.loaded.words if words.count(each.loaded.words) == 1 else each.loaded.name
        for cell, each in drawn.items()
    }
    written += save_figure(probe_figure(lines, names, chance), args.output, "probe", PROBE)
    written += [_write_dynamics(args.output, each, objects) for each in drawn.values()]
    if args.tsne:
        written += _draw_tsne(args, drawn, objects, lines, names)
    return written


def _write_dynamics(folder: Path, dynamics: Dynamics, objects: Objects) -> Path:
    """Returns one line an object: what is known of it, and its dynamics."""
    from dk_bench.analysis.drawing import write_csv

    loaded = dynamics.loaded
    parts = {f"{layer} {kind}": values for kind, layers in dynamics.learned.items() for layer, values in layers.items()}
    numbers = [f"{part} {index}" for part, values in parts.items() for index in range(values.shape[1])]
    columns = ["object", "image", "class", "scale", "centre y", "centre x", *objects.pose, *numbers]
    values = np.concatenate(list(parts.values()), axis=1)
    rows = (
        [
            index,
            int(objects.image[index]),
            objects.classes[objects.label[index]],
            float(objects.scale[index]),
            *map(float, objects.centre[index]),
            *(float(each[index]) for each in objects.pose.values()),
            *map(float, values[index]),
        ]
        for index in range(len(objects))
    )
    return write_csv(folder, f"dynamics-{loaded.config.model.name}-{loaded.cell}-s{loaded.config.seed}", columns, rows)


def _draw_tsne(
    args: argparse.Namespace, drawn: dict[str, Dynamics], objects: Objects, lines: list[Line], names: dict[str, str]
) -> list[Path]:
    from dk_bench.analysis.drawing import save_figure, write_csv
    from dk_bench.analysis.dynamics.figures import captions, deciles, embed, tsne_figure

    chosen = np.sort(np.random.default_rng(0).permutation(len(objects))[: args.tsne])
    decile = deciles(objects.scale)
    maps = {
        (cell, kind): embed(dynamics.joined(kind)[chosen], args.perplexity)
        for cell, dynamics in drawn.items()
        for kind in dynamics.learned
    }
    rows = (
        [
            drawn[cell].loaded.name,
            cell,
            drawn[cell].loaded.config.seed,
            kind,
            int(index),
            objects.classes[objects.label[index]],
            float(objects.scale[index]),
            int(decile[index]) + 1,
            *map(float, point),
        ]
        for (cell, kind), points in maps.items()
        for index, point in zip(chosen, points, strict=True)
    )
    columns = ["model", "cell", "seed", "kind", "object", "class", "scale", "scale decile", "x", "y"]
    figure = tsne_figure(maps, names, objects.label[chosen], decile[chosen], objects.classes, captions(lines))
    return [write_csv(args.output, "tsne", columns, rows), *save_figure(figure, args.output, "tsne", TSNE)]
