"""LitDetector: the same training as mmdet's runner's; runs that resume; records; bad input."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, random_predictions, tiny_detection, tiny_file
from mmengine.hooks import Hook
from mmengine.runner import Runner
from training_cases import PowerCut

from dk_bench.cli import main
from dk_bench.data.order import mix_seed
from dk_bench.detection.data import DetectionData, seed_all
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector
from dk_bench.errors import UserError
from dk_bench.runs.attempts import STALE
from dk_bench.runs.identity import config_hash
from dk_bench.runs.record import read_record
from dk_bench.training import evaluate, read_checkpoint, run_folder, train

STEPS, EPOCHS = 5, 4  # of the runs here
RETINANET = {
    "type": "RetinaNet",
    "data_preprocessor": {"type": "DetDataPreprocessor", "mean": [50.0] * 3, "std": [50.0] * 3, "pad_size_divisor": 32},
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "out_indices": (1, 2, 3), "frozen_stages": -1},
    "neck": {"type": "FPN", "in_channels": [16, 32, 64], "out_channels": 16, "num_outs": 3},
    "bbox_head": {
        "type": "RetinaHead",
        "num_classes": 3,
        "in_channels": 16,
        "stacked_convs": 1,
        "feat_channels": 16,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 1,
            "ratios": [1.0],
            "strides": [8, 16, 32],
        },
    },
    "train_cfg": {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0},
        "sampler": {"type": "PseudoSampler"},
        "allowed_border": -1,
        "pos_weight": -1,
    },
    "test_cfg": {"nms_pre": 50, "score_thr": 0.01, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 20},
}


class Curve(pl.Callback):
    """Loss and learning rates of every step."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(float(outputs["loss"]))


class RunnersCurve(Hook):
    """The same under mmdet's runner, whose steps are seeded as ours are."""

    def __init__(self):
        self.losses, self.rates = [], []

    def before_train_iter(self, runner, **_):
        seed = mix_seed(0, runner.iter, 0)
        seed_all(seed)
        torch.manual_seed(seed)
        self.rates.append([group["lr"] for group in runner.optim_wrapper.optimizer.param_groups])

    def after_train_iter(self, runner, outputs=None, **_):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end, in the folder that its data are in: (configuration, record)."""
    config = tiny_detection(tmp_path_factory.mktemp("whole"))
    return config, train(config)


def figures(record):
    """Epochs' metrics without what the clock says."""
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record.metrics["epochs"]]


def weights(config):
    return read_checkpoint(run_folder(config) / "last.ckpt")["state_dict"]


def test_loss_curve_as_under_mmdets_runner(tmp_path):
    """One file, one seed: batches, schedule, groups, clipping and the modes of modules are the same. Losses of 20 steps
    agree to a relative 1e-5; what is random in a pipeline differs by design, so that nothing is flipped here."""
    overrides = ("train_dataloader.dataset.pipeline.3.prob=0.0", f"train_cfg.val_interval={EPOCHS}")
    config = tiny_detection(tmp_path, *overrides)
    ours = Curve()
    record = train(config, callbacks=[ours])

    cfg = load_detection_config(tmp_path / "tiny.py", overrides).cfg
    cfg.work_dir, cfg.randomness, cfg.val_evaluator.proposal_nums = str(tmp_path / "work"), {"seed": 0}, (1, 10, 100)
    runner = Runner.from_cfg(cfg)
    pl.seed_everything(0, verbose=False)
    start = LitDetector(config.to_dict(), list(CLASSES)).model
    runner.model.load_state_dict(start.state_dict())
    runner.model.init_weights = lambda: None  # they are there
    theirs = RunnersCurve()
    runner.register_hook(theirs)
    runner.train()

    assert len(ours.losses) == STEPS * EPOCHS == 20
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.rates == theirs.rates
    warm_up = [0.005, 0.014, 0.023, 0.032, 0.041]
    assert [max(rates) for rates in ours.rates] == pytest.approx(warm_up + 5 * [0.05] + 5 * [0.005] + 5 * [0.0005])
    state = runner.model.state_dict()
    assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in weights(config).items())
    logged = runner.message_hub.get_scalar("val/coco/bbox_mAP").current()
    assert record.metrics["final"]["val/mAP"] == pytest.approx(100 * logged, abs=0.051)
    assert [epoch["val/mAP"] is None for epoch in record.metrics["epochs"]] == [True, True, True, False]


