"""mmdet's own tools on configs/det/tiny_procedural.py and on the checkpoints of both runners: mmdet's, and ours.

The tools run in processes of their own, which have imported nothing of dk_bench when they start, as a user's have.
"""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

import mmdet
from mmdet.apis import inference_detector
from new_python import run_new_python

from dk_bench.cli import main
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector
from dk_bench.detection.scene_files import ProceduralCoco

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "det" / "tiny_procedural.py"
TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"
NAME = "test_resnetdw_dk"
COMMON = [
    "train_cfg.max_epochs=1",
    f"model.backbone.model_name={NAME}",
    "model.test_cfg.rcnn.score_thr=0.0",
    "model.test_cfg.rcnn.max_per_img=20",
]
LOADER = ("num_workers=0", "persistent_workers=False", "dataset.scenes.train_images=8", "dataset.scenes.val_images=4")
SETTINGS = [*COMMON, *(f"{loader}_dataloader.{one}" for loader in ("train", "val", "test") for one in LOADER)]

RUN = """
import contextlib, io, json, runpy, sys
def tool(name, *arguments):
    sys.argv = [name, *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
LOOK = """
import torch
from mmdet.apis import DetInferencer, init_detector, inference_detector
def look(model, image):
    found = inference_detector(model, image).pred_instances
    return {"meta": {k: [list(c) if k == "palette" else c for c in v] for k, v in model.dataset_meta.items()},
            "boxes": found.bboxes.tolist(), "scores": found.scores.tolist(), "labels": found.labels.tolist()}
"""


def run(folder, code):
    """Runs code in a new process in ``folder``; returns what it puts into ``out.json``, if anything."""
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    done = run_new_python(["-c", code], cwd=folder, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "do not match exactly" not in done.stdout + done.stderr
    return json.loads(out.read_text()) if out.exists() else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With ``data/``, ``ours/last.ckpt`` of our runner, and ``theirs/epoch_1.pth`` of mmdet's."""
    folder = tmp_path_factory.mktemp("mmdet")
    previous = Path.cwd()
    os.chdir(folder)  # images are written below the working directory
    try:
        assert main(["train", str(FILE), "wandb.mode=disabled", "output=runs", "seed=5", *SETTINGS]) == 0
    finally:
        os.chdir(previous)
    (checkpoint,) = (folder / "runs").glob("*/last.ckpt")
    checkpoint.rename(folder / "last.ckpt")
    train, options = str(TOOLS / "train.py"), SETTINGS
    run(folder, f"{RUN}\ntool({train!r}, {str(FILE)!r}, '--work-dir', 'theirs', '--cfg-options', *{options!r})")
    return folder


def ours(folder, checkpoint):
    """The detector that our own code makes of a checkpoint, in evaluation mode."""
    config = load_detection_config(FILE, SETTINGS)
    module = LitDetector(config.to_dict(), list(ProceduralCoco.METAINFO["classes"]), initial_weights=False)
    module.model.load_state_dict(torch.load(folder / checkpoint, weights_only=True)["state_dict"])
    return module.model.eval()


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "theirs/epoch_1.pth"])
def test_tools_read_checkpoints_of_both_runners(folder, checkpoint):
    """test.py, init_detector and DetInferencer find what our code does, with names and colours of the data."""
    image = str(min((folder / "data").rglob("val_*.png")))
    config = "theirs/tiny_procedural.py"  # as mmdet's train.py wrote it, with the options
    found = run(
        folder,
        f"""{RUN}{LOOK}
config, checkpoint, image = {config!r}, {checkpoint!r}, {image!r}
tool({str(TOOLS / "test.py")!r}, config, checkpoint, "--work-dir", "tested", "--out", "found.pkl")
looks = [look(init_detector(config, checkpoint, device="cpu"), image)]
for some in ((config, checkpoint), (None, checkpoint)):
    inferencer = DetInferencer(*some, device="cpu")
    (found,) = inferencer(image, no_save_vis=True)["predictions"]
    looks.append(look(inferencer.model, image) | dict(boxes=found["bboxes"]))
json.dump(looks, open("out.json", "w"))
""",
    )
    model = ours(folder, checkpoint)
    model.cfg = load_detection_config(folder / config).cfg
    expected = inference_detector(model, image).pred_instances
    assert len(expected) == 20
    for look in found:
        assert look["meta"] == {
            "classes": list(ProceduralCoco.METAINFO["classes"]),
            "palette": list(map(list, ProceduralCoco.METAINFO["palette"])),
        }
        assert look["boxes"] == expected.bboxes.tolist() and look["labels"] == expected.labels.tolist()
        assert look["scores"] == expected.scores.tolist()
    tested = {one["img_path"]: one["pred_instances"] for one in pickle.loads((folder / "found.pkl").read_bytes())}
    assert len(tested) == 4
    (of_image,) = (one for path, one in tested.items() if (folder / path).samefile(image))
    torch.testing.assert_close(of_image["bboxes"], expected.bboxes)  # in a batch here


