"""Arguments that would be passed over, checkpoints that mislead, and what is left out: each is told."""

import json
from pathlib import Path

import pytest
import torch
from learned_cases import checkpoint
from PIL import Image
from table_cases import make_record

from dk_bench.analysis.learned import load
from dk_bench.analysis.subjects import open_model
from dk_bench.classification.task import Classification
from dk_bench.cli import main
from dk_bench.cli.records import read_records
from dk_bench.config import Config
from dk_bench.errors import UserError
from dk_bench.runs.record import write_record


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (40, 40)).save("a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "ops", "--models", "resnet*"], "--models: does not go with ops"),
        (["bench", "ops", "--batch", "2"], "--batch: does not go with ops"),
        (["bench", "ops", "--size", "64"], "--size: does not go with ops"),
        (["bench", "ops", "--bfloat16"], "--bfloat16: does not go with ops"),
        (["bench", "train", "--shapes", "8,6"], "--shapes: does not go with train"),
        (
            ["erf", "test_resnetdw", "--root", "folder"],
            "--root folder: goes with --images and annotations, got procedural",
        ),
        (
            ["erf", "test_resnetdw", "--root", "folder", "--images", "folder"],
            "--root folder: goes with --images and anno",
        ),
        (
            ["dynamics", "last.ckpt", "--images", "folder"],
            "--images folder: goes with --data, annotations that name them",
        ),
        (["dynamics", "last.ckpt", "--perplexity", "nan"], "--perplexity: expected a number above 0, got nan"),
        (["dynamics", "last.ckpt", "--perplexity", "0"], "--perplexity: expected a number above 0, got 0.0"),
        (["dynamics", "last.ckpt", "--perplexity", "-3"], "--perplexity: expected a number above 0, got -3.0"),
        (["replay", "record.json", "--force"], "--force: goes with --run"),
        (["eval", "last.ckpt", "--record", "folder"], "--record folder: is a folder, expected a file"),
        (
            ["eval", "last.ckpt", "--record", "a.png/x.json"],
            "--record a.png/x.json: a.png is a file, expected a folder",
        ),
        (["tables", "folder"], "folder: no record in it, expected record.json or *.record.json anywhere below"),
    ],
)
def test_arguments_that_would_be_passed_over_are_named(arguments, message, here, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"dk-bench {arguments[0]}: {message}")


def test_picture_takes_overrides_without_a_configuration(here):
    assert main(["picture", "data.procedural.classes=2", "data.size=20", "--rows", "1", "--output", "two.png"]) == 0
    assert main(["picture", "--rows", "1", "--output", "ten.png"]) == 0
    assert Image.open("two.png").width < Image.open("ten.png").width / 4


def test_picture_of_few_images_has_the_rows_that_there_are(here, capsys):
    few = ["picture", "data.procedural.classes=2", "data.size=20"]
    assert main([*few, "data.procedural.train_images=5", "--output", "few.png"]) == 0
    assert main([*few, "--rows", "2", "--output", "two.png"]) == 0
    assert Image.open("few.png").size == Image.open("two.png").size
    assert main([*few, "data.procedural.train_images=1", "--output", "none.png"]) == 2
    assert "there are 1 images, expected one of each of 2 classes (" in capsys.readouterr().err


def test_tables_say_which_records_they_have_not(here, capsys):
    write_record(make_record("test_resnetdw", 50.0), "runs/a/record.json")
    evaluation = make_record("test_resnetdw", 51.0)
    evaluation.task = "evaluation"
    write_record(evaluation, "runs/b.record.json")
    assert main(["tables", "runs", "--table", "demo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 records, 1 of them evaluations, which no table has; ")


def test_record_of_an_unknown_task_is_named(here):
    """It would stand in no table."""
    write_record(make_record("test_resnetdw", 50.0), "record.json")
    content = json.loads((here / "record.json").read_text()) | {"task": "segmentation"}
    (here / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="task is 'segmentation', expected one of classification, detection, eval"):
        read_records([Path("record.json")])


def test_top_5_of_five_classes_is_not_told():
    task, figures = Classification(Config()), {"val/top1": 40.0, "val/top5": 100.0}
    assert task.summary(figures, classes=5) == "top-1 40.00 %"
    assert task.summary(figures, classes=6) == "top-1 40.00 %  top-5 100.00 %"


def changed(path, **parts):
    torch.save(torch.load(path, weights_only=False) | parts, path)
    return path


def test_weights_of_a_diverged_run_are_named(here, capsys):
    """Comparisons with NaN are false: none of its taps would be outside."""
    path = checkpoint(here / "last.ckpt", "test_resnetdw_dk")
    weights = torch.load(path, weights_only=False)["state_dict"]
    name = next(name for name in weights if name.endswith("kernel_offset.bias"))
    weights[name][0] = torch.nan
    changed(path, state_dict=weights)
    message = f"{path}: weights {name.removeprefix('model.')} are not finite, expected those of a run that did not"
    for arguments in (["kernels", str(path), "--image", "a.png"], ["erf", str(path)], ["dynamics", str(path)]):
        assert main([*arguments, "--output", "out"]) == 2
        assert message in capsys.readouterr().err


def test_names_say_that_a_run_has_not_come_to_its_end(here):
    path = checkpoint(here / "last.ckpt", "test_resnetdw_dk", seed=2)
    whole = load(path).config.optim.epochs
    assert load(path).name == "test_resnetdw_dk" and open_model(str(path)).name == "test_resnetdw_dk (seed 2)"
    for epochs, words in ((3, f", after 3 of {whole} epochs"), (whole, "")):
        changed(path, callbacks={"RunKeeper": {"epochs": [{}] * epochs}})
        assert load(path).name == f"test_resnetdw_dk{words}"
        subject = open_model(str(path))
        assert (subject.kind, subject.name) == (f"test_resnetdw_dk{words}", f"test_resnetdw_dk{words} (seed 2)")
