"""mmdet's own schedules under Lightning: the losses, learning rates and averages of mmengine's runner, step by step."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

import mmdet
from detection_cases import CLASSES
from mmengine import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner, loops
from own_trainer_cases import trainer
from runner_cases import RUNS, Curve, RunnersCurve, one_stage, trained_by_mmengine
from torch import nn
from torch.utils.data import DataLoader

from dk_bench.detection.data import DetectionData
from dk_bench.detection.hook_names import hooks_of
from dk_bench.detection.loops import Loop
from dk_bench.detection.module import LitDetector
from dk_bench.detection.recipe import build_schedules, build_wrapper
from dk_bench.errors import UserError

FILES = Path(mmdet.__file__).parent / ".mim" / "configs"
# File -> what its epochs and its iterations are divided by, so that a few steps have its whole course.
SHRUNK = {
    "_base_/schedules/schedule_1x.py": (2, 100),
    "_base_/schedules/schedule_2x.py": (4, 100),
    "_base_/schedules/schedule_20e.py": (4, 100),
    "common/lsj-100e_coco-detection.py": (5, 100),
    "common/lsj-200e_coco-detection.py": (5, 200),
    "common/ms-90k_coco.py": (1, 10000),
    "common/ssj_270k_coco-instance.py": (1, 30000),
    "rtmdet/rtmdet_tiny_8xb32-300e_coco.py": (60, 250),
    "yolox/yolox_s_8xb8-300e_coco.py": (25, 1),
    "yolo/yolov3_d53_8xb8-320-273e_coco.py": (40, 1000),
    "detr/detr_r50_8xb2-150e_coco.py": (30, 1),
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py": (1, 25000),
    "yolof/yolof_r50-c5_8xb8-iter-1x_coco.py": (1, 3000),
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": (2, 100),
}
LOSSES = [file for file in SHRUNK if any(name in file for name in ("e_1x", "90k", "rtmdet", "yolox", "mask2"))]
OF_EPOCHS, OF_ITERATIONS = ("max_epochs", "switch_epoch"), ("max_iters",)


def divided(number, by):
    return max(1, round(number / by)) if number else number


def shrunk(file):
    """The recipe of one of mmdet's files: loop, schedules, optimiser, average."""
    cfg = Config.fromfile(FILES / file)
    of_epochs, of_iterations = SHRUNK[file]
    by_iterations = "max_iters" in cfg.train_cfg
    by = of_iterations if by_iterations else of_epochs
    train = {
        k: divided(v, by) if k in ("max_epochs", "max_iters", "val_interval") else v for k, v in cfg.train_cfg.items()
    }
    if changes := train.get("dynamic_intervals"):
        train["dynamic_intervals"] = [(divided(milestone, by), divided(each, by)) for milestone, each in changes]
    schedules = []
    for one in cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]:
        each = of_epochs if one.get("by_epoch", True) else of_iterations
        numbers = {key: divided(one[key], each) for key in ("begin", "end", "T_max") if key in one}
        if "milestones" in one:
            numbers["milestones"] = [divided(milestone, each) for milestone in one["milestones"]]
        schedules.append({**one, **numbers})
    average = [hook for _, hook in hooks_of(cfg, {"EMAHook"})]
    recipe = {"train_cfg": train, "param_scheduler": schedules, "optim_wrapper": cfg.optim_wrapper.to_dict()}
    return recipe | {"custom_hooks": average}


def as_text(recipe):
    text = "\n".join(f"{key} = {value!r}" for key, value in recipe.items())
    endless = "train_dataloader['sampler'] = dict(type='InfiniteSampler', shuffle=True)"
    return f"{text}\n{endless if 'max_iters' in recipe['train_cfg'] else ''}"


def trained(config):
    """Ours: what its steps were, the module after training, how often it validated."""
    pl.seed_everything(0, verbose=False)
    module, curve = LitDetector(config.to_dict(), list(CLASSES)), Curve()
    trainer(config.loop.epochs, callbacks=[curve]).fit(module, DetectionData(config))
    return curve, module


def assert_same_training(config):
    """Returns both curves and the runner."""
    ours, module = trained(config)
    runner, theirs = trained_by_mmengine(config)
    assert len(ours.losses) > 5 and ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.rates == theirs.rates
    averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    for expected in averages or [runner.model]:
        for (name, value), other in zip(module.model.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6, msg=name)
    return ours, theirs, runner


@pytest.mark.parametrize("file", LOSSES)
def test_losses_as_under_mmengines_runner(file, tmp_path):
    assert_same_training(one_stage(tmp_path, as_text(shrunk(file)), "optim_wrapper.type=OptimWrapper"))