def test_mmdets_runner_goes_on_from_checkpoints_of_both_runners(folder):
    """train.py --resume with weights, optimiser, schedule and counts; and load_from with weights alone."""
    options = [option.replace("max_epochs=1", "max_epochs=2") for option in SETTINGS]
    run(
        folder,
        f"""{RUN}
import torch
from mmengine.runner import Runner
resume = Runner.resume
def watched(self, *arguments, **more):
    resume(self, *arguments, **more)
    held = {{"model": self.model.state_dict(), "optimizer": self.optim_wrapper.state_dict()}}
    held["schedulers"] = [one.state_dict() for one in self.param_schedulers]
    torch.save(held | {{"epoch": self.epoch, "iter": self.iter}}, self.work_dir + "/resumed.pt")
Runner.resume = watched
options = {options!r}
def train(folder, *arguments):
    tool({str(TOOLS / "train.py")!r}, {str(FILE)!r}, "--work-dir", folder, *arguments, "--cfg-options", *options)
train("theirs", "--resume")
train("ours", "--resume", "last.ckpt")
options += ["load_from=last.ckpt", "optim_wrapper.optimizer.lr=0.0", "train_cfg.max_epochs=1"]
train("started")
""",
    )
    ours, theirs = (torch.load(folder / path, weights_only=True) for path in ("last.ckpt", "theirs/epoch_1.pth"))
    for held, name in ((ours, "ours"), (theirs, "theirs")):
        resumed = torch.load(folder / name / "resumed.pt", weights_only=True)
        assert (resumed["epoch"], resumed["iter"]) == (1, 2) == (held["meta"]["epoch"], held["meta"]["iter"])
        assert_equal(resumed["model"], held["state_dict"])
        assert_equal(resumed["optimizer"]["state"], held["optimizer"]["state"])
        assert resumed["optimizer"]["param_groups"] == held["optimizer"]["param_groups"]
        assert resumed["schedulers"] == held["param_schedulers"] and len(resumed["schedulers"]) == 2
        done = torch.load(folder / name / "epoch_2.pth", weights_only=True)["meta"]
        assert (done["epoch"], done["iter"], done["seed"]) == (2, 4, held["meta"]["seed"])
    assert ours["meta"]["seed"] == 5
    started = torch.load(folder / "started" / "epoch_1.pth", weights_only=True)["state_dict"]
    learnt = [name for name in started if "running_" not in name and "num_batches" not in name]
    assert len(learnt) > 90 and all(torch.equal(started[name], ours["state_dict"][name]) for name in learnt)


def test_our_runner_starts_from_what_mmdets_left(folder):
    config = load_detection_config(FILE, [*SETTINGS, f"load_from={folder / 'theirs/epoch_1.pth'}"])
    model = LitDetector(config.to_dict(), list(ProceduralCoco.METAINFO["classes"])).model
    assert_equal(model.state_dict(), torch.load(folder / "theirs/epoch_1.pth", weights_only=True)["state_dict"])


def test_lightning_reads_a_detectors_checkpoint(folder):
    module = LitDetector.load_from_checkpoint(folder / "last.ckpt", weights_only=True)
    assert_equal(module.model.state_dict(), torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])


def assert_equal(held, expected):
    """Nested dicts with the same tensors."""
    assert held.keys() == expected.keys() and len(held) > 0
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_equal(held[key], value)
        else:
            assert torch.equal(held[key], value) if isinstance(value, torch.Tensor) else held[key] == value, key
