"""Schedules of steps beside timm's, of groups and of runs."""

import random

import pytest
import timm
import torch
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
    TanhLRScheduler,
    create_scheduler_v2,
)
from timm.scheduler.wsd_lr import WSDLRScheduler
from training_cases import ONE_STEP

from dk_bench.classification.recipe import build_optimizer
from dk_bench.classification.schedules import SHAPE, TimmSchedule, WarmupCosine, check_rates, is_papers
from dk_bench.config import OptimConfig, load_config
from dk_bench.config.optim_section import CURVES
from dk_bench.errors import UserError
from dk_bench.training import train

LR, EPOCHS, STEPS, WARMUP = 0.4, 10, 6, 2  # steps of an epoch
TOTAL, WARM = EPOCHS * STEPS, WARMUP * STEPS
COMMON = {"t_in_epochs": False, "warmup_t": WARM, "warmup_lr_init": 0.01}


def rates(config):
    """The learning rate of every step, by the group's name."""
    model = timm.create_model("test_resnetdw_dk", num_classes=3)
    optimizer, scheduler = build_optimizer(model, config, "test_resnetdw_dk", STEPS)
    found = []
    for _ in range(TOTAL):
        found.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()
    return found


def rates_of_timm(scheduler_class, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, found = scheduler_class(optimizer, **arguments), []
    for step in range(TOTAL):
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def config_of(**settings):
    written = {"lr": LR, "epochs": EPOCHS, "warmup_epochs": WARMUP, "offset_lr_multiplier": 0.1, **settings}
    return load_config(None, [f"optim.{key}={value}" for key, value in written.items()]).optim


@pytest.mark.parametrize(
    ("settings", "scheduler_class", "arguments"),
    [
        ({"min_lr": 0.02}, CosineLRScheduler, {"t_initial": TOTAL - WARM, "lr_min": 0.02, "warmup_prefix": True}),
        ({"warmup_prefix": False}, CosineLRScheduler, {"t_initial": TOTAL}),
        (
            {"cooldown_epochs": 2, "min_lr": 0.02, "k_decay": 1.5},
            CosineLRScheduler,
            {"t_initial": TOTAL - WARM - 2 * STEPS, "lr_min": 0.02, "k_decay": 1.5, "warmup_prefix": True},
        ),
        (
            {"cycle_limit": 2, "cycle_decay": 0.4, "cycle_mul": 3},
            CosineLRScheduler,
            {"t_initial": 12, "cycle_mul": 3, "cycle_decay": 0.4, "cycle_limit": 2, "warmup_prefix": True},
        ),
        ({"schedule": "tanh"}, TanhLRScheduler, {"t_initial": TOTAL - WARM, "warmup_prefix": True}),
        (
            {"schedule": "poly", "decay_rate": 0.9, "min_lr": 0.01},
            PolyLRScheduler,
            {"t_initial": TOTAL - WARM, "power": 0.9, "lr_min": 0.01, "warmup_prefix": True},
        ),
        (
            {"schedule": "step", "decay_epochs": 2.5},
            StepLRScheduler,
            {"decay_t": 15, "decay_rate": 0.1, "warmup_prefix": False},
        ),
        (
            {"schedule": "step", "decay_epochs": 3, "warmup_prefix": True},
            StepLRScheduler,
            {"decay_t": 18, "decay_rate": 0.1, "warmup_prefix": True},
        ),
        (
            {"schedule": "multistep", "decay_milestones": [4, 7.5], "decay_rate": 0.2},
            MultiStepLRScheduler,
            {"decay_t": [24, 45], "decay_rate": 0.2, "warmup_prefix": False},
        ),
        ({"schedule": "constant"}, StepLRScheduler, {"decay_t": 1, "decay_rate": 1.0}),
        ({"schedule": "wsd"}, WSDLRScheduler, {"t_initial": TOTAL - WARM, "decay_t": 10}),  # a fifth
        (
            {"schedule": "rsqrt", "decay_epochs": 3, "min_lr": 0.01},
            WSDLRScheduler,
            {"t_initial": TOTAL - WARM, "decay_t": 18, "lr_min": 0.01, "stable_fn": "rsqrt", "decay_fn": "linear"},
        ),
    ],
    ids=str,
)
def test_every_step_is_timms_and_offset_generators_keep_their_multiplier(settings, scheduler_class, arguments):
    """In the warm-up's first value and the schedule's last one, too."""
    config = config_of(warmup_lr=0.01, **settings)
    expected = rates_of_timm(scheduler_class, **COMMON, **arguments)
    found = rates(config)
    assert [step["base"] for step in found] == pytest.approx(expected, rel=1e-12)
    assert [step["offset"] for step in found] == pytest.approx([0.1 * rate for rate in expected], rel=1e-12)
    assert found[0]["base"] == 0.01 and max(expected) > 0.3 and len(set(expected)) > WARM


@pytest.mark.parametrize("schedule", ["cosine", "tanh", "poly", "step", "wsd", "rsqrt", "constant"])
def test_steps_are_those_of_timms_own_factory(schedule):
    """As its train.py calls it with --sched-on-updates and --warmup-prefix, which counts epochs after the warm-up."""
    config = config_of(schedule=schedule, warmup_lr=0.01, **({"warmup_prefix": True} if schedule == "step" else {}))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    told = {"warmup_lr": 0.01, "warmup_epochs": WARMUP, "warmup_prefix": True, "num_epochs": EPOCHS - WARMUP}
    scheduler, epochs = create_scheduler_v2(optimizer, schedule, **told, step_on_epochs=False, updates_per_epoch=STEPS)
    assert epochs == EPOCHS
    for step, found in enumerate(rates(config)):
        scheduler.step_update(step)
        assert found["base"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_the_papers_is_timms_cosine_and_the_default():
    config = config_of()
    assert is_papers(config) and not is_papers(config_of(min_lr=1e-6)) and not is_papers(config_of(schedule="poly"))
    arguments = {"t_initial": TOTAL - WARM, "warmup_prefix": True, "t_in_epochs": False, "warmup_t": WARM}
    expected = rates_of_timm(CosineLRScheduler, **arguments)
    assert [step["base"] for step in rates(config)] == pytest.approx(expected, rel=1e-12)
    close = rates(config_of(min_lr=1e-12))  # timm's takes over where the paper's ends
    assert [step["base"] for step in close] == pytest.approx(expected, abs=1e-11)
    model = torch.nn.Linear(2, 2)
    assert isinstance(build_optimizer(model, config, "", STEPS)[1], WarmupCosine)
    assert isinstance(build_optimizer(model, config_of(schedule="poly"), "", STEPS)[1], TimmSchedule)


def test_all_that_shapes_a_schedule_is_known():
    others = "optimizer lr momentum weight_decay kwargs layer_decay offset_lr_multiplier offset_weight_decay".split()
    assert set(SHAPE) | {*others, "epochs", "warmup_epochs"} == set(OptimConfig.__dataclass_fields__)


def test_a_schedule_goes_on_as_long_as_it_was_meant():
    config = config_of(schedule="poly")
    model = torch.nn.Linear(2, 2)
    optimizer, scheduler = build_optimizer(model, config, "", STEPS)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    optimizer, fresh = build_optimizer(model, config, "", STEPS)
    fresh.load_state_dict(scheduler.state_dict())
    assert fresh.last_epoch == 7 and fresh.get_last_lr() == scheduler.get_last_lr()
    assert optimizer.param_groups[0]["lr"] == fresh.get_last_lr()[0]
    with pytest.raises(UserError, match="has 20 optimiser steps, this run 60: expected the same batches"):
        fresh.load_state_dict({"last_epoch": 7, "total_steps": 20})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=plateau"], "expected cosine, tanh, .* timm's plateau goes by figures of epochs"),
        (["schedule=rsqrt", "warmup_epochs=0"], "rsqrt after a warm-up"),
        (["schedule=multistep"], "key 'optim.decay_milestones' is .*, expected rising epochs before optim.epochs with"),
        (["schedule=multistep", "decay_milestones=[30,20]"], "expected rising epochs"),
        (["decay_milestones=[30]"], "with optim.schedule=multistep, otherwise none"),
        (
            ["schedule=step", "min_lr=0.01"],
            "expected 0.0, or up to optim.lr with optim.schedule cosine, tanh, poly, wsd",
        ),
        (["min_lr=1"], "up to optim.lr"),
        (["warmup_lr=1"], "key 'optim.warmup_lr' is 1.0, expected 0 to optim.lr"),
        (["cycle_mul=2"], "for several cycles"),
        (["cooldown_epochs=85"], "fewer than optim.epochs leaves after the warm-up"),
        (
            ["schedule=wsd", "warmup_prefix=true"],
            "expected null, or true or false after a warm-up with optim.schedule cosine, tanh, poly",
        ),
        (["k_decay=2", "schedule=tanh"], "expected 1.0, or above 0 with optim.schedule cosine or poly"),
    ],
)
def test_what_a_schedule_does_not_have_is_told(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [f"optim.{override}" for override in overrides])
    assert "\n" not in str(error.value)


