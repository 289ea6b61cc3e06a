"""Overrides of mmdet's configurations, which have no schema: what stands there says how a text is read, by the rules of
classification."""

import copy
import json
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")

from dk_bench.cli import main
from dk_bench.config import Config, RunConfig, load_config
from dk_bench.detection.mmengine_config import config_from_values, load_detection_config
from dk_bench.errors import UserError
from dk_bench.reading.overrides import split_override, standing

ROOT = Path(__file__).parents[2]
IMAGES = "train_dataloader.dataset"


@pytest.fixture(scope="module")
def values():
    return load_detection_config(ROOT / "configs/det/tiny_photos.py").to_dict()


def apply(values, *overrides):
    return config_from_values(copy.deepcopy(values), overrides)


def said(read, source, override, key):
    """A section of our keys, or why there is none."""
    try:
        config = read(source, [override])
        return getattr(getattr(config, "run", config), key)
    except UserError as error:
        return str(error)


SHARED = [
    "name=try #1",
    "name=007",
    "name=12:30",
    "name=1e5",
    "name=no",
    "name=~",
    "name=null",
    "name= a  b ",
    "name=a,b",
    "name=[a]",
    "name='a'",
    "name=${seed}",
    "output=/runs #2/a, b",
    "output={x}",
    "seed=1",
    "seed=010",
    "seed=1_0",
    "seed=1.0",
    "trainer.devices=0,1",
    "trainer.devices=2",
    "trainer.devices=auto",
    "trainer.devices=12:30",
    "trainer.precision=16",
    "trainer.deterministic=True",
    "trainer.deterministic=yes",
    "trainer={'devices': '0,1'}",
    "trainer.checkpoint_every_n_steps=None",
    "wandb.project=a, b",
    "wandb={project: 007}",
    "wandb.mode=off",
    "trainer.compiled=1",
    "trainer=3",
    "+seed=1",
    "--seed=1",
    "seed[0]=1",
]


MORE = [field.name for field in fields(Config) if field.name not in {one.name for one in fields(RunConfig)}]


def test_our_keys_mean_what_they_mean_in_classification(values):
    for override in SHARED:
        key = split_override(override)[0][0] if override[0] not in "+-" else "seed"
        ours, theirs = said(load_config, None, override, key), said(config_from_values, dict(values), override, key)
        if key == "trainer" and not isinstance(ours, str):
            ours.channels_last = False  # as mmdet has it
        if isinstance(ours, str):  # classification has further keys, which its hint lists
            ours = ours.removesuffix("".join(f", {name}" for name in MORE))
        if "precision" not in override:  # detection trains in fewer
            assert theirs == ours, override


READ = [
    ("load_from=/a b/c,d #1.pth", "/a b/c,d #1.pth"),
    ("load_from=None", None),
    ("work_dir=007", "007"),
    ("model.backbone.checkpoint=/run #1/x, y.ckpt", "/run #1/x, y.ckpt"),
    ("model.backbone.checkpoint=1", "1"),
    ("model.backbone.model_name=resnet50dw_dk", "resnet50dw_dk"),
    ("model.rpn_head.loss_cls.type=True", "True"),
    (f"{IMAGES}.ann_file=annotations/a b,c.json", "annotations/a b,c.json"),
    (f"{IMAGES}.ann_file=[a, b]", "[a, b]"),
    (f"{IMAGES}.data_prefix.img='x'", "'x'"),
    ("data_name=photos, 256 px", "photos, 256 px"),
    ("data_name=3", "3"),
    ("param_scheduler.1.milestones=[8, 11]", [8, 11]),
    ("param_scheduler[1].milestones[0]=5", 5),
    ("param_scheduler.1.milestones.1=9", 9),
    ("param_scheduler.1.end=3", 3),
    (f"{IMAGES}.pipeline.2.scale=[64, 96]", (64, 96)),
    (f"{IMAGES}.pipeline[2].scale=(64,96)", (64, 96)),
    (f"{IMAGES}.pipeline.2.scale[1]=64", 64),
    (f"{IMAGES}.pipeline.3.prob=[0.3, 0.2]", [0.3, 0.2]),
    (f"{IMAGES}.metainfo.classes=(1, no, 'a, b', 007)", ("1", "no", "a, b", "007")),
    (
        f"{IMAGES}.pipeline=[{{type: LoadImageFromFile}}, {{type: X, scale: (1, 2)}}]",
        [{"type": "LoadImageFromFile"}, {"type": "X", "scale": (1, 2)}],
    ),
    ("optim_wrapper.optimizer.lr=1e-4", 1e-4),
    ("optim_wrapper.optimizer.weight_decay=0", 0),
    ("optim_wrapper.clip_grad=None", None),
    ("model.backbone.norm_eval=true", True),
    ("sync_bn=torch", "torch"),
    ("model.backbone.init_cfg.type=Pretrained", "Pretrained"),
    ("other_classes=True", True),
    ("model.rpn_head.loss_bbox={'_delete_': True, 'type': 'IoU', 'eps': 1e-06}", {"type": "IoU", "eps": 1e-6}),
    ("optim_wrapper.paramwise_cfg={'custom_keys': {'backbone.x': {'lr_mult': 0.5}}}", None),
    ("model.new=007", "007"),
    ("model.new=1", 1),
    ("model.new='1'", "1"),
    ("model.new=a,b", "a,b"),
    ("randomness.seed=3", 3),
    ("data_root=/a b, c", "/a b, c"),
]


