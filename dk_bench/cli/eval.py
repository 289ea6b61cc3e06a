"""``dk-bench eval CHECKPOINT key=value... [--record FILE]``: evaluates a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dk_bench.cli.options import check_file
from dk_bench.errors import UserError

if TYPE_CHECKING:
    from dk_bench.runs.record import RunRecord

from dk_bench.processes.launchers import this_rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("checkpoint", help="last.ckpt of a run, of a classifier or a detector")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example data.val=PATH; val_dataloader.batch_size=4"
    )
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="val",
        help="images to evaluate: those of data.val, or all test sets (%(default)s)",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write a run record there as well")


def run(args: argparse.Namespace) -> int:
    """Prints the figures and the number of images. Raises UserError."""
    from dk_bench.runs.record import write_record
    from dk_bench.training import read_checkpoint

    if args.record:
        check_file(args.record, "--record")
    split = [] if args.split == "val" else [f"--split={args.split}"]
    command = ["dk-bench", "eval", args.checkpoint, *args.overrides, *split]
    detector = read_checkpoint(args.checkpoint).get("task") == "detection"
    record, figures = (_detector if detector else _classifier)(args, command)
    if this_rank().number:  # a further process, which has its share of the images alone to tell of
        return 0
    name, data = record.model["name"], record.data
    print(f"{name}: {figures}  of {data[f'{args.split}_images']} images of {data['name']}")
    for line in shifted(record):
        print(line)
    if args.record:
        try:
            print(f"record: {write_record(record, args.record)}")
        except OSError as error:
            raise UserError(f"--record {args.record}: {error.strerror or error}") from error
    return 0


def accuracies(record: RunRecord, split: str = "val") -> str:
    """Top-1 and top-5 of a classifier's record, in percent; of five classes or fewer every top-5 is right."""
    from dk_bench.tables.cells import Data

    final = record.metrics["final"]
    top5 = f"  top-5 {final[f'{split}/top5']:.2f} %" if Data.of(record).classes > 5 else ""
    return f"top-1 {final[f'{split}/top1']:.2f} %{top5}"


def shifted(record: RunRecord) -> list[str]:
    """Returns a line for each shifted test set of a classifier's record."""
    names = (name.rpartition("/")[0] for name in record.metrics["final"] if name.endswith("/top1"))
    return [f"{name}: {accuracies(record, name)}" for name in names if name.startswith("test/")]


def _classifier(args: argparse.Namespace, command: list[str]):
    from dk_bench.training import evaluate

    record = evaluate(args.checkpoint, args.overrides, split=args.split, command=command)
    loss = record.metrics["final"][f"{args.split}/loss"]
    return record, f"{accuracies(record, args.split)}  loss {loss:.4f}"


def _detector(args: argparse.Namespace, command: list[str]):
    from dk_bench.detection.run import evaluate
    from dk_bench.detection.watch import figures_text

    if args.split != "val":
        raise UserError(f"--split is {args.split}, expected val: detectors have no test images of their own")
    record = evaluate(args.checkpoint, args.overrides, command=command)
    return record, figures_text(record.metrics["final"])
