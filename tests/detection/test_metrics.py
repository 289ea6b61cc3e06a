"""Average precision: torchmetrics under both backends and mmdet's CocoMetric agree."""

import json
import math

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from detection_cases import CLASSES, random_predictions, write_coco
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from dk_bench.data.procedural import SHAPES
from dk_bench.detection.metrics import BACKENDS, NAMES, average_precision, prediction_of, read_truth, score
from dk_bench.detection.scene_files import write_dataset
from dk_bench.errors import UserError


def scaled(path, factors):
    """Scales every second annotation, so that small, medium and large objects are among them; returns the file."""
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        factor = factors[annotation["id"] % len(factors)]
        annotation["bbox"] = [factor * value for value in annotation["bbox"]]
        annotation["area"] *= factor**2
    content["annotations"][0]["area"] = 0  # COCO counts it as small
    path.write_text(json.dumps(content))
    return path


def by_mmdet(path, samples, monkeypatch, proposal_nums=(1, 10, 100), classes=CLASSES):
    """CocoMetric's figures before it rounds them to three places."""
    from mmdet.evaluation.metrics import coco_metric

    kept = []

    class Kept(coco_metric.COCOeval):
        def summarize(self):
            super().summarize()
            kept.append(dict(zip(NAMES, map(float, self.stats[:6]), strict=True)))

    monkeypatch.setattr(coco_metric, "COCOeval", Kept)
    metric = CocoMetric(ann_file=str(path), proposal_nums=proposal_nums)
    metric.dataset_meta = {"classes": classes}
    metric.process({}, [sample.to_dict() for sample in samples])
    rounded = metric.evaluate(len(samples))
    assert all(abs(rounded[f"coco/bbox_{name}"] - value) < 6e-4 for name, value in kept[0].items())
    return kept[0]


@pytest.mark.parametrize("seed", range(4))
def test_both_backends_and_mmdet_agree(tmp_path, monkeypatch, seed):
    path = scaled(write_coco(tmp_path, images=24, seed=seed), (1, 0.5, 6))
    samples = random_predictions(path, seed)
    expected = by_mmdet(path, samples, monkeypatch)
    assert all(0 < value < 0.99 for value in expected.values()), expected
    truth = read_truth(path, CLASSES)
    for backend in BACKENDS:
        figures = average_precision(dict(map(prediction_of, samples)), truth, backend)
        assert figures == pytest.approx(expected, abs=1e-6), backend


@pytest.mark.parametrize("seed", range(2))
def test_they_agree_on_the_procedural_data(tmp_path, monkeypatch, seed):
    """Crowds, images without objects, areas of the shapes and not of their boxes, objects of every size."""
    path = write_dataset(tmp_path / "shapes", train_images=1, val_images=60, seed=seed) / "annotations" / "val.json"
    content = json.loads(path.read_text())
    annotations, used = content["annotations"], {a["image_id"] for a in content["annotations"]}
    assert any(a["iscrowd"] for a in annotations) and len(used) < len(content["images"]) == 60
    assert all(a["area"] < 0.99 * a["bbox"][2] * a["bbox"][3] for a in annotations)
    samples = random_predictions(path, seed, classes=SHAPES)
    expected = by_mmdet(path, samples, monkeypatch, classes=SHAPES)
    assert len(expected) == 6 and all(0 < value < 0.99 for value in expected.values()), expected
    truth = read_truth(path, SHAPES)
    for backend in BACKENDS:
        figures = average_precision(dict(map(prediction_of, samples)), truth, backend)
        assert figures == pytest.approx(expected, abs=1e-6), backend


def test_more_than_100_detections_an_image(tmp_path, monkeypatch):
    """mmdet's default counts AP of 100 detections but AP50, AP75, S, M and L of 1000; COCO counts all of 100."""
    path = scaled(write_coco(tmp_path, images=10), (1, 0.5, 6))
    samples = random_predictions(path, seed=0, per_object=100, noise=0.8)
    truth = read_truth(path, CLASSES)
    expected, of_1000 = by_mmdet(path, samples, monkeypatch), by_mmdet(path, samples, monkeypatch, (100, 300, 1000))
    assert of_1000["mAP"] == expected["mAP"] and of_1000["mAP_50"] > expected["mAP_50"] + 1e-4
    for backend in BACKENDS:
        assert average_precision(dict(map(prediction_of, samples)), truth, backend) == pytest.approx(expected, abs=1e-6)


