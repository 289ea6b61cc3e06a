"""Averages and other hooks of mmengine's in training, in checkpoints and where a run goes on; accumulated gradients."""

import pytest
import pytorch_lightning as pl
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, tiny_detection
from mmengine.hooks import EMAHook
from own_trainer_cases import fit_parts
from pytorch_lightning.callbacks import EMAWeightAveraging
from runner_cases import Curve, one_stage, trained_by_mmengine
from training_cases import PowerCut, timeless

from dk_bench.detection.data import DetectionData, KeyedImages
from dk_bench.detection.hook_names import check_devices
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.detection.module import LitDetector
from dk_bench.detection.runner_hooks import RunnerHooks
from dk_bench.detection.stages import stages_of
from dk_bench.errors import UserError
from dk_bench.runs.identity import config_hash
from dk_bench.training import beats, evaluate, read_checkpoint, run_folder, train

# Validates after 4 and 11 iterations of 11.
ITERATIONS = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=11, val_interval=4, dynamic_intervals=[(8, 11)])
train_dataloader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, update_buffers=True, gamma=5)]
trainer = dict(accelerator='cpu', checkpoint_every_n_steps=3)
"""
AVERAGED = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=2)
custom_hooks = [dict(type='EMAHook', ema_type='StochasticWeightAverage', interval=2, begin_iter=3)]
optim_wrapper['accumulative_counts'] = 2
"""
# Another pipeline in the last epochs; there is nothing random in either.
SWITCHED = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)
switched = [{**step, **(dict(scale=(48, 32)) if step['type'] == 'Resize' else {})} for step in train_pipeline]
custom_hooks = [dict(type='PipelineSwitchHook', switch_epoch=2, switch_pipeline=switched), dict(type='LoggerHook')]
"""
# YOLOX's own: sizes that change in the course of training, transforms left out and another loss in the last epochs.
YOLOX = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
custom_hooks = [dict(type='YOLOXModeSwitchHook', num_last_epochs=1, skip_type_keys=['Resize'])]
model = dict(
    type='YOLOX',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        pad_size_divisor=32,
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(64, 160), size_divisor=32, interval=3)],
    ),
    backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125, out_indices=(2, 3, 4)),
    neck=dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=16, num_csp_blocks=1),
    bbox_head=dict(type='YOLOXHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
)
_images = train_dataloader['dataset']
_images['pipeline'], _rest = train_pipeline[:2], train_pipeline[3:]
_mix = [dict(type='Resize', scale=(96, 64), keep_ratio=True), *_rest]
train_dataloader['dataset'] = dict(type='MultiImageMixDataset', dataset=_images, pipeline=_mix)
"""


@pytest.fixture(scope="module")
def iterations(tmp_path_factory):
    """A run over ITERATIONS: folder, configuration, record, and what its steps were."""
    folder, curve, seen = tmp_path_factory.mktemp("iterations"), Curve(), []
    config = one_stage(folder, ITERATIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beats, "EVERY_SECONDS", 0.0)
        patch.setattr(beats, "write_beat", lambda folder, beat: seen.append((beat.epochs, beat.step, beat.steps)))
        record = train(config, callbacks=[curve])
    assert sorted(set(seen)) == [(2, step, 11) for step in range(1, 12)]
    return folder, config, record, curve


def assert_near(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_iterations_with_an_average(iterations):
    """Losses, rates, weights and average are those of mmengine's runner; the average is what is validated and kept."""
    _, config, record, ours = iterations
    runner, theirs = trained_by_mmengine(config)
    assert len(ours.losses) == 11 and ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.rates == theirs.rates
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    checkpoint = read_checkpoint(run_folder(config) / "last.ckpt")
    assert_near(checkpoint["state_dict"], hook.ema_model.module.state_dict())
    assert_near(checkpoint["ema_state_dict"], {"steps": torch.tensor(11)} | prefixed(runner.model.state_dict()))
    head = "bbox_head.retina_cls.weight"
    assert not torch.equal(checkpoint["state_dict"][head], checkpoint["ema_state_dict"][f"module.{head}"])
    assert [(row["epoch"], row["iteration"]) for row in record.metrics["epochs"]] == [(0, 4), (1, 11)]
    logged = runner.message_hub.get_scalar("val/coco/bbox_mAP").data[0]
    assert [row["val/mAP"] for row in record.metrics["epochs"]] == pytest.approx(100 * logged, abs=0.051)
    found = evaluate(run_folder(config) / "last.ckpt").metrics["final"]
    assert found == {name: record.metrics["final"][name] for name in found}
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]) == (0, 11)


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


