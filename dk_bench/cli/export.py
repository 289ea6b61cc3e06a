"""``dk-bench export CHECKPOINT --to FOLDER [--format F...] [--push ORG/NAME]``: a trained model for other programs."""

import argparse
import re
from pathlib import Path

from dk_bench.cli.options import check_folder
from dk_bench.errors import UserError

FORMATS = ("timm", "mmdet", "onnx", "pt2")  # of dk_bench.trained.export, which is slow to import
LICENCE = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")  # the hub's names, as apache-2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a run's folder or its last.ckpt, or an export, to be had in other formats")
    folder = "folder to write: a new one, an empty one, or an older export, which is replaced"
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help=folder)
    formats = "timm (default of classifiers), mmdet (default of detectors), onnx, pt2 (torch.export); one or more"
    parser.add_argument("--format", nargs="+", action="extend", choices=FORMATS, default=[], help=formats)
    push = "then upload the folder to this repository of the Hugging Face Hub, by the token of `hf auth login`"
    parser.add_argument("--push", metavar="ORG/NAME", help=push)
    parser.add_argument("--private", action="store_true", help="make that repository, if it is new, a private one")
    licence = "licence of the weights in the model card, by the hub's name: mit, apache-2.0, cc-by-nc-4.0, ..."
    parser.add_argument("--license", type=_licence, metavar="ID", help=licence)
    records = "folder with records of other seeds: the model card has mean and interval of them all"
    parser.add_argument("--records", type=Path, metavar="FOLDER", help=records)
    unfinished = "also the model of a run that has not ended; the model card says how far training got"
    parser.add_argument("--unfinished", action="store_true", help=unfinished)
    sizes = "onnx and pt2: leave height and width of images open, which are otherwise those of evaluation"
    parser.add_argument("--any-size", action="store_true", help=sizes)


def run(args: argparse.Namespace) -> None:
    """Prints the folder, its files and the repository's address. Raises UserError."""
    from dk_bench.runs.record import find_records, read_record
    from dk_bench.trained.export import OURS, check_target, export
    from dk_bench.trained.push import check_repository, push

    check_folder(args.to, f"--to {args.to}")
    check_target(args.to)
    if args.private and not args.push:
        raise UserError("--private: goes with --push")
    if args.push:
        check_repository(args.push)
    records = [read_record(path) for path in find_records(args.records)] if args.records else []
    if args.records and not records:
        raise UserError(f"--records {args.records}: no record in it, expected record.json or *.record.json in it")
    names = export(
        args.checkpoint,
        args.to,
        args.format,
        unfinished=args.unfinished,
        licence=args.license,
        records=records,
        repository=args.push,
        any_size=args.any_size,
    )
    print(f"{args.to}: {', '.join(names)}")
    if args.push:
        print(f"pushed: {push(args.to, args.push, private=args.private, stale=OURS)}")


def _licence(text: str) -> str:
    if not LICENCE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected the hub's name of a licence, such as apache-2.0, got {text!r}")
    return text
