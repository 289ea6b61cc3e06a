"""Settings that a detection configuration heeds, and those it refuses rather than ignore."""

import json
import os
import random
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, edit, random_predictions, tiny_detection, tiny_file
from mmdet.registry import DATASETS
from mmengine import Config
from mmengine.registry import DefaultScope
from new_python import run_new_python
from torch import nn

from dk_bench.detection.backbone import TimmBackbone
from dk_bench.detection.data import DetectionData, KeyedImages
from dk_bench.detection.metrics import prediction_of, read_truth, score
from dk_bench.detection.mmengine_config import config_from_values, load_detection_config, use_scope
from dk_bench.detection.module import LitDetector, check_num_classes, load_start
from dk_bench.errors import UserError
from dk_bench.training import train


@pytest.mark.parametrize(
    "override, match",
    [
        ("modle.type=X", "modle.type=X: unknown key 'modle', did you mean 'model'"),
        ("nonsense", "'nonsense': expected KEY=VALUE"),
        ("train_cfg.max_epoch=1", "unknown key 'train_cfg.max_epoch', expected type, by_epoch, max_epochs"),
        ("train_cfg.max_epochs=0", "'train_cfg.max_epochs' is 0, expected an integer of at least 1"),
        (
            "train_cfg.type=IterBasedTrainLoop",
            "unknown key 'train_cfg.max_epochs', expected type, by_epoch, max_iters, ",
        ),
        ("train_cfg.type=Loop", "'train_cfg.type' is 'Loop', expected 'EpochBasedTrainLoop' or 'IterBasedTrainLoop'"),
        ("train_cfg.by_epoch=False", "'train_cfg.by_epoch' is False, expected True with EpochBasedTrainLoop"),
        ("train_cfg.val_interval=0", "'train_cfg.val_interval' is 0, expected an integer of at least 1"),
        (
            "train_cfg.dynamic_intervals=[(3, 1), (2, 1)]",
            r"'train_cfg.dynamic_intervals' is .*, expected pairs \(milestone, interval\) of integers, milestones ri",
        ),
        ("trainer.precision=8", "'trainer.precision' is '8', expected one of 32-true"),
        ("trainer.device=1", "unknown key 'trainer.device', did you mean 'trainer.devices'"),
        ("optim_wrapper.accumulative_counts=0", "'optim_wrapper.accumulative_counts' is 0, expected an integer of at"),
        (
            "trainer.gradient_clip_val=1.0",
            "'trainer.gradient_clip_val' is 1.0, expected null: key 'optim_wrapper.clip_g",
        ),
        (
            "default_hooks.param_scheduler=None",
            "'default_hooks.param_scheduler' is None, expected no such key: learning",
        ),
        ("param_scheduler.7.end=2", "key 'param_scheduler' has no item 7, expected 0 to 1"),
        ("load_from=", "key 'load_from' is '', expected a file, or null"),
        ("val_dataloader=None", "key 'val_dataloader' is missing"),
        ("train_cfg={'max_epochs': 0}", "'train_cfg.max_epochs' is 0, expected an integer of at least 1"),
        ("train_cfg={max", "'train_cfg' is '{max', which cannot be read: a bracket is not closed"),
    ],
)
def test_bad_configuration_is_named(tmp_path, override, match):
    with pytest.raises(UserError, match=match):
        tiny_detection(tmp_path, override)


def test_mapping_is_merged_as_nested_parameters_of_a_sweep_come(tmp_path):
    before = tiny_detection(tmp_path).to_dict()["model"]
    after = tiny_detection(tmp_path, "model={'backbone': {'init_cfg': None, 'depth': 34}}").to_dict()["model"]
    assert after == before | {"backbone": before["backbone"] | {"init_cfg": None, "depth": 34}}


