"""Tasks are told apart: by the names of configuration files, and in folders that runs of two of them would share."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from training_cases import ONE_STEP

from dk_bench import tasks
from dk_bench.classification.task import Classification
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.runs.record import find_records, read_record, write_record
from dk_bench.sweep.job import TrainingRun
from dk_bench.sweep.replay import replayed_below, resolve

ROOT = Path(__file__).parents[1]


class Counting(Classification):
    """Another task whose configurations are those of classification."""

    name = "counting"


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    kind = tasks.Kind("counting", f"{__name__}:Counting", "val/top1", "counted, %", "counting*.yaml")
    monkeypatch.setattr("dk_bench.tasks.KINDS", tasks.KINDS | {"counting": kind})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of classification, and the arguments that make a run of any such task go there."""
    output = tmp_path_factory.mktemp("trained")
    arguments = [*ONE_STEP, "model.name=test_resnetdw", f"output={output}"]
    assert main(["train", str(shutil.copy(ROOT / "configs" / "demo.yaml", output / "other.yaml")), *arguments]) == 0
    shutil.copy(ROOT / "configs" / "demo.yaml", output / "counting.yaml")
    return tasks.load(output / "other.yaml", arguments).folder, arguments


def test_a_file_is_of_one_task_from_wherever_it_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "counting" / "configs"
    folder.mkdir(parents=True)
    for name in ("counting.yaml", "other.yaml"):
        shutil.copy(ROOT / "configs" / "demo.yaml", folder / name)
    for place in (folder, tmp_path):
        monkeypatch.chdir(place)
        for path in (folder, folder.relative_to(place)):
            assert [tasks.load(path / name).name for name in ("counting.yaml", "other.yaml")] == [
                "counting",
                "classification",
            ]
    assert tasks.load(None).name == "classification"
    monkeypatch.setattr("dk_bench.tasks.KINDS", {"a": replace(tasks.KINDS["counting"], files="configs/counting*.yaml")})
    monkeypatch.chdir(folder)
    assert tasks.load("counting.yaml").name == "counting"


@pytest.mark.parametrize("left", ["record.json", "last.ckpt"])
def test_a_run_is_not_taken_for_one_of_another_task(trained, tmp_path, monkeypatch, left):
    """Equal configurations have one folder: what another task left there is refused before there are data."""
    folder, arguments = trained
    task = tasks.load(folder.parent / "counting.yaml", [*arguments, f"output={tmp_path}"])
    assert task.folder.name == folder.name
    task.folder.mkdir()
    shutil.copy(folder / left, task.folder)
    monkeypatch.setattr(Counting, "data", None)
    expected = f"{task.folder}: holds a run of classification, this one is of counting; expected another name or output"
    with pytest.raises(UserError) as error:
        tasks.train(task)
    assert str(error.value) == expected
    assert [path.name for path in task.folder.iterdir() if path.name != "run.lock"] == [left]


def test_sweeps_do_not_take_another_tasks_run_for_theirs(trained):
    folder, arguments = trained
    runs = [TrainingRun.of(tasks.load(folder.parent / name, arguments)) for name in ("other.yaml", "counting.yaml")]
    assert [run.folder for run in runs] == [folder] * 2
    assert [run.look()[0] for run in runs] == ["finished", "free"] and runs[1].record() is None


def test_replays_are_of_the_records_task(trained, tmp_path):
    folder, arguments = trained
    record = read_record(folder / "record.json")
    command = ["dk-bench", "train", str(folder.parent / "counting.yaml"), *arguments]
    with pytest.raises(UserError, match=r"counting\.yaml: a configuration of counting, expected one of classification"):
        resolve(command, record.task)
    config = resolve(command, "counting")
    write_record(replace(record, run_id="another"), tmp_path / "record.json")
    (path,) = find_records([tmp_path])
    assert replayed_below(tmp_path, record, folder / "record.json", config)[0] == path
    with pytest.raises(UserError, match="another run; expected an --output without runs"):
        replayed_below(tmp_path, replace(record, task="counting"), folder / "record.json", config)


def test_tables_say_whose_records_they_leave_out(trained, tmp_path, capsys):
    record = read_record(trained[0] / "record.json")
    for n, task in enumerate(("classification", "counting", "counting", "evaluation")):
        write_record(replace(record, task=task, run_id=str(n)), tmp_path / f"{n}.record.json")
    assert main(["tables", str(tmp_path), "--table", "detection", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    of_counting, evaluations = "2 of them counting, which no table has", "1 of them evaluations, which no table has"
    assert said.startswith(f"4 records, {of_counting}, {evaluations}; wrote {tmp_path / 'out' / 'table3.md'}")


def test_what_is_no_configuration_is_of_no_task():
    with pytest.raises(TypeError, match="config: expected a configuration or a Task, got PosixPath"):
        tasks.train(ROOT / "configs" / "demo.yaml")
