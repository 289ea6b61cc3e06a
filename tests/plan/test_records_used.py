"""Which records a plan goes by, and how: those of one core, of the nearest batch; what memory they tell."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
import yaml

from dk_bench.models.workload import count_workload
from dk_bench.plan import roofline
from dk_bench.plan.devices import DEVICES, HALF, SINGLE
from dk_bench.plan.estimate import CellPlan, Machine, Speeds, plan_cell
from dk_bench.plan.listed import list_cells
from dk_bench.plan.measured import read_speeds
from dk_bench.plan.refit import refit

ROOT = Path(__file__).parents[2]
ON_H200, ON_CPU = ROOT / "results/gpu/train.json", ROOT / "results/bench/train-cpu.json"
IMAGENET = {"data.name": "imagenet", "data.source": "timm", "data.train": "a", "data.val": "b", "data.size": 224}
RESNET = IMAGENET | {"model.name": "resnet50dw", "data.batch_size": 128, "trainer.precision": "bf16-mixed"}
A_COPY = 0.0947e9  # bytes of the weights of that


def planned(folder: Path, parameters: dict, speeds: Speeds, device: str = "H200") -> CellPlan:
    """Returns the plan of one run of the demo with other settings."""
    command = ["dk-bench", "train", "demo", "${args_no_hyphens}"]
    values = {key: {"value": value} for key, value in parameters.items()}
    (folder / "it.yaml").write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": values}))
    (cell,) = list_cells([folder / "it.yaml"])
    return plan_cell(cell, Machine(DEVICES[device]), None, speeds)


def with_batch(speeds: Speeds, batch: int, train: float, memory: int) -> Speeds:
    """Returns the speeds after others of another batch, as a record of an earlier name would have them."""
    others = [dataclasses.replace(s, batch=batch, train=train, memory=memory, file="a.json") for s in speeds.models]
    return Speeds((*others, *speeds.models))


@pytest.fixture(scope="module")
def recorded() -> Speeds:
    return Speeds.read([ON_H200])


def test_a_record_of_the_same_batch_goes_before_others(recorded, tmp_path):
    plan = planned(tmp_path, RESNET, with_batch(recorded, 4, 300.0, 700_000_000))
    assert (plan.rate_source, plan.memory_source) == ("record", "record")
    assert plan.train_rate == pytest.approx(3556.8, abs=0.1) and plan.memory == 7754212864


def test_the_nearest_batch_is_scaled_by_the_guesses(recorded, tmp_path):
    """Of batches of 4 and 128, 1024 is nearer to the latter, whose steps the operators' starts do not hold up."""
    both = with_batch(recorded, 4, 300.0, 700_000_000)
    plan = planned(tmp_path, RESNET | {"data.batch_size": 1024}, both)
    assert plan.rate_source == plan.memory_source == "record, scaled" and plan.rate_file == str(ON_H200)
    assert plan.train_rate == pytest.approx(3556.8, abs=0.1)
    alone = Speeds(both.models[: len(recorded.models)])
    plan = planned(tmp_path, RESNET, alone)
    with torch.device("meta"):
        model = timm.create_model("resnet50dw").train()
    workload, device = count_workload(model, model, (3, 224, 224)), DEVICES["H200"]
    efficiency = roofline.efficiency_of(device, HALF)
    free = roofline.seconds_an_image(workload, device, HALF, "train", efficiency)
    held_up = roofline.with_starts(free, workload, device, "train", 4)
    assert held_up > free and plan.train_rate == pytest.approx(300 * held_up / free)
    assert plan.rate_source == "record, scaled" and plan.memory == pytest.approx(7.75e9, rel=0.35)


def test_a_record_on_a_cpu_is_as_it_stands(tmp_path):
    plan = planned(
        tmp_path, {"model.name": "test_resnetdw", "data.size": 64, "data.batch_size": 64}, Speeds.read([ON_CPU]), "CPU"
    )
    assert (plan.rate_source, plan.train_rate) == ("record", pytest.approx(1422.7, abs=0.1))


def test_one_core_goes_by_no_record_of_several_threads(tmp_path):
    several = json.loads(ON_CPU.read_text())
    several["device"]["threads"] = 8
    (tmp_path / "several.json").write_text(json.dumps(several))
    assert read_speeds([ON_CPU]) and not read_speeds([tmp_path / "several.json"])
    operators = json.loads((ON_CPU.parent / "ops-cpu.json").read_text())
    slow = copy.deepcopy(operators)
    slow["device"]["threads"] = 8
    for timing in slow["parts"][0]["timings"]:
        timing["gigabytes_per_second"] *= 8
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    benches = [ROOT / "results/bench", ROOT / "results/gpu"]
    refitted = refit([*benches, tmp_path / "several.json", tmp_path / "slow.json"], tmp_path / "it.json")
    assert refitted.read_text() == roofline.FILE.read_text()
    assert {speed.precision for speed in read_speeds([ON_CPU])} == {SINGLE}


@pytest.mark.parametrize("batch", [128, 1024])
def test_what_more_an_optimiser_keeps_comes_on_top_of_a_record(recorded, tmp_path, batch):
    optimisers = ({}, {"optim.optimizer": "adamw"}, {"optim.optimizer": "adamw", "ema.decay": 0.999})
    held = [planned(tmp_path, RESNET | {"data.batch_size": batch} | more, recorded).memory for more in optimisers]
    assert [after - before for before, after in zip(held, held[1:], strict=False)] == pytest.approx(
        [A_COPY, A_COPY], rel=0.01
    )


def test_weights_of_half_precision_take_half(recorded, tmp_path):
    mixed, half = (
        planned(tmp_path, RESNET | {"trainer.precision": name}, recorded) for name in ("bf16-mixed", "bf16-true")
    )
    assert (half.rate_source, half.memory_source) == ("record, scaled", "record, scaled")  # the record's is autocast
    assert half.disk == pytest.approx(mixed.disk / 2, rel=0.02)
    guessed = [planned(tmp_path, RESNET | {"trainer.precision": name}, Speeds()) for name in ("16-mixed", "16-true")]
    # Weights, gradients, momentum in half of their bytes, and no copies of weights that autocast makes.
    assert guessed[0].memory - guessed[1].memory == pytest.approx(2 * A_COPY, rel=0.01)