def test_what_stands_there_says_how_a_text_is_read(values):
    for override, value in READ:
        read = apply(values, override).to_dict()
        key = split_override(override)[0]
        if "custom_keys" in override:  # its own keys have dots
            read, key, value = read["optim_wrapper"], ("paramwise_cfg", "custom_keys", "backbone.x", "lr_mult"), 0.5
        got = standing(read, key)
        assert (override, got, type(got)) == (override, value, type(value))


def test_an_override_changes_nothing_else(values):
    before = apply(values).to_dict()
    after = apply(values, f"{IMAGES}.pipeline.2.scale[0]=7", "param_scheduler[1].milestones[0]=5").to_dict()
    assert after["test_dataloader"] == before["test_dataloader"] and after["train_pipeline"] == before["train_pipeline"]
    after["train_dataloader"]["dataset"]["pipeline"][2]["scale"] = (256, 256)
    after["param_scheduler"][1]["milestones"] = [8, 11]
    assert after == before


def test_sections_are_deleted_as_mmdet_deletes_them(values):
    deleted = {"type": "IoULoss", "eps": 0.1}
    for words in (
        ["={'_delete_': True, 'type': 'IoULoss', 'eps': 0.1}"],
        ["={}", "={type: IoULoss, eps: 0.1}"],
        ["._delete_=True", ".type=IoULoss", ".eps=1e-1"],
    ):
        overrides = [f"model.rpn_head.loss_bbox{word}" for word in words]
        assert apply(values, *overrides).to_dict()["model"]["rpn_head"]["loss_bbox"] == deleted


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("param_scheduler.1.milestones=8,11", "is '8,11', expected a list in brackets (each item a number or null)"),
        (
            f"{IMAGES}.metainfo.classes=apple",
            "is 'apple', expected a list in brackets (each item a text or null) or null",
        ),
        ("param_scheduler[1].milestones[2]=5", "key 'param_scheduler[1].milestones' has no item 2, expected 0 to 1"),
        (f"{IMAGES}.pipeline.-1.type=X", f"key '{IMAGES}.pipeline' has no item -1, expected 0 to 4"),
        (f"{IMAGES}.pipeline.2.scale.w=1", f"key '{IMAGES}.pipeline.2.scale' has no item w, expected 0 to 1"),
        ("param_scheduler[1].end[0]=5", "key 'param_scheduler[1].end' is 12, expected a list in brackets that has '0'"),
        ("train_cfg.max_epochs.x=5", "key 'train_cfg.max_epochs' is 12, expected a section that has 'x'"),
        ("optim_wrapper.optimizer.lr=0x10", "'optim_wrapper.optimizer.lr' is '0x10', expected a number, a list"),
        ("optim_wrapper.optimizer.lr=fast", "is 'fast', expected a number, a list in brackets or null"),
        ("train_dataloader.batch_size=1_0", "is '1_0', expected a number"),
        ("train_cfg.max_epochs=nan", "is 'nan', expected a number"),
        ("train_cfg.max_epochs=True", "is 'True', expected a number"),
        ("model.backbone.norm_eval=1", "is '1', expected true or false or null"),
        ("model=FasterRCNN", "key 'model' is 'FasterRCNN', expected keys and values in braces or null"),
        (
            "model={'backbone': {'norm_eval': 0}}",
            "key 'model.backbone.norm_eval' is '0', expected true or false or null",
        ),
        ("sync_bn=false", "key 'sync_bn' is 'false', expected one of torch, mmcv or null"),
        ("other_classes=yes", "key 'other_classes' is 'yes', expected true or false"),
        ("optim_wrapper.optimizer.nesterov=no", "is 'no', expected true or false, or quotes around it if it is a text"),
        ("resume=last.pth", "key 'resume' is 'last.pth', expected true or false"),
        ("randomness=3", "key 'randomness' is '3', expected keys and values in braces"),
        ("custom_hooks=EMAHook", "key 'custom_hooks' is 'EMAHook', expected a list in brackets or null"),
        ("trainer=3", "key 'trainer' is '3', expected a section with keys precision"),
        ("data_root=", "'data_root' is 'data/photos_det' in configuration, expected a folder in both"),
        (
            "model.new=[a",
            "key 'model.new' is '[a', which cannot be read: a bracket is not closed; in quotes it is a text",
        ),
    ],
)
def test_what_does_not_fit_is_named(values, override, sentence):
    with pytest.raises(UserError) as error:
        apply(values, override)
    assert sentence in str(error.value) and str(error.value).startswith(f"{override}: ")


def test_dry_run_of_detectors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "try.yaml"

    def status(parameters):
        command = ["dk-bench", "train", "configs/det/tiny_photos.py", "${args_no_hyphens}"]
        path.write_text(json.dumps({"method": "grid", "command": command, "parameters": parameters}))
        return main(["sweep", str(path), "--dry-run", "--output", str(tmp_path)])

    assert (
        status(
            {
                "load_from": {"values": ["/a #1.pth", "/a #2.pth"]},
                f"{IMAGES}.pipeline.2.scale": {"value": [8, 8]},
                "data_root": {"value": "data/x/"},
            }
        )
        == 0
    )
    assert status({"data_name": {"values": [True]}}) == 2
    assert "parameter 'data_name' is True in the sweep file, and 'True' to the configuration" in capsys.readouterr().err
    assert status({"optim_wrapper.optimizer.lr": {"values": [0.1, "0x1"]}}) == 1
    assert "lr=0x1' will fail: optim_wrapper.optimizer.lr=0x1: key" in capsys.readouterr().err