def test_a_schedule_too_long_for_its_training_is_told():
    with pytest.raises(UserError, match="key 'optim.schedule' is 'wsd', which does not go into 60 steps: wsd sched"):
        rates(config_of(schedule="wsd", decay_epochs=9))


@pytest.mark.parametrize("schedule", ["cosine", "tanh", "poly"])
@pytest.mark.parametrize("cooldown", [0, 4])
def test_ever_shorter_cycles_end_at_min_lr(schedule, cooldown):
    """Of which timm would tell how many more fit behind the last: a logarithm of nothing, or of less."""
    more = {"cooldown_epochs": cooldown, "min_lr": 0.01, "warmup_epochs": 0}
    found = [step["base"] for step in rates(config_of(schedule=schedule, cycle_limit=2, cycle_mul=0.5, **more))]
    end = TOTAL - cooldown * STEPS
    assert found[0] == pytest.approx(LR, rel=1e-4) and found[2 * end // 3] == pytest.approx(LR / 2, rel=1e-4)
    assert min(found[:end]) > 0.01 and found[end:] == [0.01] * (TOTAL - end)
    many = rates(config_of(schedule=schedule, cycle_limit=60, cycle_mul=0.5, **more))
    assert all(0.01 <= step["base"] <= LR for step in many) and len(many) == TOTAL


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cycle_limit": 400, "cycle_mul": 1000}, "Numerical result out of range; .*cycle_limit=400, optim.cycle_mul"),
        (
            {"k_decay": 400},
            "Numerical result out of range; expected another or others than optim.warmup_lr=0.01, optim.k_decay=400.0$",
        ),
        ({"schedule": "step", "decay_epochs": 1, "decay_rate": 1e60}, "Numerical result out of range"),
        ({"schedule": "multistep", "decay_milestones": [1, 2], "decay_rate": 1e200}, "Numerical result out of range"),
        (
            {"schedule": "poly", "cycle_limit": 3, "cycle_mul": 1 + 1e-15},
            "the rate of step 45 would be .0.144.*j.; exp",
        ),
        ({"cycle_limit": 3, "cycle_mul": 1 + 1e-15, "k_decay": 1.5}, "must be real number, not complex"),
        ({"warmup_epochs": 9.99}, "none is left between warm-up and cool-down"),
    ],
)
def test_a_schedule_that_would_fail_at_some_step_is_told_before_the_first(settings, why):
    with pytest.raises(UserError, match=f"key 'optim.schedule' is '.*', which does not go into 60 steps: {why}"):
        build_optimizer(torch.nn.Linear(2, 2), config_of(warmup_lr=0.01, **settings), "", STEPS)


