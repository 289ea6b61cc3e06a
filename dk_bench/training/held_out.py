"""Test sets: read once, at the end of a run, by its last checkpoint."""

import sys
from pathlib import Path

import pytorch_lightning as pl

from dk_bench.data.shifts import TEST
from dk_bench.runs.environment import portable
from dk_bench.runs.identity import TESTS, setting
from dk_bench.runs.record import RunRecord, is_tested
from dk_bench.training.checkpoint import load_weights, read_checkpoint
from dk_bench.training.own_trainer import ConfiguredModule
from dk_bench.training.run_data import OneTest, RunData
from dk_bench.training.sharded import Sharded
from dk_bench.training.task import Task


def evaluate_tests(trainer: pl.Trainer, module: ConfiguredModule, data: RunData, path: str | Path) -> dict[str, float]:
    """Evaluates the weights in a checkpoint, of EMA the averaged ones, on every test set, one after the other.

    Gives the module's figures as test/NAME, and the same under test/SHIFT/ for each shifted set. Loggers are told
    nothing: no search may have these figures among those that it watches during training.
    """
    if not data.test_images:
        return {}
    if isinstance(trainer.strategy, Sharded):  # the model's parameters are split for good
        if trainer.is_global_zero:
            print(f"test images are not looked at under fsdp: dk-bench eval {path} --split test", file=sys.stderr)
        return {}
    load_weights(module.model, read_checkpoint(path), path)
    trainer.loggers, figures, hits = [], {}, {}
    for name in data.test_images:
        trainer.test(module, datamodule=OneTest(data, name), verbose=False)
        found = trainer.callback_metrics.items()
        figures |= {f"{name}{metric.removeprefix(TEST)}": float(value) for metric, value in found}
        hits[name] = module.hits[TEST]
    module.hits |= hits
    return figures


def wants_test(task: Task, record: RunRecord) -> bool:
    """Tells whether a finished run lacks figures of test images that its configuration names, and can have them."""
    return not is_tested(record, task.tests) and (task.folder / "last.ckpt").exists()


def tell_other_tests(task: Task, record: RunRecord) -> None:
    """Says of a finished run where its figures of test images are not of those that the configuration names now."""
    now = portable(task.values, distinct=True)
    both = ((key, setting(record.config, key), setting(now, key)) for key in TESTS)
    other = [f"{key}={then} (now {named})" for key, then, named in both if then != named]
    if other and task.tests and is_tested(record, [TEST]):
        others = "dk-bench eval --split test has others"
        print(f"{task.folder}: was tested on {', '.join(other)}; {others}", file=sys.stderr)
