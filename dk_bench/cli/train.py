"""``dk-bench train CONFIG key=value...``: trains what a configuration describes, or goes on with it."""

import argparse
import os

from dk_bench.processes.ranks import this_rank
from dk_bench.reading.shipped import shipped_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"With the package come the configurations {', '.join(shipped_names('configs'))}."
    config = "YAML trains a classifier, Python (mmengine's) a detector: a file, or the name of one of the package's"
    parser.add_argument("config", help=config)
    overrides = "for example optim.epochs=10 seed=1; train_cfg.max_epochs=1"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)


def run(args: argparse.Namespace) -> int:
    """Trains and returns 0, or 1 where the run failed. Raises UserError. A run's further processes print nothing."""
    from dk_bench import tasks
    from dk_bench.runs.record import tested_sets

    try:
        task = tasks.load(args.config, args.overrides)  # errors in it show before the slow imports
        from dk_bench.training.run import train

        record = train(task, command=["dk-bench", "train", args.config, *args.overrides])
    except Exception as error:
        if os.environ.get("WANDB_SWEEP_ID"):  # else nothing heavy need be imported to say what is wrong
            from dk_bench.training.wandb_tracking import tell_sweep_of_failure

            tell_sweep_of_failure(error)
        raise
    if this_rank().number:
        return int(record.status == "failed")
    print(f"record: {task.folder / 'record.json'}")
    if record.status == "failed":
        print(f"failed: {record.error}")
        return 1
    final, classes = record.metrics["final"], len(record.data["classes"])
    print(f"{task.summary(final, classes)}  of {record.data['val_images']} images")
    for name in tested_sets(record):
        images = f"  of {record.data['test_images']} images" if name == "test" else ""
        print(f"{name}: {task.summary(final, classes, name)}{images}")
    return 0
