"""``dk-bench bench train``: what a step is, how models take turns, and the record; not their times."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

from dk_bench.analysis.bench import steps as bench_train
from dk_bench.analysis.bench.steps import CPU_SETS, OFFSET_STD, TimedModel, bench_models, make_model, time_models
from dk_bench.cli import main
from dk_bench.models import MODELS
from dk_bench.nn.offsets import offset_parameter_names
from dk_bench.report.benches import read_bench

CPU = torch.device("cpu")


def test_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_train, "SERIES_SECONDS", 0.01)
    path = tmp_path / "train.json"
    arguments = ["--models", "test_resnetdw_dk_*", "--size", "32", "--batch", "2", "--repeats", "3", "--bfloat16"]
    assert main(["bench", "train", *arguments, "--output", str(path)]) == 0
    assert "test_resnetdw_dk_s9" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert (record["schema_version"], record["kind"]) == (2, "model speeds")
    assert record["settings"]["precision"] == "bfloat16 autocast" and record["settings"]["rounds"] == 3
    [part] = record["parts"]
    assert part["instruction_set"] == torch.ops.dk_bench.cpu_variant() in json.dumps(part["machine"])
    speeds = part["speeds"]
    suffixes = ["", "_dk_s3", "_dk_s5", "_dk_s9", "_dk_pw", "_dk_spread", "_dk_lpw"]
    assert [s["model"].removeprefix("test_resnetdw") for s in speeds] == suffixes
    for s in speeds:
        assert (s["base"], s["batch"], s["size"], s["rounds"]) == ("test_resnetdw", 2, 32, 3)
        for mode in ("train", "eval"):
            assert s[f"{mode}_images_per_second"] == pytest.approx(2 / s[f"{mode}_seconds"])
            assert s[f"{mode}_ratio"] == pytest.approx(speeds[0][f"{mode}_seconds"] / s[f"{mode}_seconds"])
            assert s[f"{mode}_median"] >= s[f"{mode}_seconds"] > 0
    assert [r.title for r in read_bench(path).ratios] == [
        f"Models, batches of 2 at 32, bfloat16 autocast, {part['instruction_set']}"
    ]
    assert part["conclusions"][1].startswith("test_resnetdw_dk_s3 at 32: ")


def test_no_such_model(capsys):
    assert main(["bench", "train", "--models", "resnet49*"]) == 2
    assert "--models: no model matches 'resnet49*'" in capsys.readouterr().err
    with pytest.raises(KeyError):
        bench_models([type(CPU_SETS[0])(("resnet49",), 1, 32)], CPU, bfloat16=False)


def test_what_is_timed_by_default_is_there():
    for of in CPU_SETS:
        assert of.models[0] == MODELS[of.models[-1]].base and set(of.models) <= set(MODELS)


def test_a_step_is_a_whole_one_and_leaves_offsets_where_they_are(monkeypatch):
    timed = make_model("test_resnetdw_dk", CPU, 2, 32, False)
    offsets = [p for n, p in timed.model.named_parameters() if n in offset_parameter_names(timed.model)]
    before = [parameter.detach().clone() for parameter in offsets]
    assert any(parameter.std() > OFFSET_STD / 2 for parameter in offsets if parameter.ndim == 1)
    step, seen = torch.optim.SGD.step, []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: seen.append(self) or step(self))
    timed.model.train()
    timed.train()
    [optimizer] = seen
    assert all(torch.equal(a, b) for a, b in zip(before, offsets, strict=True))
    assert all(parameter.grad.abs().sum() > 0 for parameter in offsets[:2])
    buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in timed.model.parameters()]
    assert any(buffer.abs().sum() > 0 for buffer in buffers)


class FakeModel:
    """Steps of ``train`` and ``evaluation`` seconds by a clock that only steps move; every third one is disturbed."""

    now, called = 0.0, []

    def __init__(self, name, train, evaluation):
        self.name, self.count, model = name, 0, nn.Module()
        steps = [partial(self.step, model, *step) for step in ((True, train), (False, evaluation))]
        self.timed = TimedModel(name, model, *steps)

    def step(self, model, training, seconds):
        assert model.training == training
        self.count += 1
        FakeModel.called.append((self.name, training))
        FakeModel.now += seconds * (3 if self.count % 3 == 0 else 1)


def test_models_take_turns_in_changing_order(monkeypatch):
    monkeypatch.setattr(FakeModel, "now", 0.0)
    monkeypatch.setattr(FakeModel, "called", called := [])
    models = [FakeModel("base", 1.0, 0.5).timed, FakeModel("dk", 2.0, 0.5).timed]
    times = time_models(models, CPU, 9, lambda: FakeModel.now)
    [(base_train, base_evaluation), (train, evaluation)] = times
    assert (base_train.low, train.low, base_evaluation.low, evaluation.low) == (1.0, 2.0, 0.5, 0.5)
    assert base_train.high >= 1.0
    rounds = [tuple(called[start : start + 4]) for start in range(2, len(called), 4)]  # two found how long a step takes
    every = {(name, training) for name in ("base", "dk") for training in (True, False)}
    assert len(rounds) == 9 and all(set(order) == every for order in rounds) and len(set(rounds)) > 4


def test_short_steps_make_series_after_one_that_is_not_timed(monkeypatch):
    monkeypatch.setattr(FakeModel, "now", 0.0)
    monkeypatch.setattr(FakeModel, "called", called := [])
    time_models([FakeModel("base", 0.05, 1.0).timed], CPU, 1, lambda: FakeModel.now)
    assert called.count(("base", True)) == 1 + 1 + 5  # 0.25 s
    assert called.count(("base", False)) == 1 + 1
