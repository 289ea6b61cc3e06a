"""Which configurations are one cell: settings that change results count, machines and defaults do not."""

import pytest

from dk_bench.config import load_config, to_dict
from dk_bench.runs import identity
from dk_bench.runs.environment import portable
from dk_bench.runs.identity import DEFAULTS, NOT_OF_THE_CELL, cell_settings, config_hash, setting

PHOTOS = ("data.source=timm", "data.name=photos", "data.train=/a/train.tar", "data.val=/a/val.tar")


def plain(*overrides):
    return to_dict(load_config(None, overrides))


@pytest.mark.parametrize(
    "override",
    [
        "seed=3",
        "name=b",
        "output=/elsewhere",
        "logger=csv",
        "wandb={mode: online, log_model: all}",
        "wandb.mode=disabled",
        "wandb.project=p",
        "data.root=/r",
        "data.workers=0",
        "data.prefetch=4",
        "trainer.devices=1",
        "trainer.accelerator=cpu",
        "trainer.checkpoint_every_n_steps=5",
        "trainer.compile=true",
        "data.train=/b/train.tar",
        "data.val=/b/val.tar",
    ],
)
def test_the_machine_and_the_names_do_not_count(override):
    assert plain(*PHOTOS, override) != plain(*PHOTOS)
    assert config_hash(plain(*PHOTOS, override)) == config_hash(plain(*PHOTOS))
    assert cell_settings(plain(*PHOTOS, override)) == {"data.source": "timm", "data.name": "photos"}


@pytest.mark.parametrize(
    "override",
    [
        "model.name=test_resnetdw",
        "model.drop_path_rate=0.1",
        "model.kwargs.a=1",
        "data.name=other",
        "data.size=96",
        "data.augment.flip=0",
        "optim.lr=0.2",
        "ema.decay=0.9",
        "trainer.precision=16-mixed",
        "data.batch_size=64",
    ],
)
def test_what_changes_results_counts(override):
    assert config_hash(plain(*PHOTOS, override)) != config_hash(plain(*PHOTOS))


def test_devices_count_where_each_normalises_by_itself():
    one, two = plain(), plain("trainer.devices=2")
    assert config_hash(two) != config_hash(one) == config_hash(plain("trainer.devices=-1"))
    assert cell_settings(two) == {"trainer.devices": 2} == cell_settings(plain("trainer.devices=0,3"))
    shared = {config_hash(plain("trainer.sync_batchnorm=true", f"trainer.devices={count}")) for count in (1, 2)}
    assert len(shared) == 1


def test_data_without_a_name_and_splits_are_told_apart_by_train_and_val():
    for named in (["data.source=timm"], ["data.source=timm", "data.name=food", "data.reader=hfds/food"]):
        cells = {config_hash(plain(*named, f"data.train={split}", "data.val=v")) for split in ("half", "whole")}
        assert len(cells) == 2


def test_a_key_the_schema_gets_later_keeps_old_cells(monkeypatch):
    config = plain("optim.lr=0.2")
    monkeypatch.setitem(DEFAULTS, "optim.nesterov", False)
    grown = config | {"optim": config["optim"] | {"nesterov": False}}
    assert config_hash(grown) == config_hash(config)
    assert config_hash(config | {"optim": config["optim"] | {"nesterov": True}}) != config_hash(config)
    assert setting(config, "optim.nesterov") is False


def test_a_record_gives_the_hash_of_its_run():
    config = plain("data.source=timm", "data.train=/deep/down/mine/train.tar", "model.checkpoint=/deep/down/a.ckpt")
    assert config_hash(portable(config, distinct=True)) == config_hash(config)
    elsewhere = config | {"model": config["model"] | {"checkpoint": "/deep/up/../down/a.ckpt"}}
    assert config_hash(elsewhere) == config_hash(config)
    other = config | {"model": config["model"] | {"checkpoint": "/other/deep/down/a.ckpt"}}  # of the same last parts
    assert config_hash(other) != config_hash(config)


def test_numbers_have_one_form():
    assert config_hash(plain("optim.offset_lr_multiplier=1")) == config_hash(plain("optim.offset_lr_multiplier=1.0"))


def test_ignored_keys_are_keys_of_the_schema():
    assert NOT_OF_THE_CELL <= DEFAULTS.keys() and identity.DEFAULTS["optim.epochs"] == 90
