"""COCO's average precision by torchmetrics, on ground truth as the annotation file has it.

Four things make the figures those of COCO's own evaluation. Ground truth is read from the file: what mmdet's pipeline
hands on lacks areas, and its coordinates depend on where in the pipeline it was loaded. Boxes stay (x, y, width,
height) in float64: turning corners back and forth moves an overlap across its threshold now and then. The thresholds
are given: torchmetrics' own went through float32, and a recall of 0.55 does not reach 0.55000001. Images are scored in
order of their ids, which decides between equal scores.
"""

import contextlib
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from dk_bench.data.coco import NEEDED, read_annotations
from dk_bench.errors import UserError

# Names in records -> torchmetrics' names.
OF_A_SIZE = {"mAP_s": "map_small", "mAP_m": "map_medium", "mAP_l": "map_large"}
NAMES = {"mAP": "map", "mAP_50": "map_50", "mAP_75": "map_75"} | OF_A_SIZE
MAX_DETECTIONS = [1, 10, 100]  # COCO's; average precision is of the best 100 of an image
BACKENDS = ("faster_coco_eval", "pycocotools")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()  # as COCO's own evaluation has them, to the last bit
RECALL_THRESHOLDS = np.linspace(0, 1, 101).tolist()
# torchmetrics takes an area of zero for one that is not known; COCO counts such an object as small.
SMALLEST_AREA = 1e-6
# Id of every image, those without objects included -> boxes (n, 4) float64 as x, y, width, height in pixels of the
# original image; labels (n,) int64; iscrowd (n,) int64; area (n,) float64 in square pixels.
GroundTruth = dict[int, dict[str, Tensor]]
Predictions = Mapping[int, Mapping[str, Tensor]]  # likewise, as `prediction_of` gives them


def read_truth(path: str | Path, classes: Sequence[str]) -> GroundTruth:
    """Reads what a COCO file says of its images. Labels count the file's categories that are among ``classes``, in the
    file's order, as mmdet's CocoDataset does; objects of other categories are left out.

    Raises UserError as `read_annotations` does.
    """
    held = read_annotations(path, NEEDED)
    wanted = [category for category, name in held.classes.items() if name in classes]
    label_of = {category: label for label, category in enumerate(wanted)}
    objects: dict[int, list[dict[str, Any]]] = {image: [] for image in held.images}
    for annotation in held.annotations:
        if annotation["category_id"] in label_of:
            objects[annotation["image_id"]].append(annotation)
    return {
        image: {
            "boxes": torch.tensor([a["bbox"] for a in found], dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor([label_of[a["category_id"]] for a in found], dtype=torch.int64),
            "iscrowd": torch.tensor([int(a.get("iscrowd", 0)) for a in found], dtype=torch.int64),
            "area": torch.tensor([float(a["area"]) for a in found], dtype=torch.float64).clamp(min=SMALLEST_AREA),
        }
        for image, found in objects.items()
    }


def prediction_of(sample: Any) -> tuple[int, dict[str, Tensor]]:
    """Returns image id and predictions of mmdet's DetDataSample, on the CPU.

    boxes (n, 4) float64 as x, y, width, height in pixels of the original image, to which mmdet scales them back by
    itself; scores (n,) float32; labels (n,) int64.
    """
    found = sample.pred_instances
    corners = found.bboxes.tensor if hasattr(found.bboxes, "tensor") else found.bboxes  # mmdet's box types, or a Tensor
    corners = corners.detach().cpu().double()
    return sample.img_id, {
        "boxes": torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1),
        "scores": found.scores.detach().cpu().float(),
        "labels": found.labels.detach().cpu().long(),
    }


def average_precision(predictions: Predictions, truth: GroundTruth, backend: str | None = None) -> dict[str, float]:
    """Returns mAP (IoU 0.5 to 0.95), mAP_50, mAP_75, mAP_s, mAP_m and mAP_l, 0 to 1; -1 where there is nothing to find.

    All images of the ground truth count; in one without predictions nothing was found. ``backend``: one of `BACKENDS`,
    by default the first one that is installed.

    Raises UserError for predictions of images that the ground truth does not know.
    """
    if strange := sorted(predictions.keys() - truth.keys()):
        raise UserError(f"predictions for image ids {strange[:5]}, which the annotation file does not have")
    metric = MeanAveragePrecision(
        box_format="xywh",
        iou_thresholds=IOU_THRESHOLDS,
        rec_thresholds=RECALL_THRESHOLDS,
        max_detection_thresholds=MAX_DETECTIONS,
        # faster_coco_eval gives the same figures sooner where it is installed
        backend=backend or (BACKENDS[0] if importlib.util.find_spec(BACKENDS[0]) else BACKENDS[1]),
        sync_on_compute=False,  # all predictions are here already, see `score`
    )
    metric.warn_on_many_detections = False  # detectors give more than 100; the best 100 count
    images = sorted(truth)
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.update([dict(predictions.get(image, nothing)) for image in images], [truth[i] for i in images])
    with contextlib.redirect_stdout(io.StringIO()):  # the backends talk
        figures = metric.compute()
    return {name: float(figures[theirs]) for name, theirs in NAMES.items()}


def score(
    predictions: Predictions, truth: GroundTruth, backend: str | None = None, *, of_seen: bool = False
) -> dict[str, float]:
    """Returns the figures of every process's own predictions together, in percent, the same on every process; NaN where
    there is nothing to find.

    torchmetrics' own synchronisation needs as many images on every process; this one does not, and an image that two
    processes have seen counts once. In one that none has seen nothing was found; with ``of_seen`` it does not count.
    """
    parts = [predictions]
    if dist.is_available() and dist.is_initialized():
        parts = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, predictions)
    together = {image: prediction for part in parts for image, prediction in part.items()}
    counted = {image: target for image, target in truth.items() if image in together or not of_seen}
    figures = average_precision(together, counted, backend)
    return {name: 100 * value if value >= 0 else math.nan for name, value in figures.items()}