@pytest.mark.parametrize(
    "override, match",
    [
        ("model.type=FasterCNN", "key 'model' .FasterCNN. cannot be built: KeyError: .*FasterCNN is not in the"),
        ("model.backbone.dept=18", "key 'model' .FasterRCNN. cannot be built: TypeError: .*'dept'"),
        ("optim_wrapper.optimizer.lrate=1", "key 'optim_wrapper' cannot be built: .*lrate"),
        ("param_scheduler.1.gama=1", "key 'param_scheduler.1' .MultiStepLR. cannot be built: .*gama"),
        (
            "train_dataloader.sampler.type=InfiniteSampler",
            "'train_dataloader.sampler' is 'InfiniteSampler', expected one",
        ),
        ("train_dataloader.dataset.type=NoData", "key 'train_dataloader.dataset' .NoData. cannot be built"),
        ("load_from=none.pth", "'load_from': none.pth: no checkpoint can be read there: No such file"),
    ],
)
def test_what_cannot_be_built_is_named(tmp_path, override, match):
    with pytest.raises(UserError, match=match):
        train(tiny_detection(tmp_path, override))


def test_accumulation_is_said_once(tmp_path):
    both = ["optim_wrapper.accumulative_counts=2", "trainer.accumulate_grad_batches=2"]
    with pytest.raises(
        UserError, match="'trainer.accumulate_grad_batches' is 2, expected 1: key 'optim_wrapper.acc.* 2"
    ):
        tiny_detection(tmp_path, *both)
    iterations = "train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 4, '_delete_': True}"
    with pytest.raises(
        UserError, match="'trainer.accumulate_grad_batches' is 2, expected 1: iterations of 'train_cfg'"
    ):
        tiny_detection(tmp_path, iterations, both[1])


def test_files_that_cannot_be_read(tmp_path):
    path = tiny_file(tmp_path)
    with pytest.raises(UserError, match="no configuration can be read there"):
        load_detection_config(tmp_path / "none.py")
    path.write_text("model = dict(")
    with pytest.raises(UserError, match=r"tiny\.py: not a configuration"):
        load_detection_config(path)


def test_variables_of_a_file_cannot_be_set(tmp_path):
    """mmengine has copied them to where they are used: a change would stand in records and do nothing."""
    with pytest.raises(UserError, match=r"test_pipeline=1: 'test_pipeline' is a variable of .*tiny\.py"):
        tiny_detection(tmp_path, "test_pipeline=1")
    with pytest.raises(UserError, match="unknown key 'pipelin'"):
        tiny_detection(tmp_path, "pipelin=1")


def test_data_root_moves_all_data(tmp_path):
    path = tiny_file(tmp_path)
    path.write_text(
        f"{path.read_text()}\ndata_root = {str(tmp_path / 'tiny_data')!r}\n"
        f"val_evaluator = dict(type='CocoMetric', ann_file=data_root + '/val.json')\n"
    )
    (tmp_path / "tiny_data").rename(tmp_path / "elsewhere")
    config = load_detection_config(path, [f"data_root={tmp_path / 'elsewhere'}/"])
    assert config.cfg.val_evaluator.ann_file == str(tmp_path / "elsewhere" / "val.json")
    data = DetectionData(config)
    assert len(data.train_images) == 10 and len(data.val_images) == 6


@pytest.mark.parametrize("key", ["train_dataloader.batchsize", "val_dataloader.worker_init_fn"])
def test_unknown_settings_of_loaders(tmp_path, key):
    data = DetectionData(tiny_detection(tmp_path, f"{key}=3"))
    with pytest.raises(UserError, match=rf"unknown key '{key}', expected batch_"):
        data.train_images, data.val_images  # noqa: B018


def test_settings_of_torchs_loader_are_heeded(tmp_path):
    config = tiny_detection(
        tmp_path, "val_dataloader.num_workers=1", "val_dataloader.prefetch_factor=3", "val_dataloader.timeout=60"
    )
    loader = DetectionData(config).val_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.timeout) == (1, 3, 60)


