"""The optimiser's groups and the schedule."""

import pytest
import timm
import torch

from dk_bench.classification.recipe import build_optimizer, offset_lr_multiplier, parameter_groups
from dk_bench.classification.schedules import schedule
from dk_bench.config import OptimConfig
from dk_bench.errors import UserError
from dk_bench.nn import offset_parameter_names


def test_every_parameter_is_in_one_group_with_its_rate_and_decay():
    model = timm.create_model("test_resnetdw_dk", num_classes=3)
    offsets = offset_parameter_names(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in parameter_groups(model, OptimConfig(lr=0.2, weight_decay=1e-3), "test_resnetdw_dk"):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr"] == pytest.approx(0.2 * (0.01 if name in offsets else 1))
            assert group["weight_decay"] == (1e-3 if parameter.ndim > 1 else 0)
            kind = "offset" if name in offsets else "base"
            assert group["name"] == kind + ("" if parameter.ndim > 1 else "_no_decay")
    assert offsets and sorted(seen) == sorted(names.values())


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig(), "linear")
    assert [group["name"] for group in groups] == ["base_no_decay"]


@pytest.mark.parametrize(
    ("setting", "model", "expected"),
    [
        ("auto", "resnet50dw_dk", 0.01),
        ("auto", "mobilenetv2_100_dk", 0.1),
        ("auto", "convnext_tiny", 0.01),
        (0.5, "mobilenetv2_100_dk", 0.5),
        (0.0, "resnet50dw_dk", 0.0),
    ],
)
def test_offset_multiplier(setting, model, expected):
    assert offset_lr_multiplier(OptimConfig(offset_lr_multiplier=setting), model) == expected


def test_schedule_values():
    assert [schedule(step, 4, 12) for step in (0, 1, 2, 4)] == [0, 0.25, 0.5, 1]
    assert schedule(8, 4, 12) == pytest.approx(0.5)
    assert schedule(12, 4, 12) == pytest.approx(0)
    assert schedule(0, 0, 12) == 1


def test_schedule_moves_every_group_alike():
    model = timm.create_model("test_resnetdw_dk", num_classes=3)
    optimizer, scheduler = build_optimizer(model, OptimConfig(lr=0.4, epochs=3, warmup_epochs=1), "test_resnetdw_dk", 4)
    rates = []
    for _ in range(12):
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert [r["base"] for r in rates[:5]] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert rates[8]["base"] == pytest.approx(0.2)
    assert all(r["offset"] == pytest.approx(0.01 * r["base"]) for r in rates)


def test_a_schedule_goes_on_as_long_as_it_was_meant():
    model = torch.nn.Linear(2, 2)
    _, scheduler = build_optimizer(model, OptimConfig(epochs=3, warmup_epochs=1), "linear", 4)
    state = scheduler.state_dict()
    scheduler.load_state_dict({**state, "last_epoch": 5})
    assert scheduler.last_epoch == 5
    older = {key: value for key, value in state.items() if key not in ("warmup_steps", "total_steps")}
    scheduler.load_state_dict(older)  # of checkpoints that do not say
    assert (scheduler.last_epoch, scheduler.total_steps) == (0, 12)
    with pytest.raises(UserError, match="has 20 optimiser steps, this run 12: expected the same batches"):
        scheduler.load_state_dict({**state, "total_steps": 20})
