"""LitDetector and DetectionData in a user's own Trainer: they do what the configuration says, or say why not."""

import json
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from new_python import run_new_python

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, random_predictions, tiny_detection, tiny_file
from mmdet.models import FasterRCNN
from own_trainer_cases import Watch, assert_same_weights, fit_parts, trainer
from pytorch_lightning import callbacks

from dk_bench.data import order
from dk_bench.detection.data import DetectionData
from dk_bench.detection.metrics import prediction_of, score
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector
from dk_bench.errors import UserError
from dk_bench.training import train

BATCHES = 5  # of an epoch here


def parts(folder, *overrides, classes=CLASSES):
    """A module as it begins, and its data."""
    config = tiny_detection(folder, "train_cfg.max_epochs=2", *overrides)
    pl.seed_everything(0, verbose=False)
    return LitDetector(config.to_dict(), list(classes)), DetectionData(config)


def fit(folder, *overrides, **settings):
    return fit_parts(*parts(folder, *overrides), **settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A fit under Lightning's defaults, and its folder, in which checkpoints of five and seven batches are left."""
    folder = tmp_path_factory.mktemp("plain")
    epoch = Watch(save_after=BATCHES, path=folder / "five.ckpt")
    return *fit(folder, watch=Watch(save_after=BATCHES + 2, path=folder / "seven.ckpt"), callbacks=[epoch]), folder


def test_a_users_trainer_gives_what_the_command_gives(plain):
    watch, own, module, folder = plain
    record = train(tiny_detection(folder, "train_cfg.max_epochs=2"))
    last = {name: value for name, value in watch.figures[-1].items() if value == value}
    assert last == {name: record.metrics["final"][name] for name in last} and len(last) > 3
    assert float(own.callback_metrics["train/loss"]) == record.metrics["final"]["train/loss"]


def test_going_on_inside_an_epoch(plain):
    """With a worker, which would fetch too soon."""
    straight, own, module, folder = plain
    path = folder / "seven.ckpt"
    resumed, again, other = fit(folder, "train_dataloader.num_workers=1", ckpt_path=path)
    assert resumed.batches == straight.batches[BATCHES + 2 :] and resumed.rates == straight.rates[BATCHES + 2 :]
    assert_same_weights(other, module)
    assert again.callback_metrics["train/loss"] == own.callback_metrics["train/loss"]
    held = LitDetector.load_from_checkpoint(path).state_dict()
    assert held.keys() == module.state_dict().keys()
    with pytest.raises(UserError, match="^the checkpoint to go on from has 5 optimiser steps an epoch, this run 3"):
        fit(folder, ckpt_path=path, accumulate_grad_batches=2)


def test_going_on_from_the_last_batch_of_an_epoch(plain):
    """Where Lightning begins the next epoch without a word to the module: the mean loss is still of one epoch."""
    straight, own, _, folder = plain
    resumed, again, _ = fit(folder, ckpt_path=folder / "five.ckpt")
    assert resumed.batches == straight.batches[BATCHES:] and len(resumed.figures) == 1
    assert again.callback_metrics["train/loss"] == own.callback_metrics["train/loss"]


DECAY = "param_scheduler.1.milestones=[1]"  # to a tenth after an epoch, beside a warm-up of five steps


def test_schedules_count_the_trainers_steps(tmp_path):
    """Five batches are three steps of two."""
    path = tmp_path / "x.ckpt"
    watch, own, _ = fit(tmp_path, DECAY, accumulate_grad_batches=2, watch=Watch(save_after=BATCHES, path=path))
    steps = [0.005, 0.014, 0.023, 0.0032, 0.0041, 0.005]
    assert watch.rates == pytest.approx([steps[i] for i in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)])
    assert own.global_step == 6 and len({tuple(batch) for batch in watch.batches}) == 2 * BATCHES
    assert "iter" not in torch.load(path, weights_only=True)["meta"]  # mmengine's runner counts batches


def test_overfitting_repeats_the_first_batches(tmp_path):
    path = tmp_path / "x.ckpt"
    watch, _, _ = fit(tmp_path, DECAY, overfit_batches=2, watch=Watch(save_after=1, path=path))
    resumed, _, _ = fit(tmp_path, DECAY, overfit_batches=2, ckpt_path=path)
    assert watch.batches[:2] == watch.batches[2:] and resumed.batches == watch.batches[1:]
    assert len({image for batch in watch.batches for image in batch}) == 4
    assert watch.rates == pytest.approx([0.005, 0.014, 0.0023, 0.0032])


