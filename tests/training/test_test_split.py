"""The test split: apart from the other two, evaluated once, after training, and nothing is chosen by its figures."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from image_files import data_config, picture, splits
from test_tracking import wandb  # noqa: F401  (a fixture)
from training_cases import PowerCut, tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.cli import main
from dk_bench.config import load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.runs.correct import correct_images
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import read_record
from dk_bench.training import evaluate, load_model, run_folder, train

SHORT = ("optim.epochs=2", "ema.decay=0.7", "data.procedural.scale=[0.16, 0.24]", "data.procedural.bend=0.5")
TESTED = (*SHORT, "data.procedural.test_images=12", "data.procedural.shifts={scale_up: 0.3, bend: 0.8}")
SETS = ("test", "test/scale_up", "test/bend")
FIGURES = {f"{name}/{figure}" for name in SETS for figure in ("loss", "top1", "top5")}


class Watch(pl.Callback):
    """Notes at which step each test begins; ``cut`` fails the first."""

    def __init__(self, cut=False):
        self.steps, self.cut = [], cut

    def on_test_start(self, trainer, module):
        self.steps.append(trainer.global_step)
        if self.cut:
            raise RuntimeError("power cut")


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A run with test sets and averaged weights: configuration, record and the steps at which it was tested."""
    config, watch = tiny(tmp_path_factory.mktemp("tested"), *TESTED), Watch()
    return config, train(config, callbacks=[watch]), watch.steps


def figures(record):
    return {name: value for name, value in record.metrics["final"].items() if name.startswith("test")}


def test_tests_come_once_after_the_last_step(tested):
    config, record, steps = tested
    assert steps == [6] * len(SETS)  # two epochs of three steps
    assert figures(record).keys() == FIGURES
    assert all(not name.startswith("test") for epoch in record.metrics["epochs"] for name in epoch)
    assert record.metrics["final"] == record.metrics["epochs"][-1] | figures(record)
    assert record.data["test_images"] == 12 and read_record(run_folder(config) / "record.json") == record
    assert record.data["decoded"] == dict.fromkeys(("train", "val"), "memory") | dict.fromkeys(SETS, "every time")


def test_the_averaged_weights_are_tested_as_eval_tests_them(tested, capsys):
    config, record, _ = tested
    path = str(run_folder(config) / "last.ckpt")
    model, batches = load_model(path), [*ClassificationData(config.data, 0).test_dataloader()]
    with torch.no_grad():
        loss = sum(F.cross_entropy(model(images), labels, reduction="sum").item() for images, labels in batches) / 12
    assert loss == pytest.approx(record.metrics["final"]["test/loss"], rel=1e-5)
    for name in SETS:
        assert 100 * correct_images(record, name).mean() == pytest.approx(record.metrics["final"][f"{name}/top1"])
        assert record.correct[name]["order"] == record.data["checksum"][name]
    again = evaluate(path, split="test")
    assert again.correct == {name: record.correct[name] for name in SETS}
    assert again.metrics["final"] == figures(record)
    assert again.data["test_images"] == 12 and again.data["val_images"] is None
    assert main(["eval", path, "--split", "test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"top-1 {record.metrics['final']['test/top1']:.2f} %" in lines[0] and "of 12 images" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == ["test/scale_up", "test/bend"]


def test_eval_without_test_images(tested, capsys):
    path = str(run_folder(tested[0]) / "last.ckpt")
    assert set(evaluate(path).metrics["final"]) == {"val/loss", "val/top1", "val/top5"}
    assert main(["eval", path, "data.procedural.test_images=0", "--split", "test"]) == 2
    assert "no test images: expected data.procedural.test_images=N" in capsys.readouterr().err


def test_cell_and_training_are_those_of_a_run_without(tested, tmp_path):
    plain = tiny(tmp_path, *SHORT)
    assert config_hash(to_dict(plain)) == config_hash(to_dict(tested[0]))
    record = train(plain)
    assert "test_images" not in record.data and not figures(record)
    for ours, theirs in zip(record.metrics["epochs"], tested[1].metrics["epochs"], strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    # Asked for later, the figures come from the checkpoint, and nothing is trained again.
    added = train(tiny(tmp_path, *TESTED), callbacks=[PowerCut(6), PowerCut(0)])
    assert figures(added) == figures(tested[1]) and added.metrics["epochs"] == record.metrics["epochs"]
    assert added.status == "finished" and len(added.attempts) == 2
    assert train(tiny(tmp_path, *TESTED), callbacks=[Watch(cut=True)]).ended == added.ended


def test_finished_run_says_where_its_tests_are_not_those_asked_for(tested, capsys):
    """They are no part of its cell: the record's figures could be taken for those of other images."""
    config, record, _ = tested
    same, none = tiny(config.output, *TESTED), tiny(config.output, *SHORT)
    assert train(same) == train(none) == record and "tested on" not in capsys.readouterr().err
    other = tiny(config.output, *TESTED, "data.procedural.shifts.bend=0.9", "data.procedural.test_images=13")
    assert train(other) == record
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{run_folder(config)}: was tested on data.procedural.test_images=12 (now 13), data.procedural.shifts.bend=0.8 "
        "(now 0.9); dk-bench eval --split test has others"
    )


def test_run_cut_off_in_its_test_goes_on_there(tested, tmp_path):
    config = tiny(tmp_path, *TESTED)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[Watch(cut=True)])
    assert read_record(run_folder(config) / "record.json").status == "failed"
    record = train(config, callbacks=[PowerCut(0), PowerCut(6)])
    assert record.status == "finished" and figures(record) == figures(tested[1])


def test_finished_run_without_a_checkpoint_stays_as_it_is(tested, tmp_path, capsys):
    folder = run_folder(tiny(tmp_path, *SHORT))
    train(tiny(tmp_path, *SHORT))
    (folder / "last.ckpt").unlink()
    assert not figures(train(tiny(tmp_path, *TESTED), callbacks=[PowerCut(0)]))
    assert "not trained again" in capsys.readouterr().err


def test_loggers_get_test_figures_in_the_summary_alone(wandb, tested, tmp_path):  # noqa: F811
    record = train(tiny(tmp_path, *TESTED, "wandb.mode=offline"))
    (logger,) = wandb.made
    assert FIGURES <= logger.experiment.summary.keys() and figures(record) == figures(tested[1])
    assert not any(name.startswith("test") for metrics in logger.metrics for name in metrics)


@pytest.mark.parametrize("key", ["metric", "metrics"])
def test_sweeps_for_a_test_figure_are_refused(tmp_path, capsys, key):
    metric = "{name: test/top1, goal: maximize}"
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"method: grid\nprogram: x\nparameters: {{a: {{values: [1]}}}}\n"
        f"{key}: {metric if key == 'metric' else f'[{metric}]'}\n"
    )
    assert main(["sweep", str(file), "--dry-run"]) == 2
    assert "key 'metric.name' is 'test/top1', expected a figure of validation" in capsys.readouterr().err


