"""A tiny COCO data set and a tiny detector, shared by the tests of detection."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "box", "bar")


def write_coco(folder, split="val", images=12, size=64, seed=0, suffix="png"):
    """Random coloured boxes: with crowds, images without objects, areas that are not the boxes'.

    Returns the annotation file. Category ids have gaps and image ids do not come in order, as in COCO.
    """
    random = np.random.default_rng([seed, len(split)])
    place = folder / split
    place.mkdir(parents=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * index + 2, "name": name} for index, name in enumerate(CLASSES)],
    }
    for number in range(images):
        identifier = (7 * number) % images + 1
        height, width = size, size + 8 * (number % 3)
        pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        name = f"{number:03d}.{suffix}"
        content["images"].append({"id": identifier, "file_name": name, "height": height, "width": width})
        for _ in range(0 if number % 5 == 3 else random.integers(1, 5)):
            label = int(random.integers(len(CLASSES)))
            w, h = random.uniform(0.12, 0.8, 2) * size
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            pixels[int(y) : int(y + h), int(x) : int(x + w), label] += 150
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": identifier,
                    "category_id": 3 * label + 2,
                    "bbox": [x, y, w, h],
                    "area": w * h * random.uniform(0.3, 0.9),
                    "iscrowd": int(random.random() < 0.15),
                }
            )
        Image.fromarray(pixels).save(place / name)
    path = folder / f"{split}.json"
    path.write_text(json.dumps(content))
    return path


def tiny_detection(folder, *overrides, suffix="png"):
    """A configuration of detection_config.py on data of its own below ``folder``, which are made once."""
    from dk_bench.detection.mmengine_config import load_detection_config

    return load_detection_config(tiny_file(folder, suffix=suffix), [f"output={folder / 'runs'}", *overrides])


def tiny_file(folder, suffix="png"):
    """The configuration's file, ``tiny.py``, and its data."""
    data, path = folder / "tiny_data", folder / "tiny.py"
    if not data.exists():
        data.mkdir()
        write_coco(data, "train", images=12, suffix=suffix)  # ten of them with objects: five steps an epoch
        write_coco(data, "val", images=6, suffix=suffix)
        text = Path(__file__).with_name("detection_config.py").read_text()
        path.write_text(f"DATA = {str(data)!r}\n{text}")
    return path


def edit(path, change):
    """Changes what an annotation file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def random_predictions(path, seed, per_object=4, noise=0.12, classes=CLASSES):
    """Ground truth moved about, some with another label, and boxes of nothing; equal scores across images.

    DetDataSamples, one an image of the annotation file.
    """
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    from dk_bench.detection.metrics import read_truth

    random = torch.Generator().manual_seed(seed)
    samples = []
    for identifier, target in read_truth(path, classes).items():
        boxes = target["boxes"].repeat(per_object, 1)
        extra = torch.rand(9, 4, generator=random, dtype=torch.float64) * 60 + 1
        boxes = torch.cat([boxes, extra])
        boxes = boxes + noise * boxes[:, 2:].repeat(1, 2) * torch.randn(boxes.shape, generator=random)
        boxes[:, 2:] = boxes[:, 2:].clamp(min=1)
        labels = torch.cat([target["labels"].repeat(per_object), torch.randint(len(classes), (9,), generator=random)])
        scores = torch.randint(1, 40, (len(boxes),), generator=random) / 40
        found = InstanceData(
            bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).float(), scores=scores, labels=labels
        )
        samples.append(DetDataSample(metainfo={"img_id": identifier, "ori_shape": (64, 64)}, pred_instances=found))
    return samples
