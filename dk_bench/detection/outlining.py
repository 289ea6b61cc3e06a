"""What a plan asks of a detector's configuration: how many images, and what training does for one of them."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmengine.config import Config as MMConfig
from torch import Tensor, nn

from dk_bench.data.known_sizes import KNOWN_SIZES
from dk_bench.detection.hook_names import hooks_of
from dk_bench.detection.image_counts import count_images, scene_settings
from dk_bench.detection.mmengine_config import DetectionConfig, quiet, use_scope
from dk_bench.detection.module import build_detector
from dk_bench.detection.scenes import NATIVE_SIZE
from dk_bench.detection.task import input_size
from dk_bench.models.workload import Workload, count_workload
from dk_bench.training.outline import Outline, copies_kept

BESIDE = "Of detectors, making proposals, matching and suppressing them is not counted."
WITHOUT_HEADS = "Of detectors whose heads cannot be counted apart, only backbone and neck are."
#: Parts of detectors, and of their heads of regions, that are counted or have nothing to count.
COUNTED = ("data_preprocessor", "backbone", "neck", "rpn_head", "bbox_head", "roi_head")
COUNTED_OF_REGIONS = ("bbox_roi_extractor", "bbox_head", "mask_roi_extractor", "mask_head")
MASK_SIDE = 14  # pixels of an object's features, from which a mask is made
SIZE = [3, 800, 1333]  # mmdet's usual one, for pipelines that name none


def outline_of(config: DetectionConfig, backbone: str) -> Outline:
    """Returns the outline of a configuration; nothing is opened."""
    cfg, loop = config.cfg, config.loop
    averaged = any(hooks_of(cfg, {"EMAHook"}))
    name = cfg.get("data_name") or ""
    known, scenes = KNOWN_SIZES.get(name), scene_settings(cfg.train_dataloader.dataset)
    images = {split: count_images(cfg[f"{split}_dataloader"].dataset, split, known) for split in ("train", "val")}
    side = None if scenes is None else scenes.get("size", NATIVE_SIZE)
    return Outline(
        model=backbone,
        timed_as=None,  # records have the speeds of classifiers
        base=None,
        data=name or "detection",
        images=images,
        classes=known and known.classes,
        input_size=tuple(input_size(cfg.val_dataloader.dataset) or SIZE),
        batch=cfg.train_dataloader.get("batch_size", 1),
        per_device=True,
        epochs=loop.epochs,
        evaluations=sum(map(loop.validates_after, range(loop.epochs))),
        precision=config.run.trainer.precision,
        copies=copies_kept(str(cfg.optim_wrapper.get("optimizer", {}).get("type", "SGD")), averaged=averaged),
        pixels=(side, side) if side else known and known.pixels,
        iterations=loop.length if loop.by_iterations else None,
    )


def workload_of(cfg: MMConfig, outline: Outline) -> Workload:
    """Counts what training does for one image: backbone, neck and heads, on as many regions as are sampled of it;
    without heads that take something else than the neck gives. Raises UserError for a detector that cannot be built."""
    use_scope(cfg)
    with torch.device("meta"), quiet():
        detector = build_detector(cfg, initial_weights=False).train()

    try:
        counted, note = count_workload(detector, partial(_call, detector), outline.input_size), BESIDE
    except (AttributeError, TypeError, KeyError, NotImplementedError, RuntimeError):
        counted, note = count_workload(detector, detector.extract_feat, outline.input_size), WITHOUT_HEADS
    return replace(counted, note=note)


def _call(detector: nn.Module, images: Tensor) -> list[Any]:
    _check_parts(detector, COUNTED)
    features = detector.extract_feat(images)
    heads = [getattr(detector, name, None) for name in ("rpn_head", "bbox_head")]
    return [[head(features) for head in heads if head is not None], _of_regions(detector, len(images))]


def _check_parts(module: nn.Module, counted: tuple[str, ...]) -> None:
    """Raises NotImplementedError for weights in a part that is not counted, such as another kind of head."""
    for name, part in module.named_children():
        if name not in counted and any(True for _ in part.parameters()):
            raise NotImplementedError(f"{type(module).__name__}.{name}")


def _of_regions(detector: nn.Module, images: int) -> list[Any]:
    """Runs the heads of regions on as many as training samples of each image."""
    roi_head = getattr(detector, "roi_head", None)
    if roi_head is None:
        return []
    _check_parts(roi_head, COUNTED_OF_REGIONS)
    sampler = _first(detector.train_cfg["rcnn"])["sampler"]
    results = []
    for head in _all(getattr(roi_head, "bbox_head", None)):
        results.append(head(_regions(roi_head.bbox_roi_extractor, images * sampler["num"], _side(head))))
    for head in _all(getattr(roi_head, "mask_head", None)):
        objects = max(1, round(images * sampler["num"] * sampler.get("pos_fraction", 0.25)))
        extractor = roi_head.mask_roi_extractor or roi_head.bbox_roi_extractor
        results.append(head(_regions(extractor, objects, MASK_SIDE)))
    return results


def _regions(extractor: nn.Module, count: int, side: int) -> Tensor:
    return torch.empty(count, _first(extractor).out_channels, side, side, device="meta")


def _side(head: nn.Module) -> int:
    side = getattr(head, "roi_feat_size", 7)
    return side if isinstance(side, int) else side[0]


def _all(heads: nn.Module | None) -> Iterable[nn.Module]:
    """Returns the heads of all stages, the only one, or none."""
    return heads if isinstance(heads, nn.ModuleList) else [] if heads is None else [heads]


def _first(several: Any) -> Any:
    """Returns the first of several stages' things, or the only one."""
    return several[0] if isinstance(several, list | tuple | nn.ModuleList) else several