def test_iterations_go_on_to_the_same_bits(iterations, tmp_path):
    """From a checkpoint between two validations; and under mmengine's runner, which goes on from it too."""
    _, whole, record, _ = iterations
    config = load_detection_config(whole.cfg.filename, [f"output={tmp_path}"])
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(8)])
    path = run_folder(config) / "last.ckpt"
    assert read_checkpoint(path)["global_step"] == 6
    runner, theirs = trained_by_mmengine(config, resume=path)
    assert len(theirs.losses) == 5
    expected = {"steps": torch.tensor(11)} | prefixed(runner.model.state_dict())
    assert_near(read_checkpoint(run_folder(whole) / "last.ckpt")["ema_state_dict"], expected)
    assert timeless(train(config)) == timeless(record)
    resumed, through = (read_checkpoint(run_folder(one) / "last.ckpt") for one in (config, whole))
    for part in ("state_dict", "ema_state_dict"):
        assert resumed[part].keys() == through[part].keys()
        assert all(torch.equal(value, through[part][name]) for name, value in resumed[part].items())


def test_accumulated_gradients_and_average_as_under_mmengine(tmp_path):
    """Schedules and average count batches there; the average begins late, and with every second."""
    config = one_stage(tmp_path, AVERAGED)
    pl.seed_everything(0, verbose=False)
    parts, ours = (LitDetector(config.to_dict(), list(CLASSES)), DetectionData(config)), Curve()
    watch, own, module = fit_parts(*parts, epochs=4, callbacks=[ours])
    runner, theirs = trained_by_mmengine(config)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5) and len(ours.losses) == 8
    assert ours.rates == theirs.rates and len(ours.rates) == own.global_step == 4
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    assert_near(module.model.state_dict(), hook.ema_model.module.state_dict())
    assert len(watch.figures) == 2


def changed(*hooks):
    return f"custom_hooks={list(hooks)!r}"


EMA, LOGGER = {"type": "EMAHook"}, {"type": "LoggerHook", "interval": 1}


@pytest.mark.parametrize(
    "hook, match",
    [
        (
            {"type": "MeanTeacherHook"},
            "key 'custom_hooks' has 'MeanTeacherHook', which trains a student by its teacher",
        ),
        (
            {"type": "EarlyStoppingHook", "monitor": "x"},
            "has 'EarlyStoppingHook', which ends training before its schedu",
        ),
        ({"type": "ParamSchedulerHook"}, "has 'ParamSchedulerHook', which steps the schedules, which is done here alr"),
        (
            {"type": "my.OwnHook"},
            "has 'OwnHook', which only mmdet's own runner calls; expected none that changes results",
        ),
    ],
)
def test_hooks_that_would_change_results_are_refused(tmp_path, hook, match):
    with pytest.raises(UserError, match=match):
        tiny_detection(tmp_path, changed(hook))


def test_an_averages_place_is_custom_hooks(tmp_path):
    with pytest.raises(UserError, match="'default_hooks.ema' is 'EMAHook', expected it in 'custom_hooks'"):
        tiny_detection(tmp_path, "default_hooks={'ema': {'type': 'EMAHook'}}")


@pytest.mark.parametrize(
    "hooks, match",
    [
        ([EMA | {"ema_type": "Mean"}], r"key 'custom_hooks.0' \(EMAHook\) cannot be used: KeyError: .*Mean is not in"),
        ([LOGGER, EMA | {"momentum": 2.0}], r"key 'custom_hooks.1' \(EMAHook\) cannot be used: .*momentum must be in"),
        (
            [EMA | {"begin_epoch": 9}],
            r"key 'custom_hooks.0' \(EMAHook\) cannot be used: .*begin_epoch should be smaller",
        ),
        ([EMA | {"begin_epoch": 1, "begin_iter": 1}], r"key 'custom_hooks.0' \(EMAHook\) cannot be built: .*both set"),
        ([EMA, EMA], "key 'custom_hooks' has two EMAHooks, expected one average"),
    ],
)
def test_bad_averages_are_named(tmp_path, hooks, match):
    with pytest.raises(UserError, match=match):
        RunnerHooks(tiny_detection(tmp_path, changed(*hooks))).begin(torch.nn.Linear(1, 1), 8)


