"""``dk-bench train CONFIG key=value...``: trains what a configuration describes, or goes on with it."""

from __future__ import annotations

import argparse
import os

from dk_bench.cli.eval import accuracies, shifted
from dk_bench.processes.launchers import this_rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument("config", help="a file of configs/: YAML trains a classifier, Python (mmengine's) a detector")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example optim.epochs=10 seed=1; train_cfg.max_epochs=1"
    )


def run(args: argparse.Namespace) -> int:
    """Trains and returns 0, or 1 where the run failed. Raises UserError. A run's further processes print nothing."""
    command = ["dk-bench", "train", args.config, *args.overrides]
    try:
        record, folder = (_detector if args.config.endswith(".py") else _classifier)(args, command)
    except Exception as error:
        if os.environ.get("WANDB_SWEEP_ID"):  # else nothing heavy need be imported to say what is wrong
            from dk_bench.training.tracking import tell_sweep_of_failure

            tell_sweep_of_failure(error)
        raise
    if this_rank().number:
        return int(record.status == "failed")
    print(f"record: {folder / 'record.json'}")
    if record.status == "failed":
        print(f"failed: {record.error}")
        return 1
    print(f"{_figures(record)}  of {record.data['val_images']} images")
    if "test/top1" in record.metrics["final"]:
        print(f"test: {accuracies(record, 'test')}  of {record.data['test_images']} images", *shifted(record), sep="\n")
    return 0


def _classifier(args: argparse.Namespace, command: list[str]):
    from dk_bench.config import load_config

    config = load_config(args.config, args.overrides)  # errors in it show before the slow imports
    from dk_bench.training import run_folder, train

    return train(config, command=command), run_folder(config)


def _detector(args: argparse.Namespace, command: list[str]):
    from dk_bench.detection.mmengine_config import load_detection_config

    config = load_detection_config(args.config, args.overrides)
    from dk_bench.detection.run import run_folder, train

    return train(config, command=command), run_folder(config)


def _figures(record) -> str:
    final = record.metrics["final"]
    if record.task == "detection":
        from dk_bench.detection.watch import figures_text

        return figures_text(final)
    return accuracies(record)
