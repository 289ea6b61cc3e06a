"""What of a trained detector other programs take: all of it as mmdet's tools read it, its feature maps as a graph."""

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import mmengine
import torch
from torch import Tensor, nn

from dk_bench.detection.mmengine_config import plain
from dk_bench.detection.mmengine_files import plain_meta
from dk_bench.detection.module import without_initial_weights
from dk_bench.detection.predicting import plain_settings
from dk_bench.detection.task import input_size
from dk_bench.errors import UserError
from dk_bench.training.graph import Graph

REGISTRY = "dk_bench.registry"  # the module by which mmengine finds what is ours
OF_THE_START = ("load_from", "resume")  # keys by which a run begins at weights, which are in what is exported
LOOPS = {"dataloader": None, "evaluator": None, "cfg": {"type": "TestLoop"}}  # of val_ and test_; None: the same
PACKAGES = ("dk_bench", "torch", "mmengine", "mmcv", "mmdet")
SIDE = 320  # pixels, of images to make a graph with, at least: in maps of a single pixel torch takes sizes for fixed


def for_mmdet(model: nn.Module, path: Path) -> tuple[dict[str, Any], str]:
    """Returns what mmdet's runner writes of a detector, weights and ``meta``, and the text of its configuration.

    Both hold plain data alone. The configuration stands by itself: it imports what is ours, reads no weights to start
    from, and tests on validation's data where it has none for that. Raises UserError that names ``path`` for one that
    cannot be written down.
    """
    settings = plain(model.cfg.to_dict())
    settings["model"] = without_initial_weights(settings["model"])
    for key in OF_THE_START:
        settings.pop(key, None)
    for part, loop in LOOPS.items():
        if settings.get(f"test_{part}") is None:
            settings[f"test_{part}"] = loop or settings[f"val_{part}"]
    imports = settings.get("custom_imports") or {"imports": [], "allow_failed_imports": False}
    if REGISTRY not in imports["imports"]:
        settings["custom_imports"] = imports | {"imports": [*imports["imports"], REGISTRY]}
    text = mmengine.Config(settings).pretty_text
    if plain_settings(text, path) != settings:
        raise UserError(f"{path}: mmengine writes its configuration down as another one")
    versions = {f"{package}_version": importlib.metadata.version(package) for package in PACKAGES}
    meta = {"cfg": text, "dataset_meta": plain_meta(model.dataset_meta), **versions}
    return {"meta": meta, "state_dict": model.state_dict()}, text


class FeatureMaps(nn.Module):
    """Computes what a detector's heads look at: images (N, 3, H, W) to a tuple of maps (N, C, H / stride, W / stride).
    It holds the parameters of backbone and neck alone."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, getattr(detector, "neck", None) or nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(images)))


@torch.no_grad()
def graph_of(model: nn.Module) -> Graph:
    """Returns the detector up to its feature maps, ``map0``, ``map1`` and on, whose heights and widths are free: test
    images have many sizes. How pixels become its input ``about`` says, in the words of mmdet's preprocessor.

    Boxes are not in it: heads of mmdet decode and suppress them in Python, and deformable RoI pooling has no ONNX form.
    """
    preprocessor, box = model.data_preprocessor, input_size(model.cfg.test_dataloader.dataset)
    divisor = int(getattr(preprocessor, "pad_size_divisor", 1))
    module, sides = FeatureMaps(model).eval(), [max(side, SIDE) for side in (box or [3, SIDE, SIDE])[1:]]
    maps = module(torch.zeros(1, 3, *(divisor * math.ceil(side / divisor) for side in sides)))
    strides = [2 ** round(math.log2(sides[0] / one.shape[2])) for one in maps]
    multiple = math.lcm(divisor, *strides)  # a pyramid's further levels have larger strides than what mmdet pads to
    height, width = (multiple * math.ceil(side / multiple) for side in sides)
    about = {
        "input_size": box,
        "mean": _numbers(preprocessor, "mean", 0.0),
        "std": _numbers(preprocessor, "std", 1.0),
        "channel_order": "RGB" if getattr(preprocessor, "_channel_conversion", False) else "BGR",
        "pixel_range": [0, 255],
        "pad_size_divisor": divisor,
        "pad_value": getattr(preprocessor, "pad_value", 0),
        "strides": strides,
    }
    names = tuple(f"map{index}" for index in range(len(maps)))
    left_out = "feature maps of backbone and neck; boxes are not in it, mmdet's heads find them in the maps"
    return Graph(module, model.extract_feat, names, (3, height, width), about, multiple, True, left_out)


def _numbers(preprocessor: nn.Module, name: str, default: float) -> list[float]:
    """Returns a number a colour."""
    held = getattr(preprocessor, name, None)
    return [default] * 3 if held is None else held.flatten().tolist()
