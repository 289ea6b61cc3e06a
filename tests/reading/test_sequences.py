"""A text or a number where several values are expected: named before anything reads it letter by letter."""

import copy
import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("mmdet", reason="mmdet is not installed, whose configurations are read")

from dk_bench.data.coco import check_annotations
from dk_bench.detection.data import DetectionData
from dk_bench.detection.mmengine_config import load_detection_config
from dk_bench.errors import UserError
from dk_bench.nn import DeformKernel2d, GlobalDeformKernel2d
from dk_bench.reading.sequences import check_sequences
from dk_bench.runs.record import find_records

ROOT = Path(__file__).parents[2]


def coco(folder: Path, *names: str) -> Path:
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
            for n in range(1, 1 + len(names))
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def config_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.py"
    base = ROOT / "configs" / "det" / "tiny_procedural.py"
    path.write_text(f"_base_ = [{str(base)!r}]\n{text}\n")
    return path


@pytest.mark.parametrize("classes", ["apple", "ab", "a"])
def test_classes_as_a_text_are_named(classes, tmp_path):
    """Also where every letter is a category, so that all would seem well."""
    folder = coco(tmp_path / "data", *dict.fromkeys(classes))
    data = f"""train_dataloader = dict(dataset=dict(_delete_=True, type="CocoDataset", data_root={str(folder)!r},
        ann_file="train.json", data_prefix=dict(img="images/"), metainfo=dict(classes=({classes!r})), pipeline=[]))"""
    with pytest.raises(UserError) as error:
        load_detection_config(config_of(tmp_path, data))
    assert str(error.value) == (
        f"{tmp_path / 'c.py'}: key 'train_dataloader.dataset.metainfo.classes' is {classes!r}, expected a list or "
        f"tuple of names; one alone is ({classes!r},)"
    )
    with pytest.raises(UserError, match=f"^argument 'classes' is '{classes}', expected a list or tuple of names; one"):
        check_annotations(folder / "train.json", folder / "images", classes)


def test_classes_of_a_data_set_of_ones_own_are_named(tmp_path):
    """Its METAINFO stands in no configuration."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    class Apples(CocoDataset):
        METAINFO = {"classes": "ab"}

    folder = coco(tmp_path / "data", "a", "b")
    config = load_detection_config(
        config_of(
            tmp_path,
            f"""train_dataloader = dict(dataset=dict(_delete_=True,
        type="Apples", data_root={str(folder)!r}, ann_file="train.json", data_prefix=dict(img="images/"),
        pipeline=[]))""",
        )
    )
    DATASETS.register_module(module=Apples, name="Apples")
    try:
        with pytest.raises(UserError, match=r"^key 'train_dataloader\.dataset\.metainfo\.classes' is 'ab', expected a"):
            _ = DetectionData(config).train_images
    finally:
        DATASETS.module_dict.pop("Apples")


def test_a_file_of_classes_and_a_tuple_of_one_are_taken(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("apple\npear\n")
    for classes in (str(names), ("apple",), ["a", "b"]):
        check_sequences({"train_dataloader": {"dataset": {"metainfo": {"classes": classes}}}})


@pytest.fixture(scope="module")
def tiny():
    return load_detection_config(ROOT / "configs" / "det" / "tiny_procedural.py").cfg.to_dict()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train_dataloader.dataset.metainfo.classes", 3, "names; one alone is (3,)"),
        ("train_dataloader.dataset.metainfo.classes", ("a", 1), None),
        ("val_dataloader.dataset.metainfo.palette", "red", "colours; one alone is ('red',)"),
        ("model.neck.in_channels", "256", "numbers; one alone is ('256',)"),
        ("model.neck.in_channels", 256, "numbers; one alone is (256,)"),
        ("model.neck.in_channels", ["32", "64"], None),
        ("model.backbone.out_indices", "1", "numbers; one alone is ('1',)"),
        ("model.data_preprocessor.mean", "123", "numbers; one alone is ('123',)"),
        ("model.data_preprocessor.std", 58.0, "numbers; one alone is (58.0,)"),
        ("model.rpn_head.anchor_generator.scales", 8, "numbers; one alone is (8,)"),
        ("model.rpn_head.anchor_generator.ratios", 1.0, "numbers; one alone is (1.0,)"),
        ("model.rpn_head.anchor_generator.strides", "48", "numbers; one alone is ('48',)"),
        ("model.rpn_head.bbox_coder.target_stds", 1.0, "numbers; one alone is (1.0,)"),
        ("model.roi_head.bbox_roi_extractor.featmap_strides", 4, "numbers; one alone is (4,)"),
        ("param_scheduler[1].milestones", "8", "numbers; one alone is ('8',)"),
        ("param_scheduler[1].milestones", 8, "numbers; one alone is (8,)"),
        ("optim_wrapper.optimizer.betas", 0.9, "numbers; one alone is (0.9,)"),
        ("train_dataloader.dataset.pipeline", {"type": "PackDetInputs"}, "sections; one alone is [dict(...)]"),
        ("train_dataloader.dataset.datasets", {"type": "CocoDataset"}, "sections; one alone is [dict(...)]"),
        ("custom_hooks", {"type": "NumClassCheckHook"}, "sections; one alone is [dict(...)]"),
    ],
)
def test_one_value_in_place_of_several(key, value, expected, tiny):
    cfg = copy.deepcopy(tiny)
    *outer, last = key.replace("[1]", ".1").split(".")
    section = cfg
    for part in outer:
        section = section[int(part)] if isinstance(section, list) else section.setdefault(part, {})
    section[last] = value
    with pytest.raises(UserError) as error:
        check_sequences(cfg)
    message = str(error.value)
    assert message.startswith(f"key '{key}' is {value!r}, expected ")
    assert message.endswith(f"expected a list or tuple of {expected}" if expected else " in it")


def test_committed_configurations_and_one_map_are_taken():
    for name in ("tiny_photos", "faster_rcnn_mobilenetv2_100_fpn_1x"):
        load_detection_config(ROOT / "configs" / "det" / f"{name}.py")
    check_sequences({"neck": [{"type": "FPN", "in_channels": [1]}, {"type": "BFP", "in_channels": 256}]})
    check_sequences({"backbone": {"out_indices": -1}, "anchor_generator": {"ratios": [[2], [2, 3]]}})


# The same elsewhere


@pytest.mark.parametrize("kind", [DeformKernel2d, GlobalDeformKernel2d])
@pytest.mark.parametrize(
    ("name", "value"), [("kernel_size", (True, 3)), ("stride", [1, True]), ("clip", "False"), ("clip", 0)]
)
def test_layers_name_the_argument(kind, name, value):
    arguments = {"scope": 4, "in_channels": 2, "out_channels": 2, "kernel_size": 3, "groups": 2} | {name: value}
    with pytest.raises(TypeError, match=f"^{name}: expected "):
        kind(**arguments)


def test_one_folder_of_records_is_no_letters(tmp_path):
    (tmp_path / "record.json").write_text("{}")
    assert find_records(str(tmp_path)) == find_records(tmp_path) == [tmp_path / "record.json"]
