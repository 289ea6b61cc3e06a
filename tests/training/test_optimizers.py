"""timm's optimisers, groups and layer decay beside timm's own, with offset generators at their multiplier."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from training_cases import ONE_STEP

from dk_bench.classification import optimizers
from dk_bench.classification.optimizers import check_optimizer
from dk_bench.classification.recipe import build_optimizer, parameter_groups
from dk_bench.config import OptimConfig, load_config
from dk_bench.errors import UserError
from dk_bench.nn import offset_parameter_names
from dk_bench.training import LitClassifier, read_checkpoint, run_folder, train

pytestmark = pytest.mark.usefixtures("seeded")

# kron compiles itself for minutes; those of bitsandbytes and apex are not installed; see below for second derivatives.
KNOWN = [name for name in list_optimizers() if "kron" not in name and not name.startswith(("bnb", "fused", "adahess"))]
HERE = {get_optimizer_class(name, bind_defaults=False): name for name in KNOWN}.values()  # one of a kind


@pytest.fixture(scope="module")
def learned():
    """A deformed model with the gradients of one step."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnetdw_dk", num_classes=3, zero_init_last=False)  # branches learn at once
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    return model


def copied(model):
    copied = copy.deepcopy(model)
    for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.grad = original.grad.clone()
    return copied


def moved_by(model, config, steps=1):
    """How far steps of the same gradients move every parameter, by name."""
    stepped = copied(model)
    optimizer, _ = build_optimizer(stepped, config, "test_resnetdw_dk", 4)
    for _ in range(steps):
        optimizer.step()
    pairs = zip(stepped.named_parameters(), model.parameters(), strict=True)
    return {name: (parameter - before).detach() for (name, parameter), before in pairs}


@pytest.mark.parametrize("name", [*HERE, "lookahead_adamw"])
def test_the_multiplier_acts_on_offset_generators_alone(name, learned):
    settings = {"optimizer": name, "lr": 0.01, "weight_decay": 0.0, "warmup_epochs": 0}
    check_optimizer(OptimConfig(**settings))
    steps = 2 if "adopt" in name else 1  # its first one looks on
    at_full, at_half = (moved_by(learned, OptimConfig(**settings, offset_lr_multiplier=m), steps) for m in (1.0, 0.5))
    half = 0.5 ** (2 / 3) if "madgrad" in name else 0.5  # it divides by a cubic root that has the rate in it
    for key in at_full:
        factor = half if key in offset_parameter_names(learned) else 1
        torch.testing.assert_close(at_half[key], factor * at_full[key], atol=1e-6, rtol=1e-3)
    assert all(at_full[key].any() for key in offset_parameter_names(learned))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("momentum", {}),
        ("sgd", {}),
        ("adamw", {"betas": [0.8, 0.99], "eps": 1e-6}),
        ("lamb", {}),
        ("lars", {"trust_coeff": 0.01}),
        ("lion", {}),
        ("lookahead_rmsproptf", {"alpha": 0.8}),
    ],
)
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_without_a_multiplier_a_step_is_timms(name, kwargs, layer_decay, learned):
    """Of timm's own groups of the whole model; under layer decay timm's schedulers scale the rates."""
    config = OptimConfig(optimizer=name, lr=0.02, weight_decay=0.1, kwargs=kwargs, layer_decay=layer_decay)
    config.offset_lr_multiplier, config.schedule = 1.0, "constant"
    config.warmup_epochs = 0
    ours, timms = copied(learned), copied(learned)
    optimizer, _ = build_optimizer(ours, config, "", 4)
    optimizer.step()
    optimizer = create_optimizer_v2(timms, name, 0.02, 0.1, 0.9, layer_decay=layer_decay, **kwargs)
    timm.scheduler.create_scheduler_v2(optimizer, "constant")
    optimizer.step()
    for (key, parameter), expected in zip(ours.named_parameters(), timms.parameters(), strict=True):
        torch.testing.assert_close(
            parameter, expected, atol=1e-7, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_layers_decay_and_the_multiplier_comes_on_top(learned):
    config = OptimConfig(optimizer="adamw", lr=0.2, weight_decay=0.1, layer_decay=0.5)
    groups, offsets = parameter_groups(learned, config, "test_resnetdw_dk"), offset_parameter_names(learned)
    names = {parameter: name for name, parameter in learned.named_parameters()}
    found = {names[p]: group for group in groups for p in group["params"]}
    assert len(found) == len(names) and len({group["name"] for group in groups}) == len(groups)
    assert groups[0]["lr"] == 0.2  # which is what a record calls the learning rate
    timms = timm.optim.param_groups_layer_decay(learned, 0.1, layer_decay=0.5)
    assert len({group["lr_scale"] for group in timms}) > 3
    for group in timms:
        for parameter in group["params"]:
            name = names[parameter]
            scale = group["lr_scale"] * (0.01 if name in offsets else 1)
            assert found[name]["lr"] == pytest.approx(0.2 * scale), name
            assert found[name]["weight_decay"] == group["weight_decay"], name
    config.schedule = "poly"
    for group, same in zip(groups, parameter_groups(learned, config, "test_resnetdw_dk"), strict=True):
        assert same["lr"] == 0.2 and same["lr"] * same["lr_scale"] == pytest.approx(group["lr"])


def test_what_a_model_spares_of_weight_decay_is_spared():
    model = timm.create_model("test_vit", num_classes=3)
    assert "pos_embed" in model.no_weight_decay() and model.pos_embed.ndim > 1
    for config in (OptimConfig(optimizer="adamw"), OptimConfig(optimizer="adamw", layer_decay=0.9)):
        (group,) = (g for g in parameter_groups(model, config, "") if any(p is model.pos_embed for p in g["params"]))
        assert group["weight_decay"] == 0 and "no_decay" in group["name"]
        heads = [g for g in parameter_groups(model, config, "") if any(p is model.head.weight for p in g["params"])]
        assert [g["weight_decay"] for g in heads] == [config.weight_decay]
    (group,) = (g for g in parameter_groups(model, OptimConfig(), "") if any(p is model.pos_embed for p in g["params"]))
    assert group["weight_decay"] == OptimConfig().weight_decay  # the paper's recipe goes by dimensions, as ever


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adahessian"}, "key 'optim.optimizer' is 'adahessian', whose second derivatives"),
        ({"optimizer": "fusedadam"}, "key 'optim.optimizer' is 'fusedadam', which timm does not find here"),
        ({"kwargs": {"beta": 1}}, "key 'optim.kwargs.beta' is 1, which momentum does not take; it takes damp"),
        ({"optimizer": "adamw", "kwargs": {"lr": 1}}, "key 'optim.kwargs.lr' is 1, expected key 'optim.lr'"),
        ({"optimizer": "adamw", "kwargs": {"betas": [0.9, 1.5]}}, "cannot be made with {'betas': .0.9, 1.5.}"),
        (
            {"optimizer": "lamb", "kwargs": {"betas": 0.9}},
            "is 'lamb', which cannot step with {'betas': 0.9}: cannot unp",
        ),
        ({"optimizer": "lookahead_lamb", "kwargs": {"betas": [0.9]}}, "cannot step with {'betas': .0.9.}: not enough"),
        ({"optimizer": "lamb", "kwargs": {"max_grad_norm": "x"}}, "which cannot step with {'max_grad_norm': 'x'}: "),
        ({"optimizer": "adafactor", "kwargs": {"decay_rate": "x"}}, "which cannot step with {'decay_rate': 'x'}: "),
    ],
)
def test_bad_arguments_are_one_sentence(settings, message):
    with pytest.raises(UserError, match=message) as error:
        check_optimizer(OptimConfig(**settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.optimizer=adamv", "key 'optim.optimizer' is 'adamv', expected a name of timm.optim.list_optimizers"),
        ("optim.optimizer=lookahead_", "expected a name of timm.optim"),
        ("optim.layer_decay=0", "expected null or above 0 and up to 1"),
    ],
)
def test_bad_settings_are_told_with_the_configuration(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])
    with pytest.raises(UserError, match="key 'optim.momentum' is 0.5, expected 0.9: optim.optimizer has none"):
        load_config(None, ["optim.optimizer=adamw", "optim.momentum=0.5"])
    assert load_config(None, ["optim.optimizer=lars", "optim.momentum=0.5"]).optim.momentum == 0.5


