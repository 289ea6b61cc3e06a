"""What of a trained classifier other programs take: all of it as a graph, and its weights as a detector's backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from dk_bench.config import config_from_dict
from dk_bench.errors import UserError
from dk_bench.models import KernelSpec
from dk_bench.training.graph import Graph

STRIDE = 32  # of the last feature maps of most networks


def graph_of(model: nn.Module, checkpoint: Mapping[str, Any] | None) -> Graph:
    """Returns images to logits (N, classes), at the size of the run's evaluation, whose pixels ``about`` describes by
    timm's words: of a model of an export, ``pretrained_cfg`` says them."""
    if checkpoint is None:
        settings = resolve_data_config(model=model)
    else:
        data = config_from_dict(checkpoint["hyper_parameters"]["config"]).data
        settings = {"input_size": (3, data.size, data.size), "interpolation": "bilinear", "crop_pct": data.crop_pct}
        settings |= {"crop_mode": "center", "mean": data.mean, "std": data.std}
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    about = {name: settings[name] for name in names} | {"channel_order": "RGB", "pixel_range": [0, 1]}
    multiple = max((int(info["reduction"]) for info in getattr(model, "feature_info", ())), default=STRIDE)
    return Graph(model, model, ("logits",), tuple(settings["input_size"]), about, multiple)


def refuse_mmdet(model: nn.Module, path: Path) -> None:
    """Raises UserError with the line of an mmdet configuration that begins a detector with a classifier's weights."""
    made_with = dict(getattr(model, "_model_args", {}))
    made_with.pop("num_classes", None)
    arguments = {"model_name": made_with.pop("base", None) or model.pretrained_cfg["architecture"], **made_with}
    if spec := made_with.get("spec"):
        arguments["spec"] = KernelSpec.from_dict(spec).changed()
    words = ", ".join(f"{key}={value!r}" for key, value in (arguments | {"checkpoint": str(path)}).items())
    raise UserError(
        f"--format mmdet: {path} holds a classifier, which is no model of mmdet's; a detector starts from its weights "
        f"where the configuration has backbone=dict(type='dk_bench.TimmBackbone', {words})"
    )
