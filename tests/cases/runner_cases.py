"""A run by mmengine's own runner, to compare ours with: the same file, seed, first weights and seeds of steps."""

import copy
from itertools import count
from pathlib import Path

import pytorch_lightning as pl
import torch
from detection_cases import CLASSES, tiny_file
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dk_bench.data.order import mix_seed
from dk_bench.detection.data import seed_all
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector

RUNS = count()  # mmengine wants a name of its own for every runner of a process
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
    """Loss of every batch, learning rates of every step."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(float(outputs["loss"].detach()) * trainer.accumulate_grad_batches)


class RunnersCurve(Hook):
    """The same under mmdet's runner, whose steps are seeded as ours are."""

    def __init__(self):
        self.losses, self.rates = [], []

    def before_train_iter(self, runner, **_):
        seed = mix_seed(0, runner.iter, 0)
        seed_all(seed)
        torch.manual_seed(seed)
        if runner.optim_wrapper.should_sync():
            self.rates.append([group["lr"] for group in runner.optim_wrapper.optimizer.param_groups])

    def after_train_iter(self, runner, outputs=None, **_):
        self.losses.append(float(outputs["loss"].detach()))


def trained_by_mmengine(config, *, resume=None):
    """Its runner after training ``config``, one of ours, from the weights that our run begins with, and its curve;
    ``resume``: a checkpoint to go on from."""
    cfg = copy.deepcopy(config.cfg)
    cfg.work_dir, cfg.randomness = str(Path(config.run.output) / "work"), {"seed": 0}
    cfg.val_evaluator.proposal_nums, cfg.experiment_name = (1, 10, 100), f"{config.run.name}_{next(RUNS)}"
    if resume:
        cfg.load_from, cfg.resume = str(resume), True
    runner = Runner.from_cfg(cfg)
    pl.seed_everything(0, verbose=False)
    start = LitDetector(config.to_dict(), list(CLASSES)).model
    runner.model.load_state_dict(start.state_dict())
    runner.model.init_weights = lambda: None  # they are there
    theirs = RunnersCurve()
    runner.register_hook(theirs)
    runner.train()
    return runner, theirs


def one_stage(folder, recipe, *overrides, name="one_stage"):
    """The tiny configuration with a detector of one stage, nothing drawn at random in its pipeline, few images, and the
    settings of ``recipe``, a text of Python."""
    path = tiny_file(folder).with_name(f"{name}.py")
    few = "train_dataloader['dataset']['indices'], val_dataloader['dataset']['indices'] = 4, 2"
    fixed = f"train_dataloader['dataset']['pipeline'][3]['prob'] = 0.0\n{few}\ndefault_hooks['checkpoint'] = None\n"
    path.write_text(f"{tiny_file(folder).read_text()}\nmodel = {RETINANET!r}\n{fixed}{recipe}\n")
    return load_detection_config(path, [f"output={folder / 'runs'}", *overrides])
