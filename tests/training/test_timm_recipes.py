"""The recipe files in timm's manner, shrunk to a step: all that they name acts together and is in the record."""

from pathlib import Path

import pytest
from training_cases import ONE_STEP

from dk_bench.config import load_config
from dk_bench.training import read_checkpoint, run_folder, train

CONFIGS = Path(__file__).parents[2] / "configs" / "imagenet"
SHRUNK = (
    *(step for step in ONE_STEP if not step.startswith("optim.")),
    *(
        "data.source=procedural",
        "data.train=null",
        "data.val=null",
        "data.procedural.train_images=12",
        "optim.epochs=2",
        "optim.warmup_epochs=1",
    ),
    *("trainer.precision=32-true", "logger=none"),
)


@pytest.mark.parametrize(
    ("name", "model"), [("resnet50dw_100e", "test_resnetdw"), ("resnet50dw_300e", "test_resnetdw_dcn_dk")]
)
def test_a_recipe_trains(name, model, tmp_path):
    whole = load_config(CONFIGS / f"{name}.yaml")
    config = load_config(CONFIGS / f"{name}.yaml", [*SHRUNK, f"model.name={model}", f"output={tmp_path}"])
    record = train(config)
    assert record.status == "finished" and len(record.metrics["epochs"]) == 2
    for section, keys in {
        "optim": "optimizer lr weight_decay warmup_lr min_lr",
        "loss": "bce target_threshold",
    }.items():
        assert all(record.config[section][key] == getattr(getattr(whole, section), key) for key in keys.split())
    assert record.config["data"]["augment"]["auto_augment"] == whole.data.augment.auto_augment
    assert record.config["model"]["drop_path_rate"] == whole.model.drop_path_rate
    (state,) = read_checkpoint(run_folder(config) / "last.ckpt")["optimizer_states"]
    assert all("grad_averaging" in group for group in state["param_groups"])  # LAMB's
    scales = {group["name"]: (group["lr_scale"], group["weight_decay"]) for group in state["param_groups"]}
    expected = {"base": (1.0, 0.02), "base_no_decay": (1.0, 0.0), "offset_no_decay": (0.01, 0.0)}
    assert scales == {key: value for key, value in expected.items() if key in scales}
    assert ("offset_no_decay" in scales) == model.endswith("_dk")
    assert record.metrics["epochs"][0]["lr"] == pytest.approx(whole.optim.lr)  # the warm-up has ended at the peak


def test_the_recipes_are_timms():
    """A3 and A2, but for the size of the images that A3 trains with."""
    short, long = (load_config(CONFIGS / f"resnet50dw_{epochs}e.yaml") for epochs in (100, 300))
    for config, epochs, lr, repeats, drop, strength in ((short, 100, 0.008, 1, 0, 6), (long, 300, 0.005, 3, 0.05, 7)):
        assert (config.optim.epochs, config.optim.lr, config.data.augment.repeats) == (epochs, lr, repeats)
        assert (config.model.drop_path_rate, config.data.augment.mixup, config.data.augment.cutmix) == (drop, 0.1, 1.0)
        assert config.data.augment.auto_augment == f"rand-m{strength}-mstd0.5-inc1" and config.data.batch_size == 2048
        assert (config.optim.optimizer, config.optim.weight_decay, config.loss.bce) == ("lamb", 0.02, True)