def drawn_settings(draw):
    """Settings of a schedule, some of them beyond reason."""
    schedule, some = draw.choice("cosine tanh poly step multistep wsd rsqrt".split()), {"warmup_epochs": [0.5, 2]}
    if schedule in CURVES:
        some |= {"cooldown_epochs": [0.1, 3], "cycle_decay": [0, 0.4, 1], "k_decay": [0.1, 1.5, 3, 200]}
        some |= {"cycle_mul": [0.3, 0.9, 1.5, 3, 1000, 1e-200, 1 + 1e-15], "warmup_prefix": [True, False]}
    some |= {"decay_epochs": [0.5, 3, 1e300]} if schedule in ("step", "wsd", "rsqrt") else {}
    some |= {"decay_rate": [0.9, 1e-300, 1e3, 1e300]} if schedule in ("step", "multistep", "poly") else {}
    settings = {key: draw.choice(values) for key, values in some.items() if draw.random() < 0.4}
    if schedule in CURVES:
        settings["cycle_limit"] = draw.choice([2, 3, 7, 60, 10**6, 10**400])
    if schedule == "multistep":
        settings["decay_milestones"] = draw.choice([[1], [1, 2.5]])
    return settings | {"schedule": schedule}


def test_no_schedule_fails_once_it_has_begun():
    """Of whatever is drawn: refused with the configuration, or before the first step, or a rate for every step."""
    draw, outcomes, told = random.Random(0), {"refused": 0, "told": 0, "fine": 0}, "which does not go into"
    for _ in range(200):
        try:
            config = config_of(**drawn_settings(draw))
        except UserError:
            outcomes["refused"] += 1
            continue
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        try:
            check_rates(config, STEPS)
        except UserError as error:
            outcomes["told"] += told in str(error)
            continue
        schedule, (group,) = TimmSchedule(optimizer, config, STEPS), optimizer.param_groups
        optimizer.step()
        for _ in range(TOTAL):
            assert isinstance(group["lr"], float) and group["lr"] >= 0
            schedule.step()
        outcomes["fine"] += 1
    assert sum(outcomes.values()) == 200 and min(outcomes.values()) > 10


def test_a_run_learns_at_the_schedules_rates_and_its_record_has_them(tmp_path):
    overrides = ["optim.schedule=step", "optim.decay_epochs=1", "optim.decay_rate=0.5", "optim.epochs=3"]
    record = train(load_config(None, [*ONE_STEP, "model.name=test_resnetdw", *overrides, f"output={tmp_path}"]))
    assert [epoch["lr"] for epoch in record.metrics["epochs"]] == pytest.approx([0.05, 0.025, 0.0125])  # after its step
    assert record.config["optim"]["schedule"] == "step" and record.config["optim"]["decay_rate"] == 0.5
