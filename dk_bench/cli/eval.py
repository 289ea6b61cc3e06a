"""``dk-bench eval CHECKPOINT key=value... [--record FILE]``: evaluates a checkpoint."""

import argparse
from pathlib import Path

from dk_bench.cli.options import check_file
from dk_bench.errors import system_errors
from dk_bench.processes.ranks import this_rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="last.ckpt of a run, of a classifier or a detector")
    overrides = "for example data.val=PATH; val_dataloader.batch_size=4"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)
    split = "images to evaluate: those of data.val, or all test sets (%(default)s)"
    parser.add_argument("--split", choices=("val", "test"), default="val", help=split)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write a run record there as well")


def run(args: argparse.Namespace) -> None:
    """Prints the figures and the number of images. Raises UserError."""
    from dk_bench import tasks
    from dk_bench.runs.record import tested_sets, write_record
    from dk_bench.training.checkpoint import read_checkpoint
    from dk_bench.training.run import evaluate

    check_file(args.record, "--record")
    split = [] if args.split == "val" else [f"--split={args.split}"]
    command = ["dk-bench", "eval", args.checkpoint, *args.overrides, *split]
    checkpoint = read_checkpoint(args.checkpoint)
    task = tasks.from_checkpoint(checkpoint, args.overrides, args.checkpoint)
    record = evaluate(task, checkpoint, args.checkpoint, split=args.split, command=command)
    if this_rank().number:  # a further process, which has its share of the images alone to tell of
        return
    final, data = record.metrics["final"], record.data
    classes, images = len(data["classes"]), data[f"{args.split}_images"]
    figures = task.details(final, classes, args.split)
    print(f"{record.model['name']}: {figures}  of {images} images of {data['name']}")
    for name in tested_sets(record)[1:]:
        print(f"{name}: {task.summary(final, classes, name)}")
    if args.record:
        with system_errors(f"--record {args.record}"):
            print(f"record: {write_record(record, args.record)}")
