"""``dk-bench predict CHECKPOINT IMAGE|FOLDER|TAR... [--output FILE]``: what a trained model says of images."""

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from dk_bench.cli.options import add_number, add_output, check_device, check_file, check_folder
from dk_bench.errors import UserError, system_errors
from dk_bench.files import open_atomically

SUFFIXES = {".jsonl": "jsonl", ".csv": "csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a run's folder or last.ckpt, or an exported model")
    images = "files, folders of images at any depth, and tars"
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|TAR", help=images)
    add_output(parser, "FILE", ".jsonl or .csv (JSON lines on standard output)")
    form = "of what is written, where no FILE's name tells it (jsonl)"
    parser.add_argument("--format", choices=SUFFIXES.values(), help=form)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw what is found on the images as well")
    add_number(parser, "--top", "K", "at most so many classes, or boxes, of an image (5 classes, all boxes)")
    threshold = "only what is at least as probable, 0 to 1 (all classes, boxes from 0.3)"
    parser.add_argument("--threshold", type=_share, metavar="SHARE", help=threshold)
    add_number(parser, "--batch-size", "N", "images at once (32 of a classifier, 1 of a detector)")
    add_number(parser, "--workers", "N", "processes that read images; 0: none besides (0)", default=0, least=0)
    device = "where the model runs (auto: on a GPU if there is one)"
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=device)
    skip = "go on after an image that cannot be read, with its error in place of an answer, and end with status 1"
    parser.add_argument("--skip-unreadable", action="store_true", help=skip)


def run(args: argparse.Namespace) -> int:
    """Predicts and writes. Returns 1 where images were skipped. Raises UserError for bad input."""
    form = _format(args)
    check_file(args.output)
    check_device(args.device)
    if args.pictures:
        check_folder(args.pictures, f"--pictures {args.pictures}")

    import torch

    from dk_bench.trained.drawn import Pictures
    from dk_bench.trained.images import find_images
    from dk_bench.trained.load import open_trained
    from dk_bench.trained.predict import FORMATS, predict, predictor_of

    images = find_images(args.images)
    if args.output and args.output.resolve() in {
        Path(name).resolve() for name in [*args.images, *(image.name for image in images)]
    }:
        raise UserError(f"--output {args.output}: is one of the images; expected another file")
    pictures = Pictures(args.pictures, images) if args.pictures else None
    trained = open_trained(args.checkpoint)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    predictor = predictor_of(trained, top=args.top, threshold=args.threshold, device=device)
    how = {"batch_size": args.batch_size, "workers": args.workers, "skip_unreadable": args.skip_unreadable}
    failed = 0
    with ExitStack() as ending:
        stream = ending.enter_context(_opened(args.output))
        writer = FORMATS[form](stream, predictor, with_errors=args.skip_unreadable)
        drawing = ending.enter_context(pictures) if pictures else None
        step = ending.enter_context(_bar(len(images), beside=stream))
        for answer in predict(trained, images, predictor, **how):
            writer.write(answer)
            if drawing and not answer.error:
                drawing.draw(answer, predictor)
            failed += answer.error is not None
            step()
    _tell(args, len(images), failed)
    return int(failed > 0)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise UserError(f"--threshold: expected 0 to 1, got {text}")
    return value


_share.__name__ = "number"  # which argparse says of a text that is none


def _format(args: argparse.Namespace) -> str:
    by_name = SUFFIXES.get(args.output.suffix.lower()) if args.output else None
    if args.output and not (by_name or args.format):
        raise UserError(f"--output {args.output}: expected a name that ends in .jsonl or .csv, or --format")
    if by_name and args.format not in (None, by_name):
        raise UserError(f"--format {args.format}: does not go with --output {args.output}")
    return args.format or by_name or "jsonl"


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Opens standard output, or a file, which is there once the block is left without an error."""
    if path is None:
        yield sys.stdout
        return
    with system_errors(f"--output {path}"), open_atomically(path) as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        yield stream
        stream.detach()


@contextmanager
def _bar(images: int, beside: TextIO) -> Iterator[Callable[[], object]]:
    """Shows how far it is; not where the answers themselves run over the terminal."""
    from dk_bench.analysis.console import tracked

    if beside.isatty():
        yield lambda: None
        return
    with tracked("predicting", images) as step:
        yield step


def _tell(args: argparse.Namespace, images: int, failed: int) -> None:
    if failed:
        print(f"dk-bench predict: {failed} of {images} images could not be read", file=sys.stderr)
    if args.output:
        print(f"{args.output}: what the model says of {images - failed} images")
    if args.pictures:
        print(f"{args.pictures}: {images - failed} pictures", file=None if args.output else sys.stderr)