def test_validation_as_under_mmdets_runner(whole, tmp_path, monkeypatch):
    """Loaders, resizing and metric: of the same predictions the same figures, to the three places mmdet gives."""
    from mmdet.models import FasterRCNN

    data = DetectionData(whole[0])
    known = {sample.img_id: sample for sample in random_predictions(data.val_images.ann_file, seed=0)}

    def predict(self, inputs, samples, rescale=True):
        assert inputs.shape[2] == 96 and rescale  # of 64
        for sample in samples:
            sample.pred_instances = known[sample.img_id].pred_instances
        return samples

    monkeypatch.setattr(FasterRCNN, "predict", predict)
    larger = "val_dataloader.dataset.pipeline.1.scale=(144,96)"
    ours = evaluate(run_folder(whole[0]) / "last.ckpt", [larger, "val_dataloader.batch_size=1"]).metrics["final"]
    cfg = load_detection_config(whole[0].cfg.filename, [larger]).cfg
    cfg.work_dir, cfg.val_evaluator.proposal_nums = str(tmp_path), (1, 10, 100)
    theirs = Runner.from_cfg(cfg).val()
    for name, value in ours.items():
        logged = theirs[name.replace("val/", "coco/bbox_")]
        assert value == pytest.approx(100 * logged, abs=0.051) if value is not None else logged == -1
    assert 0 < ours["val/mAP"] < 100


KILLED = """
import os, signal, sys
import pytorch_lightning as pl
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.training import train

class Killed(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

train(load_detection_config(sys.argv[1], sys.argv[2:]), callbacks=[Killed()])
"""


def test_killed_in_mid_epoch_it_ends_with_the_same_metrics(tmp_path, whole):
    expected_config, expected = whole
    file = expected_config.cfg.filename
    overrides = [f"output={tmp_path}", "trainer.checkpoint_every_n_steps=2"]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, file, *overrides],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    config = load_detection_config(file, overrides)
    assert read_record(run_folder(config) / "record.json").status == "running"
    assert read_checkpoint(run_folder(config) / "last.ckpt")["global_step"] == 12  # two steps into the third epoch
    record = train(config)
    assert figures(record) == figures(expected)
    assert [(attempt["status"], attempt["error"]) for attempt in record.attempts] == [
        ("failed", STALE),
        ("finished", None),
    ]
    resumed, through = weights(config), weights(expected_config)
    assert resumed.keys() == through.keys() and all(torch.equal(resumed[name], through[name]) for name in through)


@pytest.mark.parametrize("step", [2 * STEPS, 3 * STEPS])
def test_resumed_at_the_end_of_an_epoch(tmp_path, whole, step):
    """Where schedules of epochs step down."""
    config = load_detection_config(whole[0].cfg.filename, [f"output={tmp_path}"])
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(step)])
    curve = Curve()
    assert figures(train(config, callbacks=[curve])) == figures(whole[1])
    assert len(curve.losses) == STEPS * EPOCHS - step


def test_two_processes(tmp_path, whole):
    """They share out the batches as mmdet's do, and score the validation images together."""
    file, root = whole[0].cfg.filename, Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "dk_bench",
        "train",
        file,
        f"output={tmp_path}",
        "trainer.devices=2",
        "train_cfg.max_epochs=1",
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    path = next(tmp_path.glob("tiny-*/last.ckpt"))
    record = read_record(path.with_name("record.json"))
    assert record.status == "finished" and read_checkpoint(path)["global_step"] == 3  # five images each, two a step
    evaluated = evaluate(path, ["trainer.devices=1"]).metrics["final"]
    assert evaluated == {name: record.metrics["final"][name] for name in evaluated}
    with pytest.raises(UserError, match="has 3 steps an epoch, this run 5"):
        (tmp_path / "alone").mkdir()
        config = load_detection_config(file, [f"output={tmp_path / 'alone'}"])
        run_folder(config).mkdir()
        path.rename(run_folder(config) / "last.ckpt")
        train(config)


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


