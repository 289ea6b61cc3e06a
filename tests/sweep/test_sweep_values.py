"""What a sweep file says is what its runs get: values as they are written, and refusals before anything starts."""

import pytest
import yaml

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.job import task_in
from dk_bench.sweep.listing import make_jobs


def sweep_file(folder, parameters, **more):
    (folder / "c.yaml").write_text("name: swept\n")
    path = folder / "try.yaml"
    command = ["dk-bench", "train", str(folder / "c.yaml"), "${args_no_hyphens}"]
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters} | more))
    return path


NAMES = ["007", "7", "1e5", "no", "try #1", "try #2", " a", "None", "a=b"]
FREE = ["1", 1, "it's", None, True, "x, y"]
SOUND = [
    {"name": {"values": NAMES}},
    {"optim.lr": {"values": ["1e-4", 1e-05, 4.0]}, "ema.decay": {"values": [None, 0.5]}},
    {"model": {"parameters": {"kwargs": {"parameters": {"a": {"values": FREE}}}}}},
    {"data.train": {"value": "/data/run #2/train"}, "data.augment.scale": {"values": [[0.5, 1.0], None]}},
]


def test_points_are_what_the_file_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    read = []
    for parameters in SOUND:
        path = sweep_file(tmp_path, parameters)
        assert main(["sweep", str(path), "--dry-run"]) == 0
        jobs = make_jobs(read_sweep(path), None)
        assert len(capsys.readouterr().out.splitlines()) == len(jobs)
        read.append([task_in(job.argv).run for job in jobs])
    assert [config.name for config in read[0]] == NAMES
    assert {config.optim.lr for config in read[1]} == {1e-4, 1e-5, 4.0}
    assert [config.model.kwargs["a"] for config in read[2]] == FREE
    assert {config.data.train for config in read[3]} == {"/data/run #2/train"}


@pytest.mark.parametrize(
    ("parameters", "status", "sentence"),
    [
        (
            {"name": {"values": ["1", 1]}},
            2,
            "parameter 'name' has '1' and 1, which are one argument, name=1; expected one",
        ),
        ({"name": {"values": [True, "a"]}}, 2, "'name' is True in the sweep file, and 'True' to the configuration"),
        ({"name": {"value": None}}, 2, "parameter 'name' is None in the sweep file, and 'None' to the configuration"),
        ({"name": {"value": 1.5}}, 2, "parameter 'name' is 1.5 in the sweep file, and '1.5' to the configuration"),
        ({"data.train": {"value": "null"}}, 2, "parameter 'data.train' is 'null' in the sweep file, and None to the"),
        ({"model.kwargs.a": {"values": ["1", "b"]}}, 2, "'model.kwargs.a' is '1' in the sweep file, and 1 to the"),
        ({"model.kwargs.a": {"values": ["true"]}}, 2, "'model.kwargs.a' is 'true' in the sweep file, and True to"),
        ({"optim.lr": {"values": ["0.10", "1e-1"]}}, 2, "is '0.10' in the sweep file, and 0.1 to the"),
        ({"optim.lr": {"values": ["1e-1", 0.1]}}, 2, "points 'optim.lr=1e-1' and 'optim.lr=0.1' are one run"),
        ({"output": {"values": ["a", "b/../a"]}}, 2, "points 'output=a' and 'output=b/../a' are one run"),
        ({"wandb.project": {"values": ["a", "b"]}}, 2, "are one run, runs/swept-44136fa355b3-s0: they differ in what"),
        ({"optim.lr": {"values": [0.1, "fast"]}}, 1, "run 'optim.lr=fast' will fail: optim.lr=fast: key 'optim.lr' is"),
        ({"optim.lrr": {"value": 1}}, 1, "unknown key 'optim.lrr', did you mean 'optim.lr'?"),
    ],
)
def test_dry_run_refuses_what_the_sweep_refuses(tmp_path, monkeypatch, capsys, parameters, status, sentence):
    monkeypatch.chdir(tmp_path)
    path = sweep_file(tmp_path, parameters)
    assert main(["sweep", str(path), "--dry-run"]) == status
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    if status == 2:
        monkeypatch.setattr("dk_bench.cli.sweep.run_jobs", lambda *_, **__: pytest.fail("the sweep started"))
        assert main(["sweep", str(path)]) == 2
        assert sentence in capsys.readouterr().err


def test_dry_run_names_every_run_that_will_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = sweep_file(tmp_path, {"optim.lr": {"values": [0.1, "fast", -1]}})
    assert main(["sweep", str(path), "--dry-run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "run 'optim.lr=-1' will fail: key 'optim.lr' is -1.0, expected a positive" in lines[1]
    path = sweep_file(tmp_path, {"seed": {"value": 1}}, command=["dk-bench", "train", "none.yaml", "${args}"])
    assert main(["sweep", str(path), "--dry-run"]) == 1
    assert "none.yaml: no configuration can be read there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a: {values: [007, 8]}", "line 3: 007 is 7 to YAML, expected '007' or what is meant"),
        ("a: {values: [12:30]}", "line 3: 12:30 is 750 to YAML"),
        ("a: {value: no}", "line 3: no is false to YAML"),
        ("a: {value: 0x10}", "line 3: 0x10 is 16 to YAML"),
        ("a: {value: 1_000}", "line 3: 1_000 is 1000 to YAML"),
        ("a: {value: 2020-01-01}", "line 3: 2020-01-01 is a date to YAML"),
        ("a: {value: 0b_}", "line 3: 0b_ is no text but of tag !!int to YAML"),
        ("a: {value: 1}\n  a: {value: 2}", "line 4: key 'a' stands there twice"),
    ],
)
def test_sweep_files_hold_what_is_written(tmp_path, line, sentence):
    path = tmp_path / "try.yaml"
    path.write_text(f"method: grid\nparameters:\n  {line}\nprogram: t.py\n")
    with pytest.raises(UserError) as error:
        read_sweep(path)
    assert str(error.value).startswith(f"{path}: {sentence}")