# Files


def with_test(root, *overrides):
    """Splits of files and their test split, of images that are in no other."""
    splits(root)
    for label, name in enumerate(("ant", "bee")):
        picture(root / "test" / name / "0.png", seed=5000 + label)
    return data_config(root, f"data.test={root}/test", *overrides)


def test_a_third_folder(tmp_path):
    data = ClassificationData(with_test(tmp_path), 0)
    data.check_splits()
    assert len(data.test_images["test"]) == 2
    assert [len(labels) for _, labels in data.test_dataloader()] == [2]
    assert [len(labels) for _, labels in data.val_dataloader()] == [2, 2, 2]


@pytest.mark.parametrize(("split", "kind"), [("train", "training"), ("val", "validation")])
def test_images_of_other_splits_are_refused(tmp_path, split, kind):
    config = with_test(tmp_path)
    (tmp_path / "test" / "ant" / "9.png").write_bytes((tmp_path / split / "bee" / "1.png").read_bytes())
    with pytest.raises(UserError) as error:
        ClassificationData(config, 0).check_splits()
    assert f"keys data.{split} and data.test: 1 of the 3 test images are {kind} images too" in str(error.value)
    assert f"ant/9.png (test) is bee/1.png ({split}); expected no image in both, or the test tells" in str(error.value)


def test_other_classes_are_refused(tmp_path):
    config = with_test(tmp_path)
    picture(tmp_path / "test" / "cat" / "0.png", seed=9)
    with pytest.raises(UserError, match=r"val \(.*, 2 classes\) and test \(.*, 3 .*\) differ .* only in test: cat"):
        ClassificationData(config, 0).check_splits()


def test_bad_test_data_are_told_before_training(tmp_path):
    config = tiny(
        tmp_path / "runs",
        "data.source=timm",
        "data.batch_size=2",
        "model.name=test_resnetdw",
        *(f"data.{split}={tmp_path}/{split}" for split in ("train", "val", "test")),
    )
    splits(tmp_path)
    with pytest.raises(UserError, match=r"key 'data\.test': .*/test"):
        train(config)
    assert not (run_folder(config) / "record.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.test=", "key 'data.test' is '', expected a folder, a tar"),
        ("data.procedural.test_images=-1", "key 'data.procedural.test_images' is -1, expected 0"),
    ],
)
def test_bad_keys_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_test_files_of_procedural_data_are_refused():
    with pytest.raises(UserError, match=r"key 'data\.test' is 'photos', but 'data\.source' is 'procedural'"):
        ClassificationData(load_config(None, ["data.test=photos"]).data, 0).val_images  # noqa: B018
