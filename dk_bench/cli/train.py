"""``dk-bench train CONFIG key=value...``"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.epochs=10 seed=1")


def run(args: argparse.Namespace) -> int:
    """Trains and returns 0, or 1 where the run failed. Raises UserError."""
    from dk_bench.config import load_config

    config = load_config(args.config, args.overrides)  # errors in it show before the slow imports
    from dk_bench.training import run_folder, train

    record = train(config, command=["dk-bench", "train", args.config, *args.overrides])
    print(f"record: {run_folder(config) / 'record.json'}")
    if record.status == "failed":
        print(f"failed: {record.error}")
        return 1
    final = record.metrics["final"]
    print(f"top-1 {final['val/top1']:.2f} %  top-5 {final['val/top5']:.2f} %  of {record.data['val_images']} images")
    return 0
