"""``dk-bench eval CHECKPOINT key=value... [--record FILE]``"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("checkpoint", help="last.ckpt of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.val=PATH")
    parser.add_argument("--record", metavar="FILE", help="write a run record there as well")


def run(args: argparse.Namespace) -> int:
    """Prints top-1, top-5 and the number of images. Raises UserError."""
    from dk_bench.results.record import write_record
    from dk_bench.training import evaluate

    record = evaluate(args.checkpoint, args.overrides, command=["dk-bench", "eval", args.checkpoint, *args.overrides])
    final = record.metrics["final"]
    print(
        f"{record.model['name']}: top-1 {final['val/top1']:.2f} %  top-5 {final['val/top5']:.2f} %  "
        f"loss {final['val/loss']:.4f}  of {record.data['val_images']} images of {record.data['name']}"
    )
    if args.record:
        print(f"record: {write_record(record, args.record)}")
    return 0