def test_images_may_come_in_any_order_twice_or_not_at_all(tmp_path, monkeypatch):
    path = write_coco(tmp_path, images=15)
    samples = random_predictions(path, seed=1)
    predictions = dict(map(prediction_of, [*reversed(samples[3:]), *samples[4:6]]))
    figures = score(predictions, read_truth(path, CLASSES))
    expected = by_mmdet(path, samples[3:], monkeypatch)
    for name, value in figures.items():
        assert value == pytest.approx(100 * expected[name], abs=1e-4) if expected[name] >= 0 else math.isnan(value)


def test_ground_truth_matters_as_the_file_has_it(tmp_path):
    """Crowds, areas and images without objects change the figures: none of them may get lost."""
    path = scaled(write_coco(tmp_path, images=24), (1, 0.5, 6))
    predictions, truth = dict(map(prediction_of, random_predictions(path, 0))), read_truth(path, CLASSES)
    right = average_precision(predictions, truth)
    content = json.loads(path.read_text())

    def figures_with(change):
        changed = json.loads(json.dumps(content))
        change(changed)
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        known = read_truth(tmp_path / "changed.json", CLASSES)
        return average_precision({i: p for i, p in predictions.items() if i in known}, known)

    def no_crowds(changed):
        for annotation in changed["annotations"]:
            annotation["iscrowd"] = 0

    def areas_of_boxes(changed):
        for annotation in changed["annotations"]:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]

    def no_empty_images(changed):
        with_objects = {annotation["image_id"] for annotation in changed["annotations"]}
        changed["images"] = [image for image in changed["images"] if image["id"] in with_objects]

    assert figures_with(lambda changed: None) == right
    assert figures_with(no_crowds)["mAP"] != right["mAP"]
    assert figures_with(areas_of_boxes)["mAP"] == right["mAP"]
    assert figures_with(areas_of_boxes)["mAP_s"] != right["mAP_s"]
    assert figures_with(no_empty_images)["mAP"] != right["mAP"]


def test_ground_truth_as_read(tmp_path):
    path = write_coco(tmp_path, images=20)
    content, truth = json.loads(path.read_text()), read_truth(path, CLASSES)
    assert truth.keys() == {image["id"] for image in content["images"]}
    assert sum(len(target["boxes"]) == 0 for target in truth.values()) == 4
    crowds = sum(int(target["iscrowd"].sum()) for target in truth.values())
    assert crowds == sum(a["iscrowd"] for a in content["annotations"]) > 0
    some = read_truth(path, CLASSES[1:])  # labels count the categories that are asked for
    assert set(torch.cat([target["labels"] for target in some.values()]).tolist()) == {0, 1}


def test_box_types_of_mmdet_are_taken():
    corners = torch.tensor([[1.0, 2.0, 11.0, 22.0]])
    found = InstanceData(bboxes=HorizontalBoxes(corners), scores=torch.ones(1), labels=torch.zeros(1))
    _, prediction = prediction_of(DetDataSample(metainfo={"img_id": 1}, pred_instances=found))
    assert prediction["boxes"].tolist() == [[1, 2, 10, 20]] and prediction["labels"].dtype == torch.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_predictions_and_nothing_to_find(tmp_path, backend):
    path = write_coco(tmp_path)
    figures = average_precision({}, read_truth(path, CLASSES), backend)
    assert figures["mAP"] == 0 and figures["mAP_l"] == -1  # no object is large
    nothing = read_truth(path, ["other"])
    assert set(average_precision({}, nothing, backend).values()) == {-1}
    assert all(math.isnan(value) for value in score({}, nothing, backend).values())


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match=r"annotation file .*none\.json cannot be read: No such file"):
        read_truth(tmp_path / "none.json", CLASSES)
    bad = tmp_path / "bad.json"
    faults = ("{", "not a JSON file"), ("[]", "found a list"), ('{"images": []}', "key 'categories' is missing")
    for text, match in faults:
        bad.write_text(text)
        with pytest.raises(UserError, match=rf"annotation file .*bad\.json: .*{match}"):
            read_truth(bad, CLASSES)
    truth = read_truth(write_coco(tmp_path), CLASSES)
    with pytest.raises(UserError, match=r"image ids \[99\], which the annotation file does not have"):
        average_precision({99: {}}, truth)