def test_any_detector_and_mixed_precision(tmp_path):
    config = tiny_detection(tmp_path, "trainer.precision=bf16-mixed", "train_cfg.max_epochs=1", "name=retina")
    config.cfg.model = RETINANET
    record = train(config)
    assert record.status == "finished" and record.model["detector"] == "RetinaNet", record.error
    assert math.isfinite(record.metrics["final"]["train/loss"])
    two_stage = tiny_detection(tmp_path, "trainer.precision=bf16-mixed")
    with pytest.raises(UserError, match="'trainer.precision' is 'bf16-mixed', expected '32-true' on a CPU"):
        train(two_stage)


def test_diverged_run_is_recorded_as_failed(tmp_path, capsys):
    path = tiny_file(tmp_path)
    arguments = ["optim_wrapper.optimizer.lr=1e30", "optim_wrapper.clip_grad=None", f"output={tmp_path}"]
    assert main(["train", str(path), *arguments]) == 1
    record = read_record(run_folder(load_detection_config(path, arguments)) / "record.json")
    assert record.status == "failed" and record.error.startswith("training loss is ")
    assert "failed: training loss is" in capsys.readouterr().out


def test_preprocessor_moves_with_the_module(tmp_path):
    config = tiny_detection(tmp_path)
    module = LitDetector(config.to_dict(), list(CLASSES))
    assert module.model.data_preprocessor.device == torch.device("cpu")
    module.to("meta")
    assert module.model.data_preprocessor.device == torch.device("meta")
    assert module.model.data_preprocessor.mean.device == torch.device("meta")


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    """Flips included, with workers or without, whatever was drawn before."""

    def batches(workers, draws, epoch, *more):
        torch.rand(draws)
        data = DetectionData(tiny_detection(tmp_path, f"train_dataloader.num_workers={workers}", *more))
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [
            torch.stack([image.float().mean((1, 2)) + image[:, :, 0].float().mean(1) for image in b["inputs"]])
            for b in loader
        ]

    first = batches(0, 1, epoch=1)
    assert len(first) == STEPS
    for other in (batches(0, 5, epoch=1), batches(1, 2, epoch=1)):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for other in (batches(0, 1, epoch=2), batches(0, 1, 1, "seed=1")):
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_wandb_offline(tmp_path):
    config = tiny_detection(tmp_path, "wandb.mode=offline", "train_cfg.max_epochs=1")
    record = train(config)
    assert record.status == "finished" and list(run_folder(config).glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_image_is_named(tmp_path, suffix):
    config = tiny_detection(tmp_path, suffix=suffix)
    path = tmp_path / "tiny_data" / "train" / f"004.{suffix}"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=rf"image .*train/004\.{suffix} cannot be read: .*truncated"):
        train(config)
    record = read_record(run_folder(config) / "record.json")
    assert record.status == "failed" and f"004.{suffix} cannot be read" in record.error
    path.write_text("no image at all, and long enough to have an end" * 3)
    with pytest.raises(UserError, match=rf"004\.{suffix} cannot be read: not an image"):
        train(config)


def test_bytes_after_an_images_end_do_no_harm(tmp_path):
    config = tiny_detection(tmp_path, suffix="jpg")
    path = tmp_path / "tiny_data" / "val" / "000.jpg"
    before = DetectionData(config).val_images[0]["inputs"]
    path.write_bytes(path.read_bytes() + bytes(500))
    assert torch.equal(DetectionData(config).val_images[0]["inputs"], before)


def test_bad_data_is_named(tmp_path, capsys):
    path = tiny_file(tmp_path)
    data = tmp_path / "tiny_data"
    (data / "val" / "002.png").unlink()
    assert main(["train", str(path), f"output={tmp_path}"]) == 2
    assert "002.png does not exist" in capsys.readouterr().err
    (data / "train.json").rename(data / "moved.json")
    assert (
        main(
            [
                "train",
                str(path),
                f"output={tmp_path}",
                "val_dataloader.dataset.ann_file=moved.json",
                "val_dataloader.dataset.data_prefix.img=train/",
            ]
        )
        == 2
    )
    assert "tiny_data/train.json does not exist" in capsys.readouterr().err
    content = json.loads((data / "moved.json").read_text())
    content["categories"][0]["name"] = "cat"
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.json: .*'disc'"):
        DetectionData(load_detection_config(path)).train_images  # noqa: B018


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
    with pytest.raises(UserError, match="a checkpoint of classification, expected one of detection"):
        train(config)


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
