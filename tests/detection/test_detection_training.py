"""LitDetector: the same training as mmdet's runner's; runs that resume."""

import math
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, random_predictions, tiny_detection, tiny_file
from mmengine.runner import Runner
from new_python import run_new_python
from runner_cases import RETINANET, Curve, trained_by_mmengine
from training_cases import PowerCut, timeless, weights

from dk_bench.cli import main
from dk_bench.detection.data import DetectionData
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector
from dk_bench.errors import UserError
from dk_bench.runs.attempts import STALE
from dk_bench.runs.record import read_record
from dk_bench.training import evaluate, read_checkpoint, run_folder, train

STEPS, EPOCHS = 5, 4  # of the runs here


def test_loss_curve_as_under_mmdets_runner(tmp_path):
    """One file, one seed: batches, schedule, groups, clipping and the modes of modules are the same. Losses of 20 steps
    agree to a relative 1e-5; what is random in a pipeline differs by design, so that nothing is flipped here."""
    overrides = ("train_dataloader.dataset.pipeline.3.prob=0.0", f"train_cfg.val_interval={EPOCHS}")
    config = tiny_detection(tmp_path, *overrides)
    ours = Curve()
    record = train(config, callbacks=[ours])

    runner, theirs = trained_by_mmengine(config)
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
    killed = run_new_python(["-c", KILLED, file, *overrides], cwd=tmp_path, env=environment)
    assert killed.returncode == -9, killed.stderr
    config = load_detection_config(file, overrides)
    assert read_record(run_folder(config) / "record.json").status == "running"
    assert read_checkpoint(run_folder(config) / "last.ckpt")["global_step"] == 12  # two steps into the third epoch
    record = train(config)
    assert timeless(record) == timeless(expected)
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
    assert timeless(train(config, callbacks=[curve])) == timeless(whole[1])
    assert len(curve.losses) == STEPS * EPOCHS - step


def test_two_processes(tmp_path, whole):
    """They share out the batches as mmdet's do, and score the validation images together."""
    file, root = whole[0].cfg.filename, Path(__file__).parents[2]
    average = "custom_hooks=[{'type': 'EMAHook', 'momentum': 0.3}]"
    overrides = [f"output={tmp_path}", "trainer.devices=2", "train_cfg.max_epochs=1", average]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = run_new_python(["-m", "dk_bench", "train", file, *overrides], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    path = next(tmp_path.glob("tiny-*/last.ckpt"))
    record = read_record(path.with_name("record.json"))
    assert record.status == "finished" and read_checkpoint(path)["global_step"] == 3  # five images each, two a step
    evaluated = evaluate(path, ["trainer.devices=1"]).metrics["final"]
    assert evaluated == {name: record.metrics["final"][name] for name in evaluated}
    with pytest.raises(UserError, match="has 3 steps an epoch, this run 5"):
        (tmp_path / "alone").mkdir()
        config = load_detection_config(file, [f"output={tmp_path / 'alone'}", average])
        run_folder(config).mkdir()
        path.rename(run_folder(config) / "last.ckpt")
        train(config)


def test_detector_of_one_stage_in_mixed_precision(tmp_path):
    config = tiny_detection(tmp_path, "trainer.precision=bf16-mixed", "train_cfg.max_epochs=1", "name=retina")
    config.cfg.model = RETINANET
    record = train(config)
    assert record.status == "finished" and record.model["detector"] == "RetinaNet", record.error
    assert math.isfinite(record.metrics["final"]["train/loss"])


@pytest.mark.parametrize("extractor", ["SingleRoIExtractor", "dk_bench.DeformRoIExtractor"])
def test_detector_of_two_stages_in_mixed_precision(tmp_path, whole, extractor):
    """On a CPU as elsewhere: mmcv's operators compute in single precision, what is learnt does not."""
    kinds, curve = set(), Curve()

    class Kinds(pl.Callback):
        def on_fit_start(self, trainer, module):
            layers = (module.model.neck.fpn_convs[0].conv, module.model.roi_head.bbox_head.shared_fcs[0])
            for layer in layers:
                layer.register_forward_hook(
                    lambda module, arguments, output: kinds.add((module.training, output.dtype))
                )

    overrides = ["trainer.precision=bf16-mixed", "train_cfg.max_epochs=1"]
    key = f"model.roi_head.bbox_roi_extractor.type={extractor}"
    config = load_detection_config(whole[0].cfg.filename, [*overrides, key, f"output={tmp_path}"])
    record = train(config, callbacks=[curve, Kinds()])
    assert record.status == "finished" and len(curve.losses) == STEPS, record.error
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
    if extractor == "SingleRoIExtractor":
        single, mixed = whole[1].metrics["epochs"][0]["train/loss"], record.metrics["final"]["train/loss"]
        assert mixed == pytest.approx(single, rel=0.05) and mixed != single
    with pytest.raises(UserError, match="'val_cfg.fp16' is True, expected False on a CPU: mmcv's suppression"):
        train(load_detection_config(whole[0].cfg.filename, [*overrides, "val_cfg.fp16=True", f"output={tmp_path}"]))


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