def test_a_run_is_refused_before_its_model_is_built(monkeypatch):
    monkeypatch.setattr("dk_bench.classification.module.build_model", pytest.fail)
    config = {"optim": {"optimizer": "adamw", "kwargs": {"momentum": 1}}}
    with pytest.raises(UserError, match="key 'optim.kwargs.momentum' is 1, expected key 'optim.momentum'"):
        LitClassifier(config, ["a", "b"])


def test_record_and_checkpoint_name_the_optimiser(tmp_path):
    overrides = ["optim.optimizer=adamw", "optim.kwargs.eps=1e-6", "optim.layer_decay=0.8", f"output={tmp_path}"]
    config = load_config(None, [*ONE_STEP, "model.name=test_resnetdw_dk", *overrides])
    optim = train(config).config["optim"]
    assert (optim["optimizer"], optim["kwargs"], optim["layer_decay"]) == ("adamw", {"eps": 1e-6}, 0.8)
    checkpoint = read_checkpoint(run_folder(config) / "last.ckpt")
    assert checkpoint["hyper_parameters"]["config"]["optim"] == optim
    (state,) = checkpoint["optimizer_states"]
    assert {group["eps"] for group in state["param_groups"]} == {1e-6} and "exp_avg_sq" in state["state"][0]


def test_the_default_is_the_papers():
    model = timm.create_model("test_resnetdw_dk", num_classes=3)
    groups = parameter_groups(model, OptimConfig(), "test_resnetdw_dk")
    papers = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    ours = optimizers.make_optimizer(parameter_groups(model, OptimConfig(), "test_resnetdw_dk"), OptimConfig())
    assert (
        type(ours) is torch.optim.SGD and ours.state_dict() == papers.state_dict() and ours.defaults == papers.defaults
    )


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_offset_generators_that_do_not_decay_are_not_held_at_zero_by_a_ratio_of_norms(name, learned):
    """Both scale a step by the norm of the weights, where they decay: of weights near zero hardly anything is left."""
    settings = {"optimizer": name, "lr": 0.01, "weight_decay": 0.02, "warmup_epochs": 0, "offset_lr_multiplier": 1.0}
    weights = [key for key in offset_parameter_names(learned) if key.endswith("weight")]
    held, free = ({}, {})
    for found, decays in ((held, True), (free, False)):
        moved = moved_by(learned, OptimConfig(**settings, offset_weight_decay=decays), steps=5)
        found.update({key: float(moved[key].norm()) for key in weights})
    assert weights and all(held[key] < 0.5 * free[key] for key in weights)
    groups = parameter_groups(learned, OptimConfig(**settings, offset_weight_decay=False), "")
    decays = {group["name"]: group["weight_decay"] for group in groups}
    assert decays == {"base": 0.02, "base_no_decay": 0.0, "offset_no_decay": 0.0}
