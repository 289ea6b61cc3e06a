"""Configurations: bases, overrides, and errors that name the key."""

import json
from pathlib import Path

import pytest

from dk_bench.config import config_from_dict, load_config, to_dict
from dk_bench.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_open_with_claim_and_command(path):
    load_config(path)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert path.read_text().startswith("# Claim:")
    assert any(line.startswith("# Check: dk-bench ") for line in comment)


def test_configurations_of_committed_records_are_valid():
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "results").rglob("record.json"))]
    configs = [record["config"] for record in records if "optim" in record["config"]]
    assert len(configs) > 100
    for config in configs:
        config_from_dict(config)


@pytest.mark.parametrize(
    ("override", "without"),
    [
        ("model.drop_path_rate=0.3", "model.kwargs.drop_path_rate=0.1"),
        ("optim.warmup_lr=0.01", "optim.warmup_epochs=0"),
        ("optim.warmup_prefix=false", "optim.warmup_epochs=0"),
        ("optim.offset_weight_decay=false", "optim.weight_decay=0"),
        ("data.augment.ratio=[1,2]", "data.augment.scale=null"),
    ],
)
def test_a_key_that_would_change_nothing_beside_another_is_refused(override, without):
    key, _, _ = override.partition("=")
    for accepted in ([override], [without], [without, f"{key}={to_text(key)}"]):
        load_config(None, accepted)
    with pytest.raises(UserError, match=f"key '{key}' is .*, expected "):
        load_config(None, [override, without])


def to_text(key):
    """The key's default, as it would be written."""
    value = to_dict(load_config(None))
    for part in key.split("."):
        value = value[part]
    return json.dumps(value)


def test_shipped_configs_are_there():
    assert {"demo", "photos10"} <= {path.stem for path in CONFIGS}


def test_values_come_from_defaults_then_base_then_file_then_overrides(tmp_path):
    write(tmp_path, "base.yaml", "optim: {lr: 0.2, epochs: 7}\nname: base\nseed: 3\n")
    path = write(tmp_path, "ablation.yaml", "base: base.yaml\nname: ablation\noptim: {epochs: 8}\n")
    config = load_config(path, ["seed=5", "optim.weight_decay=1e-3"])
    assert (config.name, config.seed, config.optim.lr, config.optim.epochs) == ("ablation", 5, 0.2, 8)
    assert (config.optim.weight_decay, config.optim.momentum) == (1e-3, 0.9)


def test_spec_is_one_however_it_is_written(tmp_path):
    path = write(tmp_path, "spec.yaml", "model: {name: convnext_atto, spec: {depthwise: local, kernel_size: 7}}\n")
    config = load_config(path, ["model.spec.scope=8", "model.spec.clip=true"])
    assert config.model.spec == {"depthwise": "local", "kernel_size": 7, "scope": 8}
    assert load_config(path, ["model.spec=null"]).model.spec is None
    assert config_from_dict(to_dict(config)) == config


def test_values_may_be_written_as_wandbs_agent_does():
    """As Python writes them: None, True, 1e-05, and nested parameters as one dictionary."""
    overrides = ["ema.decay=None", "model.checkpoint=None", "trainer.compile=True", "optim={'lr': 1e-05}"]
    overrides.append("data.augment={'scale': None, 'flip': 0.25}")
    config = load_config(None, overrides)
    assert config.ema.decay is None and config.model.checkpoint is None and config.trainer.compile is True
    assert config.optim.lr == 1e-5 and config.optim.momentum == 0.9
    assert config.data.augment.scale is None and config.data.augment.flip == 0.25


def test_round_trip_through_plain_data():
    config = load_config(None, ["data.augment.scale=null", "model.kwargs.output_stride=16", "seed=4"])
    assert config_from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["optim.lrr", "did you mean 'optim.lr'"]),
        ("lr=1", ["'lr'", "did you mean 'optim.lr'"]),
        ("zebra.x=1", ["'zebra'", "optim"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "a number"]),
        ("optim.epochs=1.5", ["optim.epochs", "1.5", "an integer"]),
        ("trainer.compile=maybe", ["trainer.compile", "'maybe'", "true or false"]),
        ("data.source=web", ["data.source", "'web'", "procedural, timm"]),
        ("data.mean=[1,b,2]", ["data.mean[1]", "'b'", "a number"]),
        ("model=resnet", ["'model'", "'resnet'", "a section with keys name"]),
        ("data.augment=3", ["data.augment", "3", "scale"]),
        ("data.augment.scale=[0.5,2]", ["data.augment.scale", "2.0", "(0, 1]"]),
        ("optim.offset_lr_multiplier=small", ["optim.offset_lr_multiplier", "'small'", "auto or a number"]),
        ("optim.warmup_epochs=90", ["optim.warmup_epochs", "90", "optim.epochs"]),
        ("seed=-1", ["seed", "-1"]),
        ("model.spec=local", ["model.spec", "'local'", "keys and values in braces or null"]),
        ("model.spec.scoop=5", ["model.spec", "'scoop': 5", "unknown key 'scoop'", "expected some of depthwise"]),
        ("model.spec.depthwise=locl", ["model.spec", "depthwise: expected one of", "'locl'"]),
        ("model.spec={depthwise: local, scope: 2}", ["model.spec", "scope: expected at least kernel_size = 3", "2"]),
        ("model.spec={depthwise: null}", ["model.spec", "changes nothing", "expected null"]),
        ("model={pretrained: true, checkpoint: x.ckpt}", ["model.pretrained", "True", "false where model.checkpoint"]),
        ("model.pretrained=some", ["model.pretrained", "'some'", "true or false"]),
        ("model.checkpoint=", ["key 'model.checkpoint' is '', expected a file or a folder, or null"]),
        (
            "data.train=",
            ["key 'data.train' is '', expected a folder, a tar, a pattern of shards or the name of a split, or null"],
        ),
        ("data.val=", ["key 'data.val' is ''"]),
        ("data.root=", ["key 'data.root' is '', expected a folder, or null"]),
        ("seed=${nothing}", ["seed", "nothing"]),
        ("seed", ["'seed'", "KEY=VALUE"]),
        ("model.kwargs=[a", ["model.kwargs", "'[a', which cannot be read: a bracket is not closed"]),
    ],
)
def test_bad_override_is_named(override, parts):
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {epoch: 3}", ["optim.epoch", "did you mean 'optim.epochs'"]),
        ("optim: {epochs: three}", ["optim.epochs", "'three'", "an integer"]),
        ("- 1", ["list"]),
        ("a: [", ["not YAML"]),
        ("base: [3]", ["'base'", "3"]),
        ("base: missing.yaml", ["missing.yaml", "No such file"]),
        ("base: bad.yaml", ["'base' leads back to this file"]),
    ],
)
def test_bad_file_is_named(tmp_path, text, parts):
    path = write(tmp_path, "bad.yaml", text)
    with pytest.raises(UserError) as error:
        load_config(path)
    for part in ["bad.yaml" if "missing" not in text else "missing.yaml", *parts]:
        assert part in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml.*No such file"):
        load_config(tmp_path / "nothing.yaml")