def test_figures_are_of_the_images_that_were_looked_at(plain, monkeypatch):
    """By known predictions; of testing as of validation."""
    module, data = parts(plain[3])
    known = {sample.img_id: sample for sample in random_predictions(data.val_images.ann_file, seed=0)}
    monkeypatch.setattr(FasterRCNN, "predict", lambda self, inputs, samples: [known[s.img_id] for s in samples])
    predicted = trainer().predict(module, data)
    assert [len(batch) for batch in predicted] == [2, 2, 2]
    for batches in (3, 1):
        seen = [sample for batch in predicted[:batches] for sample in batch]
        predictions = dict(map(prediction_of, seen))
        expected = score(predictions, {image: data.ground_truth[image] for image in predictions})
        own = trainer(limit_val_batches=batches, limit_test_batches=batches)
        for split, call in (("val", own.validate), ("test", own.test)):
            (figures,) = call(module, data, verbose=False)
            assert figures == pytest.approx({f"{split}/{name}": value for name, value in expected.items()}, nan_ok=True)
    assert 0 < expected["mAP"] < 100


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 4}, r"^Trainer\(max_epochs=4\), but key 'train_cfg.max_epochs' is 2, which its schedule"),
        ({"gradient_clip_val": 1.0}, r"^Trainer\(gradient_clip_val=1.0\), expected none: key 'optim_wrapper.clip_gr"),
        (
            {"check_val_every_n_epoch": 3},
            r"^Trainer\(check_val_every_n_epoch=3\), but key 'train_cfg.val_interval' is 1, which says when",
        ),
        ({"precision": "64-true"}, r"^Trainer\(precision='64-true'\), expected one of 32-true, 16-mixed, bf16-mi"),
        ({"callbacks": [callbacks.BatchSizeFinder()]}, "^callback BatchSizeFinder, but key 'train_dataloader.batch_s"),
        ({"callbacks": [callbacks.StochasticWeightAveraging(0.01)]}, "^callback StochasticWeightAveraging: "),
    ],
)
def test_settings_that_would_change_figures_are_refused(plain, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(plain[3], **settings)


def test_other_data_is_refused(plain):
    module, data = parts(plain[3])
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(UserError, match="^LitDetector was given no data module, expected a DetectionData, whose annot"):
        trainer().fit(module, *loaders)
    other, _ = parts(plain[3], classes=("a", "b", "c"))
    with pytest.raises(
        UserError, match=r"^the module was made for 3 classes \(a, b, c\), but the images are of 3 classes \(disc, box"
    ):
        trainer().validate(other, data)
    with pytest.raises(UserError, match=r"^the Trainer is at step 10 of an earlier fit, and a schedule begins at 0"):
        plain[1].fit(module, data)


def test_loaders_made_before_the_processes_are_refused(plain, monkeypatch):
    _, data = parts(plain[3])
    loaders = data.train_dataloader(), data.val_dataloader()
    monkeypatch.setattr(order, "processes", lambda: (1, 2))
    for loader in loaders:
        with pytest.raises(UserError, match="^a loader that was made for 1 process is read by 2: expected the data"):
            next(iter(loader))


TWO = """
import json, sys
from pathlib import Path
from detection_cases import CLASSES, random_predictions
from mmdet.models import FasterRCNN
from own_trainer_cases import Watch, assert_same_weights, fit_parts, trainer
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.data import DetectionData
from dk_bench.detection.module import LitDetector

if __name__ == "__main__":
    config = load_detection_config(sys.argv[1], sys.argv[2:])
    module, data, watch = LitDetector(config.to_dict(), list(CLASSES)), DetectionData(config), Watch()
    own = trainer(1, devices=2, strategy="ddp", callbacks=[watch])
    own.fit(module, data)
    known = {sample.img_id: sample for sample in random_predictions(data.val_images.ann_file, seed=0)}
    FasterRCNN.predict = lambda self, inputs, samples: [known[sample.img_id] for sample in samples]
    (figures,) = trainer(devices=2, strategy="ddp").validate(module, data, verbose=False)
    seen = {"train": watch.batches, "val": watch.validated, "figures": figures, "steps": own.global_step}
    Path(f"{own.global_rank}.json").write_text(json.dumps(seen))
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_devices_see_every_image_and_score_them_together(tmp_path, monkeypatch):
    """Five images to validate, so that the shards are uneven."""
    file, script = tiny_file(tmp_path), tmp_path / "two.py"
    overrides = ["train_cfg.max_epochs=1", "val_dataloader.dataset.indices=5", f"output={tmp_path}"]
    script.write_text(TWO)
    tests, root = Path(__file__).parents[1] / "cases", Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"}
    done = run_new_python([script, file, *overrides], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    data = DetectionData(load_detection_config(file, overrides))
    ids = [[image.partition(":")[0] for batch in seen["train"] for image in batch] for seen in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 5 and len({*ids[0], *ids[1]}) == len(data.train_images) == 10
    assert first["steps"] == 3  # two images each a step
    validated = [image.partition(":")[0] for seen in (first, second) for image in seen["val"]]
    assert sorted(validated) == sorted(str(image) for image in data.ground_truth) and len(validated) == 5

    known = {sample.img_id: sample for sample in random_predictions(data.val_images.ann_file, seed=0)}
    monkeypatch.setattr(FasterRCNN, "predict", lambda self, inputs, samples: [known[s.img_id] for s in samples])
    module = LitDetector(data.config.to_dict(), list(CLASSES))
    (alone,) = trainer().validate(module, data, verbose=False)
    assert first["figures"] == pytest.approx(alone, nan_ok=True) and first["figures"] == pytest.approx(
        second["figures"], nan_ok=True
    )
    assert 0 < alone["val/mAP"] < 100