class Line(BaseModel):
    """As small as a model of mmengine's can be."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, number, mode):
        return {"loss": (self.weight * number).sum()}


def rates_under_mmengine(recipe, folder, passes):
    """Learning rates of every step, of a line under mmengine's runner."""
    loader = DataLoader([{"number": torch.ones(1)}] * passes, sampler=range(passes))
    wrapper = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": recipe["optim_wrapper"]["optimizer"]["lr"]}}
    loop = {"by_epoch": "max_epochs" in recipe["train_cfg"]} | {
        k: v for k, v in recipe["train_cfg"].items() if k != "type"
    }
    given = {"train_cfg": loop, "optim_wrapper": wrapper, "param_scheduler": recipe["param_scheduler"]}
    name = f"line_{next(RUNS)}"
    curve = RunnersCurve()
    quiet = {"default_hooks": {"checkpoint": None, "logger": None}, "log_level": "ERROR"}
    runner = Runner(Line(), str(folder), loader, **given, **quiet, experiment_name=name, custom_hooks=[curve])
    with no_waiting():
        runner.train()
    return curve.rates


@contextmanager
def no_waiting():
    """mmengine sleeps for two seconds before it begins a loader anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.time, "sleep", lambda seconds: None)
        yield


@pytest.mark.parametrize("file", SHRUNK)
def test_learning_rates_as_under_mmengines_runner(file, tmp_path):
    recipe, passes = shrunk(file), 3  # batches of a pass over the images
    theirs = rates_under_mmengine(recipe, tmp_path, passes)
    loop, rate = Loop.of(recipe["train_cfg"]), recipe["optim_wrapper"]["optimizer"]["lr"]
    steps = loop.length if loop.by_iterations else passes
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedules, ours = build_schedules(optimizer, Config(recipe), loop, steps, passes), []
    for _ in theirs:
        ours.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedules.step()
    assert len(theirs) == (loop.length if loop.by_iterations else loop.length * passes)
    assert ours == theirs and len({rate for (rate,) in ours}) > 1


def test_multipliers_hold_under_other_optimisers_and_schedules(tmp_path):
    """Offset generators have their share of the learning rate at every step, normalisation has no decay."""
    recipe = shrunk("rtmdet/rtmdet_tiny_8xb32-300e_coco.py")
    del recipe["param_scheduler"][1]["eta_min"]  # which would be the end of all rates alike
    recipe["param_scheduler"][1]["eta_min_ratio"] = 0.05
    recipe["optim_wrapper"]["paramwise_cfg"]["custom_keys"] = {"data_offset": {"lr_mult": 0.1}}
    backbone = (
        "model['backbone'] = dict(type='dk_bench.TimmBackbone', model_name='test_resnetdw_dcn', out_indices=(1, 2, 3))"
    )
    config = one_stage(tmp_path, f"{as_text(recipe)}\n{backbone}\nmodel['neck']['in_channels'] = [32, 64, 128]")
    module = LitDetector(config.to_dict(), list(CLASSES))
    wrapper = build_wrapper(module.model, config.cfg, world_size=1)
    names = {parameter: name for name, parameter in module.model.named_parameters()}
    schedules, shares = build_schedules(wrapper.optimizer, config.cfg, config.loop, 2, 2), {True: set(), False: set()}
    for _ in range(2 * config.loop.length):
        rates = {names[group["params"][0]]: group["lr"] for group in wrapper.optimizer.param_groups}
        for name, rate in rates.items():
            shares["data_offset" in name].add(round(rate / rates["bbox_head.retina_cls.weight"], 6))
        wrapper.optimizer.step()
        schedules.step()
    assert shares == {True: {0.1}, False: {1.0}} and isinstance(wrapper.optimizer, torch.optim.AdamW)
    decays = {group["weight_decay"] for group in wrapper.optimizer.param_groups if ".bn" in names[group["params"][0]]}
    assert decays == {0.0}


class ConvNeXtLike(nn.Module):
    """Its parameters have the names by which mmdet decays learning rates layer by layer."""

    def __init__(self):
        super().__init__()
        self.downsample_layers, self.stages = (
            nn.ModuleList([nn.Linear(2, 2)]),
            nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])]),
        )


def test_mmdets_layer_wise_decay(tmp_path):
    """As mmengine builds it; refused for a backbone whose layers it does not know."""
    decay = {"decay_rate": 0.5, "decay_type": "layer_wise", "num_layers": 6}
    settings = {"constructor": "LearningRateDecayOptimizerConstructor", "paramwise_cfg": decay}
    settings |= {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 0.001, "weight_decay": 0.05}}
    config = one_stage(tmp_path, f"optim_wrapper = {settings!r}")
    model = LitDetector(config.to_dict(), list(CLASSES)).model
    with pytest.raises(
        UserError, match="'LearningRateDecayOptimizerConstructor', which does not know the layers of ResNe"
    ):
        build_wrapper(model, config.cfg, world_size=1)
    model.backbone = ConvNeXtLike()
    groups, expected = build_wrapper(model, config.cfg, 1), build_optim_wrapper(model, config.cfg.optim_wrapper)
    kept = [
        [(group["lr"], group["weight_decay"], group["param_names"]) for group in one.optimizer.param_groups]
        for one in (groups, expected)
    ]
    assert kept[0] == kept[1] and len({rate for rate, *_ in kept[0]}) == 3