def test_part_of_the_validation_images(tmp_path):
    """Objects of images that are not validated are not missed."""
    whole = DetectionData(tiny_detection(tmp_path))
    part = DetectionData(tiny_detection(tmp_path, "val_dataloader.dataset.indices=2"))
    assert len(part.val_images) == 2 and len(whole.ground_truth) == 6
    held = {part.val_images.get_data_info(index)["img_id"] for index in range(2)}
    assert part.ground_truth.keys() == held
    samples = random_predictions(tmp_path / "tiny_data" / "val.json", seed=0, noise=0.0)
    found = {}
    for name, data in (("part", part), ("whole", whole)):
        predictions = dict(prediction_of(sample) for sample in samples if sample.img_id in held)
        found[name] = score(predictions, data.ground_truth)["mAP_50"]
    assert found["part"] > found["whole"] > 0


def test_classes_that_a_head_does_not_tell_apart(tmp_path):
    config = tiny_detection(tmp_path, "model.roi_head.bbox_head.num_classes=7")
    with pytest.raises(UserError, match=r"'model.roi_head.bbox_head.num_classes' is 7, expected 3: disc, box, bar"):
        LitDetector(config.to_dict(), list(CLASSES))
    cascade = nn.ModuleDict({"bbox_head": nn.ModuleList([nn.Identity(), nn.Identity()]), "rpn_head": nn.Identity()})
    for head, classes in ((cascade["bbox_head"][0], 3), (cascade["bbox_head"][1], 80), (cascade["rpn_head"], 1)):
        head.num_classes = classes
    with pytest.raises(UserError, match=r"'model.bbox_head.1.num_classes' is 80"):
        check_num_classes(cascade, CLASSES)


@pytest.mark.parametrize("wanted", [None, "torch"])
def test_mmengines_key_synchronises_batch_normalisation(tmp_path, wanted):
    path = tiny_file(tmp_path)
    if wanted:
        path.write_text(f"{path.read_text()}\nsync_bn = {wanted!r}\n")
    config = load_detection_config(path, [f"output={tmp_path}"])
    assert config.run.trainer.sync_batchnorm is bool(wanted)
    again = config_from_values(config.to_dict())
    assert again.run.trainer.sync_batchnorm is bool(wanted)


@pytest.mark.parametrize("fault", [None, UserError("damaged")])
def test_images_leave_the_random_numbers_of_the_process_alone(fault):
    """Also one that cannot be read; what is drawn for it depends on seed, epoch and index."""

    class Images:
        def __getitem__(self, index):
            drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
            if fault:
                raise fault
            return index

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    drawn, before = [], states()
    for key in ((1, 2), (1, 2), (1, 3), (2, 2)):
        with pytest.raises(UserError) if fault else nullcontext():
            KeyedImages(Images(), seed=0)[key]
        assert states() == before
    first, again, *others = drawn
    assert first == again and first not in others


def test_default_scopes_may_alternate():
    """In one process: what was asked for last is current, also where it was before."""
    for scope in ("mmdet", "mmengine", "mmdet", "mmengine", "mmdet"):
        use_scope(Config({"default_scope": scope}))
        assert DefaultScope.get_current_instance().scope_name == scope


