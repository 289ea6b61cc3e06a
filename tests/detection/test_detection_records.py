"""What a run of a detector leaves: its record, its folder, and weights that are told from others."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, tiny_detection
from training_cases import PowerCut, weights

from dk_bench import tasks
from dk_bench.cli import main
from dk_bench.detection.data import DetectionData
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector
from dk_bench.errors import UserError
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import read_record
from dk_bench.training import evaluate, run_folder, train

EPOCHS = 4  # of the runs here


def test_record(whole):
    config, record = whole
    assert read_record(run_folder(config) / "record.json") == record
    assert (record.task, record.status, record.name, record.seed) == ("detection", "finished", "tiny", 0)
    assert record.model == {"name": "ResNet18", "detector": "FasterRCNN", "spec": None, "input_size": [3, 64, 96]}
    checksum = DetectionData(config).checksums("train", "val")
    images = {"train_images": 10, "val_images": 6, "checksum": checksum}
    assert record.data == {"name": "tiny_data", "classes": list(CLASSES), **images}
    keys = {"val/mAP", "val/mAP_50", "val/mAP_75", "val/mAP_s", "val/mAP_m", "val/mAP_l", "train/loss"}
    assert len(record.metrics["epochs"]) == EPOCHS
    assert all(epoch.keys() == keys | {"epoch", "lr", "seconds"} for epoch in record.metrics["epochs"])
    assert record.metrics["final"] == record.metrics["epochs"][-1]
    assert record.metrics["final"]["val/mAP_l"] is None and 0 <= record.metrics["final"]["val/mAP"] <= 100
    losses = [epoch["train/loss"] for epoch in record.metrics["epochs"]]
    assert losses[-1] < losses[0]
    assert [epoch["lr"] for epoch in record.metrics["epochs"]] == pytest.approx([0.05, 0.005, 0.0005, 0.0005])
    parameters = sum(p.numel() for p in LitDetector(config.to_dict(), list(CLASSES)).model.parameters())
    assert record.cost["params"] == parameters and record.cost["macs"] is None and record.cost["backbone_macs"] > 0
    assert record.throughput["train_images_per_second"] > 0 and record.throughput["eval_images_per_second"] > 0
    assert record.config["model"]["backbone"]["depth"] == 18 and record.config["train_cfg"]["max_epochs"] == EPOCHS
    assert (record.config["name"], record.config["seed"]) == ("tiny", 0) and "output" in record.config
    assert run_folder(config).name == f"tiny-{record.config_hash}-s0"
    assert config_hash(read_record(run_folder(config) / "record.json").config) == record.config_hash


def test_finished_run_is_not_repeated_and_evaluates_to_the_same(whole, capsys, tmp_path):
    config, record = whole
    folder = run_folder(config)
    assert train(config, callbacks=[PowerCut(0)]) == record
    assert "not trained again" in capsys.readouterr().err
    assert main(["eval", str(folder / "last.ckpt"), "--record", str(tmp_path / "record.json")]) == 0
    assert "ResNet18: mAP" in capsys.readouterr().out
    evaluated = read_record(tmp_path / "record.json")
    assert evaluated.task == "evaluation" and evaluated.data["train_images"] is None
    final = {name: value for name, value in record.metrics["final"].items() if name.startswith("val/")}
    assert evaluated.metrics["final"] == final


def test_what_changes_results_names_the_folder(tmp_path):
    hashes = {
        override: run_folder(tiny_detection(tmp_path, override)).name.split("-")[1]
        for override in (
            "seed=0",
            "seed=1",
            "train_dataloader.num_workers=1",
            "work_dir=x",
            "default_hooks.logger.interval=1",
            "wandb.project=x",
            "trainer.checkpoint_every_n_steps=3",
            "log_level=ERROR",
            "model.backbone.depth=34",
            "optim_wrapper.optimizer.lr=0.1",
            "train_dataloader.batch_size=1",
            "trainer.devices=2",
            "train_dataloader.dataset.pipeline.3.prob=0",
        )
    }
    same = set(list(hashes.values())[:8])
    assert len(same) == 1 and not same & set(list(hashes.values())[8:])
    assert len(set(hashes.values())) == 6


def test_checkpoint_of_other_classes_or_of_a_classifier(tmp_path, whole):
    path = run_folder(whole[0]) / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["classes"] = ["cat", "dog"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"its model tells 2 classes \(cat, dog\) apart, the images are of 3 classes"):
        evaluate(tmp_path / "other.ckpt")
    checkpoint.pop("task")  # a classifier's
    config = load_detection_config(whole[0].cfg.filename, [f"output={tmp_path}"])
    run_folder(config).mkdir()
    torch.save(checkpoint, run_folder(config) / "last.ckpt")
    with pytest.raises(
        UserError, match="holds a run of classification, this one is of detection; expected another name"
    ):
        train(config)
    with pytest.raises(UserError, match="other.ckpt: a checkpoint of classification, expected one of detection"):
        tasks.of(config).check_checkpoint(checkpoint, list(CLASSES), "other.ckpt")


def test_starting_from_a_runs_weights(tmp_path, whole):
    start = run_folder(whole[0]) / "last.ckpt"
    module = LitDetector(tiny_detection(tmp_path, f"load_from={start}").to_dict(), list(CLASSES))
    trained = weights(whole[0])
    assert all(torch.equal(trained[name], value) for name, value in module.model.state_dict().items())


def test_the_tiny_configuration_from_the_command_line(tmp_path, capsys, monkeypatch):
    """configs/det/tiny_procedural.py as it is, but for the number of images and epochs."""
    file = Path(__file__).parents[2] / "configs" / "det" / "tiny_procedural.py"
    monkeypatch.chdir(tmp_path)  # the images are written below the working directory
    loaders = [
        f"{loader}_dataloader.{setting}"
        for loader in ("train", "val")
        for setting in ("dataset.scenes.train_images=8", "dataset.scenes.val_images=6", "num_workers=0")
    ]
    arguments = ["train", str(file), *loaders, "train_cfg.max_epochs=1", "wandb.mode=disabled", "seed=3"]
    assert main(arguments) == 0
    assert "of 6 images" in capsys.readouterr().out
    record = read_record(next((tmp_path / "runs").glob("tiny_procedural-*-s3/record.json")))
    assert record.status == "finished" and record.data["name"] == "procedural_det"
    assert record.data["val_images"] == 6 and record.model["name"].startswith("test_resnetdw")
    assert record.metrics["final"]["val/mAP"] is not None and record.metrics["final"]["train/loss"] > 0
    assert record.cost["backbone_macs"] > 0
