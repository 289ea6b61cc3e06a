"""``dk-bench bench``: the operators' times beside PyTorch's convolutions, the models' beside their bases', and how many
images a second the data loader gives."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dk_bench.analysis.bench import loader, recording, steps, study
from dk_bench.analysis.bench.calls import Shape
from dk_bench.analysis.bench.operator_sets import BATCH, OPERATOR_SETS
from dk_bench.analysis.bench.tables import document
from dk_bench.cli.options import add_number, add_output, check_device, check_file
from dk_bench.errors import UserError, system_errors
from dk_bench.files import write_atomically
from dk_bench.functional.loading import why_reference
from dk_bench.models import MODELS, PAPER_MODELS
from dk_bench.tables.terminal import show

ROUNDS = 25
PLAN = loader.LoaderPlan()
OWN = {  # options that not all kinds of bench have
    "ops": ("of", "shapes"),
    "train": ("models", "batch", "size", "bfloat16"),
    "data": ("sizes", "sources", "place", "reader", "root", "images", "batch", "workers"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "what to time: the operators, training the models, or the data loader"
    parser.add_argument("what", choices=list(OWN), help=what)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (cpu)")
    add_number(parser, "--threads", "N", "CPU threads (1)", default=1)
    rounds = f"ops {ROUNDS}, train {steps.ROUNDS}, data {PLAN.rounds}"
    add_number(parser, "--repeats", "N", f"rounds; lower quartiles are taken ({rounds})")
    isa = (
        "instruction sets that our library, torch and oneDNN are held to, one after the other (ops: avx512 and avx2, "
        "where the processor has both and the environment holds none; else what they choose, native)"
    )
    parser.add_argument("--isa", nargs="+", choices=[*recording.HELD, recording.NATIVE], help=isa)
    add_output(parser, "FILE", "write the record there, as JSON")
    of = "ops: the convolutions whose deformable counterparts are timed beside them (depthwise); pointwise: 1x1"
    parser.add_argument("--of", choices=list(OPERATOR_SETS), help=of)
    shapes = (
        f"ops: channels, height = width, and batch (CPU {BATCH['cpu']}, CUDA {BATCH['cuda']}) of each shape (those of "
        "ResNet-50-DW, dense and 1x1 ones of ResNet-50)"
    )
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="C,H[,N]", help=shapes)
    models = (
        "train: names of the models (CPU: operators and rivals in test_resnetdw, batches of 64 at 64 pixels, in "
        "mobilenetv2_100, 16 at 160, and in small_resnet and small_resnetdw, 64 at 32; CUDA: all of the paper's)"
    )
    parser.add_argument("--models", metavar="GLOB", help=models)
    batch = f"images a step (train with --models: CPU 2, CUDA 64; data: {PLAN.batch})"
    add_number(parser, "--batch", "N", batch)
    add_number(parser, "--size", "PIXELS", "train: height and width of the images (with --models: 224)")
    parser.add_argument("--bfloat16", action="store_true", help="train: under bfloat16 autocast")
    sizes = f"data: height and width of the images that the loader gives ({' '.join(map(str, PLAN.sizes))})"
    add_number(parser, "--sizes", "PIXELS", sizes, nargs="+")
    sources = f"data: where images come from ({' '.join(loader.SOURCES)})"
    parser.add_argument("--sources", nargs="+", choices=loader.SOURCES, help=sources)
    place = (
        f"data: a folder or tar of images (of procedural ones of {PLAN.side} pixels, as JPEG), or what --reader reads"
    )
    parser.add_argument("--place", metavar="PATH", help=place)
    reader = "data: reads --place as data.reader=NAME reads data.train: wds/NAME, hfds/NAME, torch/NAME"
    parser.add_argument("--reader", metavar="NAME", help=reader)
    parser.add_argument("--root", metavar="PATH", help="data: with --reader, data.root")
    workers = "data: numbers of the loader's workers, one after the other; 0: this process alone (0)"
    add_number(parser, "--workers", "N", workers, least=0, nargs="+")
    add_number(parser, "--images", "N", f"data: procedural images ({PLAN.images})")


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*(,[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"expected C,H or C,H,N, such as 128,56, got {text!r}")
    return text


def run(args: argparse.Namespace) -> None:
    """Measures, prints and writes. Raises UserError for a device that is not there, a number below 1, no such model, an
    instruction set that the processor has not."""
    names = _check(args)
    console = Console()
    with console.status("timing") as status:
        if names == [recording.NATIVE]:
            record = _with_threads(args, lambda what: status.update(f"timing {what}"))
        else:
            record = recording.measure_held(names, _arguments(args), lambda name: status.update(f"timing under {name}"))
    show(document(record), console)
    if args.output:
        with system_errors(f"--output {args.output}"):
            write_atomically(args.output, json.dumps(record, indent=1) + "\n")


def _check(args: argparse.Namespace) -> list[str]:
    """Returns the instruction sets to measure under. Raises UserError as `run` says."""
    for name in (option for options in OWN.values() for option in options):
        if getattr(args, name) and name not in OWN[args.what]:
            raise UserError(f"--{name}: does not go with {args.what}")
    check_file(args.output)
    if args.what == "data":
        _check_data(args)
    check_device(args.device)
    if args.what == "ops" and (reason := why_reference(args.device)):
        raise UserError(f"--device {args.device}: there are no compiled operators to time: {reason}")
    if args.device == "cuda" and args.isa:
        raise UserError("--isa: does not go with --device cuda")
    for name in args.isa or ():
        recording.check_instruction_set(name)
    if args.isa:
        return args.isa
    is_held = (args.what, args.device) == ("ops", "cpu")
    return recording.default_instruction_sets() if is_held else [recording.NATIVE]


def _check_data(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        raise UserError("--device cuda: images are loaded by the CPU")
    if args.reader:
        if not args.place or args.sources:
            raise UserError(f"--reader {args.reader}: expected --place with it, and no --sources")
        args.sources = [args.reader.lower().partition("/")[0]]
    elif args.root:
        raise UserError(f"--root {args.root}: expected --reader with it")
    elif args.place:
        sources = [source for source in loader.FILES if Path(args.place).is_dir() == (source == loader.FOLDER)]
        if not set(args.sources or sources) <= {*sources, loader.PROCEDURAL, loader.SYNTHETIC}:
            raise UserError(f"--sources {' '.join(args.sources)}: --place {args.place} is a {sources[0]}")
        args.sources = args.sources or sources


def _arguments(args: argparse.Namespace) -> list[str]:
    """Returns the command line of these arguments, without instruction set and output."""
    given = ["bench", args.what]
    for name in ("device", "threads", "repeats", *OWN[args.what]):
        value = getattr(args, name)
        if isinstance(value, list):
            given += [f"--{name}", *map(str, value)]
        elif value is True:
            given.append(f"--{name}")
        elif value:
            given += [f"--{name}", str(value)]
    return given


def _with_threads(args: argparse.Namespace, on_item: Callable[[str], None]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return {"ops": _ops, "train": _train, "data": _data}[args.what](args, on_item)
    finally:
        torch.set_num_threads(threads)


def _ops(args: argparse.Namespace, on_shape: Callable[[str], None]) -> dict[str, Any]:
    of, (kind, batch) = args.of or "depthwise", (args.device, BATCH[args.device])
    given = [tuple(map(int, text.split(","))) for text in args.shapes or ()]
    shapes = [Shape(*shape[:2], *(shape[2:] or (batch,))) for shape in given] or OPERATOR_SETS[of].shapes_on(kind)
    settings, rounds = OPERATOR_SETS[of].settings[kind], args.repeats or ROUNDS
    return study.bench_operators(shapes, settings, torch.device(kind), rounds, on_shape, of)


def _train(args: argparse.Namespace, on_model: Callable[[str], None]) -> dict[str, Any]:
    sets = steps.CPU_SETS
    if args.models or args.device == "cuda":
        names = [name for name in MODELS if fnmatch(name, args.models)] if args.models else PAPER_MODELS
        if not names:
            raise UserError(f"--models: no model matches {args.models!r}; `dk-bench models` lists them")
        sets = [steps.ModelSet(tuple(names), {"cpu": 2, "cuda": 64}[args.device], 224)]
    sets = [replace(of, batch=args.batch or of.batch, size=args.size or of.size) for of in sets]
    rounds = args.repeats or steps.ROUNDS
    return steps.bench_models(sets, torch.device(args.device), bfloat16=args.bfloat16, rounds=rounds, on_model=on_model)


def _data(args: argparse.Namespace, on_source: Callable[[str], None]) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in OWN["data"]} | {"rounds": args.repeats}
    given["sources"] = args.sources or loader.default_sources()
    return loader.bench_data(replace(PLAN, **{name: value for name, value in given.items() if value}), on_source)