@pytest.mark.parametrize("update_buffers", [True, False])
def test_averages_move_to_the_device(tmp_path, update_buffers):
    """As they are: mmengine averages tensors that it looked up before."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    hooks, module = (
        RunnerHooks(tiny_detection(tmp_path, changed(EMA | {"update_buffers": update_buffers}))),
        pl.LightningModule(),
    )
    hooks.begin(torch.nn.BatchNorm1d(2), 8)
    hooks.on_fit_start(None, module.to("meta"))
    average = hooks.hooks[0].ema_model
    assert all(value.is_meta for value in average.avg_parameters.values()) and average.steps.is_meta
    assert average.avg_parameters.keys() == {"weight", "bias", *(buffers if update_buffers else ())}


def test_an_average_makes_another_cell_and_hooks_that_watch_do_not(tmp_path):
    plain, watched, averaged, slower = (
        config_hash(tiny_detection(tmp_path, changed(*hooks)).to_dict())
        for hooks in ([], [LOGGER], [LOGGER, EMA | {"priority": 49}], [EMA | {"momentum": 0.001}])
    )
    assert plain == watched == config_hash(tiny_detection(tmp_path).to_dict())
    assert config_hash(tiny_detection(tmp_path, changed(EMA)).to_dict()) == averaged
    assert len({plain, averaged, slower}) == 3


def test_going_on_with_an_average_or_without(iterations):
    """A checkpoint's weights are the average, with which no training goes on."""
    _, config, *_ = iterations
    module = LitDetector(load_detection_config(config.cfg.filename, ["custom_hooks=[]"]).to_dict(), list(CLASSES))
    checkpoint = read_checkpoint(run_folder(config) / "last.ckpt")
    with pytest.raises(UserError, match="^the checkpoint to go on from holds averaged weights: expected an EMAHook in"):
        module.hooks.load(checkpoint)
    module = LitDetector(config.to_dict(), list(CLASSES))
    module.hooks.begin(module.model, 11)
    del checkpoint["ema_state_dict"]
    with pytest.raises(UserError, match="^the checkpoint to go on from holds no averaged weights: expected no EMAHook"):
        module.hooks.load(checkpoint)


@pytest.mark.parametrize(
    "overrides, settings, match",
    [
        (
            [],
            {"overfit_batches": 2},
            r"^Trainer\(overfit_batches=2\), expected none: a loop of iterations has no epochs",
        ),
        (
            [],
            {"accumulate_grad_batches": 2},
            r"^Trainer\(accumulate_grad_batches=2\), expected none: iterations are bat",
        ),
        (
            [],
            {"callbacks": [EMAWeightAveraging()]},
            "^callback WeightAveraging beside the EMAHook of key 'custom_hooks'",
        ),
        ([], {"epochs": 3}, r"^Trainer\(max_epochs=3\), but key 'train_cfg.max_iters / val_interval' is 2"),
        (
            ["optim_wrapper.accumulative_counts=3"],
            {},
            "'optim_wrapper.accumulative_counts' is 3, expected a divisor of the 4 iterations between validations",
        ),
        (
            ["optim_wrapper.accumulative_counts=4"],
            {"accumulate_grad_batches": 2},
            r"^Trainer\(accumulate_grad_batches=2\), but key 'optim_wrapper.accumulative_counts' is 4",
        ),
    ],
)
def test_trainers_of_other_iterations_are_refused(iterations, overrides, settings, match):
    config = load_detection_config(iterations[1].cfg.filename, overrides)
    with pytest.raises(UserError, match=match):
        fit_parts(LitDetector(config.to_dict(), list(CLASSES)), DetectionData(config), **settings)


def test_statistics_that_a_hook_averages_over_devices(tmp_path):
    config = tiny_detection(tmp_path, changed({"type": "SyncNormHook"}))
    check_devices(config.cfg, 1, synchronised=False)
    check_devices(config.cfg, 2, synchronised=True)
    with pytest.raises(UserError, match="key 'custom_hooks.0' is a SyncNormHook, which averages statistics over 2 dev"):
        check_devices(config.cfg, 2, synchronised=False)


def test_pipelines_change_as_under_mmengine(tmp_path):
    config = one_stage(tmp_path, SWITCHED)
    curve = Curve()
    train(config, callbacks=[curve])
    assert curve.losses == pytest.approx(trained_by_mmengine(config)[1].losses, rel=1e-5) and len(curve.losses) == 6
    images = KeyedImages(DetectionData(config).train_images, 0, stages_of(config, DetectionData(config).train_images))
    assert [images[epoch, 0]["inputs"].shape[1] for epoch in (2, 0, 1, 3)] == [32, 64, 64, 32]
    with pytest.raises(UserError, match="'PipelineSwitchHook', which counts epochs, but IterBasedTrainLoop has none"):
        one_stage(tmp_path, SWITCHED + "train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)")


def test_yolox_goes_on_in_its_last_mode(tmp_path):
    """As under mmengine's runner; and a run that goes on inside an epoch has the sizes of one that was never cut."""
    (tmp_path / "cut").mkdir()
    curve, config = Curve(), one_stage(tmp_path, YOLOX)
    record = train(config, callbacks=[curve])
    assert curve.losses == pytest.approx(trained_by_mmengine(config)[1].losses, rel=1e-5) and len(curve.losses) == 8
    cut = load_detection_config(
        config.cfg.filename, [f"output={tmp_path / 'cut'}", "trainer.checkpoint_every_n_steps=1"]
    )
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, callbacks=[PowerCut(5)])
    assert read_checkpoint(run_folder(cut) / "last.ckpt")["input_sizes"][0] != (64, 96)
    assert timeless(train(cut)) == timeless(record)
    with pytest.raises(
        UserError, match="'custom_hooks.0' is a YOLOXModeSwitchHook: .* expected a MultiImageMixDataset"
    ):
        stages_of(config, [])