def test_custom_imports_hold_for_checkpoints_too(tmp_path):
    """In a process that has not read the file; what a checkpoint holds names the modules."""
    (tmp_path / "my_detector_parts.py").write_text(
        "from mmdet.models.necks import FPN\nfrom mmdet.registry import MODELS\n\n\n"
        "@MODELS.register_module()\nclass MyFPN(FPN):\n    pass\n"
    )
    path = tiny_file(tmp_path)
    path.write_text(
        path.read_text() + "\ncustom_imports = dict(imports=['my_detector_parts'])\nmodel['neck']['type'] = 'MyFPN'\n"
    )
    read = (
        "import sys, json\nfrom dk_bench.detection.mmengine_config import load_detection_config, config_from_values\n"
        "from dk_bench.detection.module import LitDetector\n"
    )
    held, environment = tmp_path / "values.json", {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    dump = "json.dump(load_detection_config(sys.argv[1]).to_dict(), open(sys.argv[2], 'w'))"
    load = "print(type(LitDetector(json.load(open(sys.argv[2])), ['disc', 'box', 'bar']).model.neck).__name__)"
    outputs = [run_new_python(["-c", read + code, path, held], env=os.environ | environment) for code in (dump, load)]
    assert [done.returncode for done in outputs] == [0, 0], outputs
    assert outputs[1].stdout.split()[-1] == "MyFPN"
    with pytest.raises(UserError, match="key 'custom_imports' is .*no_such_parts"):
        use_scope(config_from_values(json.loads(held.read_text()), ["custom_imports.imports=['no_such_parts']"]).cfg)


class Carried:
    """What mmengine puts into its checkpoints beside weights: an object."""


def test_checkpoint_with_more_than_plain_data(tmp_path):
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": {}, "message_hub": Carried()}, path)
    with pytest.raises(UserError) as raised:
        load_start(nn.Linear(1, 1), str(path))
    message = str(raised.value)
    assert "key 'load_from'" in message and f"it holds {Carried.__module__}.Carried" in message
    assert "weights_only=False)['state_dict']" in message and "\x1b" not in message


def test_training_images_without_objects(tmp_path):
    path = tiny_file(tmp_path)
    edit(tmp_path / "tiny_data" / "train.json", lambda content: content["annotations"].clear())
    overrides = ["train_dataloader.dataset.filter_cfg.filter_empty_gt=True"]
    with pytest.raises(UserError, match="'train_dataloader.dataset': no images to use, after what 'filter_cfg'"):
        DetectionData(load_detection_config(path, overrides)).train_images  # noqa: B018


def test_annotations_that_do_not_tell_crowds(tmp_path):
    path = tiny_file(tmp_path)
    edit(tmp_path / "tiny_data" / "val.json", lambda content: [a.pop("iscrowd") for a in content["annotations"]])
    truth = DetectionData(load_detection_config(path)).ground_truth
    assert not any(target["iscrowd"].any() for target in truth.values())


def test_other_classes_are_left_out_where_that_is_asked_for(tmp_path):
    path = tiny_file(tmp_path)
    path.write_text(path.read_text().replace('classes = ("disc", "box", "bar")', 'classes = ("disc", "bar")'))
    with pytest.raises(UserError, match=r"category 'box' is not in the list; .*other_classes=True"):
        DetectionData(load_detection_config(path)).val_images  # noqa: B018
    data = DetectionData(load_detection_config(path, ["other_classes=True"]))
    assert data.classes == ["disc", "bar"] and len(data.val_images) == 6
    labels = torch.cat([target["labels"] for target in data.ground_truth.values()])
    whole = read_truth(tmp_path / "tiny_data" / "val.json", CLASSES)
    assert len(labels) == sum(int((target["labels"] != 1).sum()) for target in whole.values())


def test_detectors_checkpoint_as_a_backbones(tmp_path):
    torch.save({"task": "detection", "hyper_parameters": {"config": {}, "classes": []}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"argument 'checkpoint' is .*last\.ckpt', a checkpoint of detection, expected"):
        TimmBackbone("test_resnetdw", checkpoint=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("name", ["test_resnetdw_dk", "mobilenetv2_100"])
def test_checkpointing_of_activations_changes_nothing_else(name):
    torch.manual_seed(0)
    plain, saving = TimmBackbone(name, norm_eval=False), TimmBackbone(name, norm_eval=False, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    gradients, kept = [], []
    for backbone in (plain, saving):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t):
            outputs = backbone.train()(images)
        sum(output.sum() for output in outputs).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters() if parameter.grad is not None])
        kept.append(sum(held))
    assert kept[1] < 0.7 * kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_datasets_are_found_by_name():
    assert DATASETS.get("dk_bench.ProceduralCoco") is not None
