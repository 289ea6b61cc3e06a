"""The configurations of tables 3 and 4 under mmdet's own runner: each builds, trains a step and predicts."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import mmengine.fileio
import numpy as np
import pytest
import torch
import yaml
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image

import dk_bench.tables
from dk_bench.detection.backbone import check_neck
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.models import PAPER_MODELS
from dk_bench.nn import offset_parameter_names
from dk_bench.tables.paper import paper_models, row_name
from dk_bench.training import train

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "det"
PAPER = yaml.safe_load((Path(dk_bench.tables.__file__).parent / "paper.yaml").read_text())
# Tables 3 and 4 have the models of tables 1 and 2 but the dense ResNet-50 and the ablation of the scope.
ROWS = {name: m for name, m in PAPER_MODELS.items() if m.base != "resnet50" and not re.search(r"_s\d", name)}
SIDE = 64


@pytest.fixture(autouse=True, scope="module")
def quick_configurations():
    """Reads mmdet's index of models once, not for every base of every file, and writes configurations as they come, not
    laid out by yapf. These two take longer than the models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.utils.load", functools.cache(mmengine.fileio.load))
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
        yield


def config_file(name):
    """The file of a row's backbone, which is for the rigid row as it stands."""
    return FOLDER / f"faster_rcnn_{ROWS[name].base}_fpn_1x.py"


def runner_of(cfg, work_dir, **changes):
    """mmdet's runner of a configuration. ``changes`` are dotted keys, as on its command line."""
    cfg.merge_from_dict(changes)
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(work_dir), work_dir.name, "ERROR"
    register_all_modules()
    return Runner.from_cfg(cfg)


def batch(boxes, labels):
    """One image of SIDE x SIDE pixels as mmdet's pipelines pack it."""
    sample = DetDataSample(
        metainfo={"img_id": 1, "img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0)}
    )
    sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.tensor(labels))
    image = torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"inputs": [image], "data_samples": [sample]}


def test_every_row_is_a_cell_of_a_sweep_and_every_file_a_backbone():
    assert len(ROWS) == 18
    beyond = {"faster_rcnn_resnet50_fpn_1x.py"}  # has dense convolutions, which the paper's tables 3 and 4 have not
    assert {path.name for path in FOLDER.glob("faster_rcnn_*.py")} == {config_file(name).name for name in ROWS} | beyond
    swept = set()
    for path in (ROOT / "sweeps").glob("coco_*.yaml"):
        sweep = yaml.safe_load(path.read_text())
        models = sweep["parameters"]["model.backbone.model_name"]["values"]
        assert {f"configs/det/{config_file(name).name}" for name in models} == {sweep["command"][2]}
        swept |= set(models)
    assert swept == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_the_claim_is_the_papers_row(name):
    table = "table4" if ROWS[name].spec.words.combined else "table3"
    (row,) = [row for row in PAPER[table] if paper_models().get(row_name(row)) == name]
    if name == ROWS[name].base:
        head = config_file(name).read_text().split("_base_ =")[0]
        claim = f"# Claim: {row['map']} AP on COCO test-dev in the paper (table {table[-1]}: {row['backbone']},"
        assert head.startswith(claim) and f"3x3 {row['conv3x3']})" in head
        assert f"# Check: dk-bench train configs/det/{config_file(name).name}" in head
    part = {"table3": "global_local", "table4": "baselines"}[table]
    sweep = (ROOT / f"sweeps/coco_{part}_{ROWS[name].base.removesuffix('_100')}.yaml").read_text()
    assert sweep.startswith(f"# Claim: table {table[-1]}") and row["backbone"] in sweep.splitlines()[0]
    assert f"      - {name} # {row['map']} AP in the paper" in sweep.splitlines()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_a_step_and_predicts(name, tmp_path):
    """With few proposals; the model, the optimiser and the hooks are what mmdet's runner makes of the file, as our own
    command reads it."""
    torch.manual_seed(0)
    config = load_detection_config(config_file(name), [f"model.backbone.model_name={name}"])
    assert config.run.name == config_file(name).stem and config.cfg.data_name == "coco"
    runner = runner_of(
        config.cfg,
        tmp_path / name,
        **{
            "model.train_cfg.rpn_proposal.nms_pre": 50,
            "model.train_cfg.rpn_proposal.max_per_img": 20,
            "model.train_cfg.rcnn.sampler.num": 16,
            "model.test_cfg.rpn.nms_pre": 50,
            "model.test_cfg.rpn.max_per_img": 10,
        },
    )
    detector = runner.model.train()
    check_neck(detector)
    assert detector.backbone.model_name == name
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    check_learning_rates(detector, wrapper.optimizer, 0.01 if ROWS[name].base == "resnet50dw" else 0.1)

    start_everything(detector.backbone)
    frozen = {n: p.detach().clone() for n, p in detector.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith("backbone.") for n in frozen)
    data = batch([[4.0, 4.0, 40.0, 36.0], [30.0, 20.0, 60.0, 60.0]], [3, 17])
    gradients = gradients_of_a_step(detector, wrapper, data)
    learning = {n for n, p in detector.backbone.named_parameters() if p.requires_grad}
    assert {n for n in learning if not gradients.get(f"backbone.{n}", 0) > 0} == set()
    assert all(torch.equal(detector.get_parameter(n), value) for n, value in frozen.items())

    detector.eval()
    with torch.no_grad():
        (prediction,) = detector.test_step(batch([[4.0, 4.0, 40.0, 36.0]], [3]))
    assert prediction.pred_instances.bboxes.shape[1:] == (4,) and torch.isfinite(prediction.pred_instances.scores).all()


