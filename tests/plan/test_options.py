"""Options of a plan: numbers of images that are given, records that are named by hand, a refit by itself."""

import json
from pathlib import Path

import pytest

from dk_bench.classification.outlining import outline_of
from dk_bench.cli import main
from dk_bench.config import Config
from dk_bench.errors import UserError
from dk_bench.plan.estimate import replace, with_images
from dk_bench.plan.measured import MODELS, bench_records

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        ({"train": 2400, "val": 1000}, (100, 50), [2400, 1000]),
        ({"train": None, "val": 1000}, (100, 50), [100, 1000]),
        ({"train": None, "val": None}, (100, 50), [100, 50]),
        ({"train": 2400, "val": 1000, "test": None}, (100, 50), [2400, 1000, 50]),
        ({"train": 2400, "val": 1000, "test": None}, (100, 50, 7), [2400, 1000, 7]),
        ({"train": None, "val": None, "test": 20}, (100, 50, 7), [100, 50, 20]),
    ],
)
def test_numbers_that_are_given_are_of_what_is_not_known(known, given, expected):
    outline = replace(outline_of(Config()), images=known)
    assert [*with_images(outline, given).images.values()] == expected


@pytest.mark.parametrize("name", ["other.json", "record.json", "a.record.json"])
def test_a_file_named_by_hand_is_a_bench_record(name, tmp_path):
    file = tmp_path / name
    for content in ({"kind": "plan", "cells": []}, {"kind": MODELS}, [], {"kind": ["x"], "parts": []}):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"--bench .*{name}: is no record of `dk-bench bench`"):
            bench_records([file], MODELS)
        assert bench_records([tmp_path], MODELS) == []
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=rf"--bench .*{name}: is no JSON"):
        bench_records([file], MODELS)
    file.write_bytes((ROOT / "results/bench/train-cpu.json").read_bytes())
    assert [path for path, _ in bench_records([file], MODELS)] == [file]


def test_a_refit_goes_alone(monkeypatch, capsys):
    monkeypatch.setattr("dk_bench.cli.plan.refit", lambda places: "efficiency.json")
    assert main(["plan", "--refit"]) == 0
    assert capsys.readouterr().err == "wrote efficiency.json\n"
    assert main(["plan"]) == 2
    assert "expected a sweep file, --tables-from or --refit" in capsys.readouterr().err
