"""dk_bench.load of detectors: as mmdet's init_detector has them, from our checkpoint and from mmdet's files."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from PIL import Image

import dk_bench
from dk_bench.cli import main
from dk_bench.detection.known_types import check_types
from dk_bench.errors import UserError
from dk_bench.tasks import run_folder


@pytest.fixture(scope="module")
def checkpoint(whole):
    return run_folder(whole[0]) / "last.ckpt"


def images_of(whole):
    return sorted(Path(whole[0].cfg.val_dataloader.dataset.data_root, "val").glob("*.png"))


def theirs(checkpoint):
    """What mmdet makes of the file, whose configuration it takes as it stands there."""
    meta = torch.load(checkpoint, weights_only=True)["meta"]
    cfg = Config.fromstring(meta["cfg"], file_format=".py")
    cfg.test_dataloader = cfg.val_dataloader
    return init_detector(cfg, str(checkpoint), device="cpu")


def as_mmdet_saves(checkpoint, folder, change=lambda content: None):
    held = torch.load(checkpoint, weights_only=True)
    meta = {"cfg": Config.fromstring(held["meta"]["cfg"], file_format=".py").pretty_text}
    content = {"state_dict": held["state_dict"], "meta": meta | {"dataset_meta": held["meta"]["dataset_meta"]}}
    change(content)
    torch.save(content, folder / "epoch_1.pth")
    return folder / "epoch_1.pth"


@pytest.mark.parametrize("exported", [False, True])
def test_a_detector_is_as_mmdet_has_it(whole, checkpoint, tmp_path, exported):
    expected = theirs(checkpoint)
    trained = dk_bench.load(as_mmdet_saves(checkpoint, tmp_path).parent if exported else checkpoint)
    model = trained.model
    assert trained.task == "detection" and trained.classes == model.dataset_meta["classes"]
    assert model.dataset_meta == expected.dataset_meta and not model.training
    assert model.cfg.test_dataloader == expected.cfg.test_dataloader
    for path in images_of(whole):
        found, wanted = (inference_detector(one, str(path)).pred_instances for one in (model, expected))
        assert len(wanted) > 0
        for name in ("bboxes", "scores", "labels"):
            assert torch.equal(found[name], wanted[name])
        packed = trained.transform(Image.open(path))
        batch = {name: [value] for name, value in packed.items()}
        with torch.no_grad():
            own = model.test_step(batch)[0].pred_instances
        assert torch.equal(own.bboxes, wanted.bboxes)


def test_an_older_checkpoint_says_nothing_for_mmdet(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["meta"]
    torch.save(content, tmp_path / "last.ckpt")
    model = dk_bench.load(tmp_path).model
    assert model.dataset_meta == {"classes": CLASSES, "palette": "random"}
    assert model.cfg.test_dataloader == model.cfg.val_dataloader


def test_predict_finds_what_inference_detector_finds(whole, checkpoint, tmp_path, capsys):
    """Boxes, scores and classes, to the bit: an image at a time, as that takes them. Also as rows, and drawn."""
    images, detector = images_of(whole), theirs(checkpoint)
    place, drawn = str(images[0].parent), tmp_path / "drawn"
    output = tmp_path / "found.jsonl"
    arguments = ["predict", str(checkpoint), place, "--device", "cpu", "--threshold"]
    assert main([*arguments, "0", "--output", str(output), "--pictures", str(drawn)]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["file"] for answer in answers] == list(map(str, images))
    for answer, path in zip(answers, images, strict=True):
        wanted = inference_detector(detector, str(path)).pred_instances
        assert [one["box"] for one in answer["predictions"]] == wanted.bboxes.tolist()
        assert [one["score"] for one in answer["predictions"]] == wanted.scores.tolist()
        assert [one["index"] for one in answer["predictions"]] == wanted.labels.tolist()
        assert all(one["class"] == CLASSES[one["index"]] for one in answer["predictions"])
        with Image.open(path) as before, Image.open(drawn / path.name) as after:
            assert before.size == after.size == (answer["width"], answer["height"])
            assert before.tobytes() != after.tobytes()

    scores = sorted(one["score"] for answer in answers for one in answer["predictions"])
    capsys.readouterr()
    assert main([*arguments, str(scores[-5]), "--top", "3", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(rows[0]) == ["file", "class", "index", "score", "left", "top", "right", "bottom"]
    assert {row["file"] for row in rows} == set(map(str, images))
    kept = [one for answer in answers for one in answer["predictions"][:3] if one["score"] >= scores[-5]]
    for row, one in zip([row for row in rows if row["class"]], kept, strict=True):
        assert [float(row[name]) for name in ("left", "top", "right", "bottom")] == one["box"]
        assert (row["class"], float(row["score"])) == (one["class"], one["score"])


def test_boxes_of_a_batch_are_nearly_those_of_single_images(whole, checkpoint):
    trained = dk_bench.load(checkpoint)
    single, batched = (
        list(trained.predict(images_of(whole)[0].parent, threshold=0.0, top=3, batch_size=size)) for size in (1, 3)
    )
    for one, other in zip(single, batched, strict=True):
        assert one.image.name == other.image.name and one.size == other.size and len(other.predictions) == 3
        assert other.predictions[0]["score"] == pytest.approx(one.predictions[0]["score"], abs=0.05)


def _without_cfg(content):
    del content["meta"]["cfg"]


def _without_classes(content):
    del content["meta"]["dataset_meta"]


def _other_classes(content):
    content["meta"]["dataset_meta"]["classes"] = ("disc", "box")


def _no_model(content):
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("\nmodel = ", "\nmodels = ")


def _unknown_step(content):
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("PackDetInputs", "PackNothing")


def _code(content):
    content["meta"]["cfg"] += "\nimport os\nos.makedirs('ran')\n"


def _call(content):
    content["meta"]["cfg"] += "\nx = __import__('os').makedirs('ran')\n"


def _other_weights(content):
    content["state_dict"].pop("roi_head.bbox_head.fc_cls.weight")


def _unknown_type(content):
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("'FasterRCNN'", "'SlowRCNN'")


def _call_as_model(content):
    content["meta"]["cfg"] += "\nmodel = dict(type='os.makedirs', name='ran')\n"


def _call_as_part(content):
    content["meta"]["cfg"] = re.sub(r"type='\w+Assigner'", "type='subprocess.Popen'", content["meta"]["cfg"])


def _call_as_step(content):
    data = (
        "dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='dk_bench.os.makedirs', name='ran')]))"
    )
    content["meta"]["cfg"] += f"\ntest_dataloader = {data}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_call_as_model, "key 'model' has the type 'os.makedirs', expected a class that a registry of mmengine has"),
        (_call_as_part, "key 'model' has the type 'subprocess.Popen', expected a class that a registry"),
        (_call_as_step, "key 'test_dataloader.dataset.pipeline' has the type 'dk_bench.os.makedirs', expected a class"),
        (_without_cfg, "no configuration in meta.cfg, expected a detector's weights as mmdet saves them"),
        (_without_classes, "does not name its classes, expected them in meta.dataset_meta"),
        (_other_classes, "key 'model.roi_head.bbox_head.num_classes' is 3, expected 2: disc, box"),
        (_no_model, "key 'model' is missing, expected a detector's whole configuration in meta.cfg"),
        (_unknown_step, "key 'test_dataloader.dataset.pipeline' cannot be built: KeyError: 'PackNothing is not in"),
        (_code, "its configuration, meta.cfg, is more than plain values: line"),
        (_call, "its configuration, meta.cfg, is more than plain values: "),
        (_other_weights, "its weights do not fit FasterRCNN"),
        (_unknown_type, "key 'model' (SlowRCNN) cannot be built"),
    ],
)
def test_files_that_hold_no_detector(checkpoint, tmp_path, monkeypatch, change, message):
    """One sentence each; a configuration's text is read and never run."""
    monkeypatch.chdir(tmp_path)
    path = as_mmdet_saves(checkpoint, tmp_path, change)
    with pytest.raises(UserError) as error:
        dk_bench.load(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_an_image_that_the_pipeline_cannot_take(checkpoint, tmp_path, capsys):
    """A line that is resized to less than a pixel."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (3000, 1)).save(tmp_path / "images" / "line.png")
    assert main(["predict", str(checkpoint), str(tmp_path / "images"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "line.png of 3000 x 1 pixels makes no input: the test pipeline cannot take it" in error
    assert error.count("\n") == 1
    assert main(["predict", str(checkpoint), str(tmp_path / "images"), "--device", "cpu", "--skip-unreadable"]) == 1


@pytest.mark.parametrize("name", ["mmdet.FasterRCNN", "mmdet.models.FasterRCNN", "torch.nn.SmoothL1Loss", "no.module"])
def test_types_that_may_be_named(name):
    check_types({"type": "a", "parts": [{"type": name}]}, "model")


@pytest.mark.parametrize(
    "name", ["os.system", "mmdet.os.system", "torch.load", "mmengine.Config.fromfile", "os..system"]
)
def test_types_that_may_not_be_named(name):
    with pytest.raises(UserError, match=r"^key 'model' has the type"):
        check_types([None, {"type": "a", "parts": [{"type": name}]}], "model")


def test_a_folder_of_several_files_is_none(checkpoint, tmp_path):
    as_mmdet_saves(checkpoint, tmp_path).with_name("epoch_2.pth").touch()
    with pytest.raises(UserError, match=r"holds epoch_1\.pth, epoch_2\.pth; expected one, or the file's name"):
        dk_bench.load(tmp_path)