def check_learning_rates(detector, optimizer, multiplier):
    """Offset generators, and they alone, learn at the rate times the multiplier, and all that learns is there once."""
    names = {id(p): n for n, p in detector.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    offsets = offset_parameter_names(detector)
    assert rates.keys() == {n for n, p in detector.named_parameters() if p.requires_grad}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert rates == {n: 0.02 * multiplier if n in offsets else 0.02 for n in rates}
    spec = ROWS[detector.backbone.model_name].spec
    assert bool(offsets & rates.keys()) == bool(spec.depthwise or spec.pointwise or spec.dcn)


def start_everything(backbone):
    """Small random values in place of zeros: offsets, routing and each block's last normalisation start at zero, where
    no gradient reaches what is before them. Offsets stay inside the scope, beyond which they have no gradient."""
    offsets = offset_parameter_names(backbone)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.001 if name in offsets else 0.05)


def gradients_of_a_step(detector, wrapper, data):
    """Name of each parameter to its gradient's largest value, as they are when mmengine's wrapper steps."""
    largest = {}
    handles = [
        p.register_hook(lambda g, n=n: largest.update({n: g.abs().max().item()}))
        for n, p in detector.named_parameters()
        if p.requires_grad
    ]
    logged = detector.train_step(data, wrapper)
    for handle in handles:
        handle.remove()
    assert torch.isfinite(logged["loss"]) and {"loss_rpn_cls", "loss_cls", "loss_bbox"} <= logged.keys()
    return largest


# The tiny configurations, with their data


TINY_MODEL = {"model.backbone.model_name": "test_resnetdw_dk", "model.train_cfg.rpn_proposal.max_per_img": 20}


def tiny(folder, **scenes):
    """Changes that make the procedural configuration a matter of seconds."""
    scenes = {"train_images": 6, "val_images": 4, "size": 96, "seed": 0} | scenes
    changes = {**TINY_MODEL, "train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}
    for loader in ("train_dataloader", "val_dataloader"):
        changes |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
        changes |= {f"{loader}.dataset.data_root": str(folder), f"{loader}.dataset.scenes": scenes}
    return changes | {"val_evaluator.ann_file": f"{folder}/annotations/val.json"}


def test_mmdet_trains_on_procedural_images(tmp_path):
    """An epoch and its validation, with hooks, schedule and checkpoint, by the file as it is."""
    cfg = Config.fromfile(FOLDER / "tiny_procedural.py")
    runner = runner_of(cfg, tmp_path / "work", **tiny(tmp_path / "data"))
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    assert (tmp_path / "work" / "epoch_1.pth").exists()
    changed = {name for name, value in runner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("kernel_offset" in name for name in changed) and any("running_mean" in name for name in changed)
    assert 0 <= runner.message_hub.get_scalar("val/coco/bbox_mAP").current() <= 1


@pytest.mark.parametrize("name", ["test_resnet_dcn_dk", "test_resnet_gdk", "test_resnetdw_dk_lpw"])
def test_backbones_beyond_the_paper_train_a_step(name, tmp_path):
    """By name, in the tiny configuration, whose neck is told their channels."""
    torch.manual_seed(0)
    changes = {**TINY_MODEL, "model.backbone.model_name": name}
    if name.startswith("test_resnet_"):
        changes["model.neck.in_channels"] = [32, 48, 192, 96]
    runner = runner_of(Config.fromfile(FOLDER / "tiny_photos.py"), tmp_path, **changes)
    detector = runner.model.train()
    check_neck(detector)
    start_everything(detector.backbone)
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    gradients = gradients_of_a_step(
        detector, wrapper, batch([[4.0, 4.0, 40.0, 36.0], [30.0, 20.0, 60.0, 60.0]], [3, 1])
    )
    assert {n for n, _ in detector.backbone.named_parameters() if not gradients[f"backbone.{n}"] > 0} == set()
    assert any("kernel_offset" in n for n in gradients)


def overrides(changes, folder):
    """The changes, and where the run writes, as `dk-bench train` takes them."""
    changes = changes | {"wandb.mode": "disabled", "trainer.accelerator": "cpu", "output": folder}
    for loader in ("train_dataloader", "val_dataloader"):
        scenes = changes.pop(f"{loader}.dataset.scenes")
        changes |= {f"{loader}.dataset.scenes.{key}": value for key, value in scenes.items()}
    return [f"{key}={value}" for key, value in changes.items()]


def test_lightning_trains_on_procedural_images(tmp_path):
    """The same file under `dk-bench train`."""
    config = load_detection_config(FOLDER / "tiny_procedural.py", overrides(tiny(tmp_path / "data"), tmp_path))
    record = train(config)
    assert record.status == "finished" and record.model["name"] == "test_resnetdw_dk"
    assert record.data["name"] == "procedural_det" and record.model["spec"]["depthwise"] == "local"
    assert record.metrics["final"]["val/mAP"] is not None


def test_the_experiment_trains_and_says_what_it_is(tmp_path):
    """The file of experiment E3, on few images: what its claims look for in a record."""
    changes = tiny(tmp_path / "data") | {"model.backbone.model_name": "test_resnetdw_dcn_dk"}
    config = load_detection_config(FOLDER / "e3_procedural.py", overrides(changes, tmp_path))
    assert {scale["lr_mult"] for scale in config.cfg.optim_wrapper.paramwise_cfg.custom_keys.values()} == {0.1}
    record = train(config)
    assert record.status == "finished" and record.name == "detection" and record.data["name"] == "procedural_scenes"
    assert record.model["spec"]["depthwise"] == "local" and record.model["spec"]["dcn"]
    assert record.metrics["final"]["val/mAP"] is not None


def test_the_experiments_images_are_as_planned():
    cfg = load_detection_config(FOLDER / "e3_procedural.py").cfg
    sets = [cfg[f"{split}_dataloader"].dataset for split in ("train", "val")]
    assert sets[0].scenes == sets[1].scenes and sets[0].data_root == sets[1].data_root
    assert sets[0].scenes.train_images >= 400 and sets[1].scenes.val_images >= 1000
    assert cfg.val_evaluator.ann_file == f"{sets[1].data_root}/annotations/val.json"
    assert cfg.model.roi_head.bbox_head.num_classes == sets[0].scenes.classes
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_epochs  # nothing is chosen by looking at them


@pytest.fixture
def photos(tmp_path):
    """Two images a split, laid out and annotated as the photographs are."""
    categories = [{"id": n, "name": name} for n, name in enumerate(("apple", "banana", "orange", "raccoon"), start=1)]
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        images = [{"id": n, "file_name": f"{split}{n}.jpg", "width": 120, "height": 90} for n in (1, 2)]
        boxes = [
            {"id": n, "image_id": n, "category_id": n + 2, "bbox": [10, 10, 60, 50], "area": 3000, "iscrowd": 0}
            for n in (1, 2)
        ]
        for image in images:
            Image.fromarray(np.full((90, 120, 3), 100, np.uint8)).save(tmp_path / "images" / image["file_name"])
        content = {"images": images, "annotations": boxes, "categories": categories}
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_photographs_are_read_as_their_configuration_says(photos):
    cfg = load_detection_config(FOLDER / "tiny_photos.py").cfg
    assert cfg.data_name == "photos_det"
    register_all_modules()
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        images = DATASETS.build(loader.dataset | {"data_root": str(photos)})
        assert len(images) == 2 and images.metainfo["classes"] == ("apple", "banana", "orange", "raccoon")
        packed = images[1]
        assert max(packed["inputs"].shape[1:]) == 256
        assert packed["data_samples"].gt_instances.labels.tolist() == [3]
    assert cfg.model.roi_head.bbox_head.num_classes == 4
    assert cfg.val_evaluator.ann_file == "data/photos_det/annotations/val.json"


def test_a_file_is_read_again_where_one_below_it_has_changed(tmp_path):
    base, file = tmp_path / "base.py", tmp_path / "file.py"
    base.write_text((FOLDER / "tiny_photos.py").read_text().replace('"_base_/', f'"{FOLDER.resolve()}/_base_/'))
    file.write_text('_base_ = "base.py"\n')
    before = load_detection_config(file).cfg
    base.write_text(base.read_text() + 'data_name = "changed"\n')
    assert load_detection_config(file).cfg.data_name == "changed" != before.data_name
