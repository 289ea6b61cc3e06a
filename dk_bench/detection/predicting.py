"""A trained detector outside of training: mmdet's model as its ``init_detector`` gives it, and its files read again."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmengine
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw
from torch import nn

import dk_bench.registry  # noqa: F401  (torch.load reads then what mmengine's runner saved)
from dk_bench.data.pixels import eight_bits
from dk_bench.detection.known_types import check_types
from dk_bench.detection.mmengine_config import quiet, use_scope
from dk_bench.detection.module import build_detector, check_num_classes
from dk_bench.detection.sheet import OBJECT, outline
from dk_bench.errors import UserError, located
from dk_bench.training.checkpoint import load_weights
from dk_bench.training.predicting import Prediction, Predictor, labeller
from dk_bench.training.weights import read_plain

EDGES = ("left", "top", "right", "bottom")  # of a box, in tables


class PipelineTransform:
    """mmdet's test pipeline from an image on: RGB -> dict of ``inputs`` (3, H, W) uint8 in the order blue, green, red,
    and ``data_samples``, as `mmdet.apis.inference_detector` makes it of a file. Raises ValueError for an image that the
    pipeline cannot take."""

    def __init__(self, cfg: mmengine.Config) -> None:
        """Raises UserError for a pipeline that cannot be built, or does not begin with an image's file."""
        key = "test_dataloader.dataset.pipeline"
        try:
            first, *rest = steps = get_test_pipeline_cfg(cfg)
            check_types(steps, key)
            if "LoadImageFromFile" not in str(first.get("type")):
                expected = "expected LoadImageFromFile, for which the image that was read can stand"
                raise UserError(f"key '{key}' begins with {first.get('type')}, {expected}")
            self._steps = Compose([{**first, "type": "mmdet.LoadImageFromNDArray"}, *rest])
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"key '{key}' cannot be built: {type(error).__name__}: {reason}") from error

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        image = image if image.mode == "RGB" else eight_bits(image.copy())
        pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        try:
            return self._steps({"img": pixels, "img_id": 0})
        except cv2.error as error:  # of a line of pixels that is resized to less than one
            raise ValueError(f"the test pipeline cannot take it: {' '.join(str(error).split())}") from error


class BoxPredictor(Predictor):
    """Tells boxes with their classes and scores, in pixels of the image, as mmdet's `inference_detector` does."""

    batch_size, least = 1, 0.3  # the threshold from which mmdet's tools draw boxes
    columns, surest = ("class", "index", "score", *EDGES), "score"

    def _all(self, inputs: Sequence[Mapping[str, Any]]) -> list[list[Prediction]]:
        samples = self.model.test_step({key: [one[key] for one in inputs] for key in inputs[0]})
        return [self._of(sample.pred_instances.cpu()) for sample in samples]

    def _of(self, found: InstanceData) -> list[Prediction]:
        if not (torch.isfinite(found.scores).all() and torch.isfinite(found.bboxes).all()):
            raise ArithmeticError("the model gives boxes or scores that are not finite")
        order = found.scores.sort(descending=True, stable=True).indices
        parts = (getattr(found, name)[order].tolist() for name in ("labels", "scores", "bboxes"))
        return [
            {"class": self.classes[index], "index": index, "score": score, "box": box}
            for index, score, box in zip(*parts, strict=True)
        ]

    def row(self, one: Prediction) -> dict[str, Any]:
        rest = dict(one)
        return dict(zip(EDGES, rest.pop("box"), strict=True)) | rest

    def draw(self, image: Image.Image, found: Sequence[Prediction]) -> Image.Image:
        """Draws boxes in their classes' colours, the surest last, so that it lies on top."""
        write, width = labeller(image)
        palette, pen = self.model.dataset_meta.get("palette"), ImageDraw.Draw(image)
        colors = dict(enumerate(palette)) if isinstance(palette, list | tuple) else {}  # else mmdet's name of some
        for one in reversed(found):
            color = tuple(colors.get(one["index"], ())) or OBJECT
            outline(pen, one["box"], color, width)
            write((one["box"][0], one["box"][1]), self.words(one), color)
        return image


def as_mmdet_has_it(
    model: nn.Module, cfg: mmengine.Config, meta: Mapping[str, Any], classes: Sequence[str]
) -> tuple[nn.Module, PipelineTransform]:
    """Gives a detector ``cfg`` and ``dataset_meta``, as mmdet's tools look for them; returns it and its transform.

    Validation's data stand for test's where the configuration has none. ``meta`` is what a file of weights says of
    ``dataset_meta``, ``classes`` are the names where it says nothing.
    """
    model, cfg = revert_sync_batchnorm(model), cfg.copy()
    if cfg.get("test_dataloader") is None:
        cfg.test_dataloader = cfg.val_dataloader
    model.cfg = cfg
    model.dataset_meta = {"classes": tuple(classes), "palette": "random", **(meta.get("dataset_meta") or {})}
    return model.eval(), PipelineTransform(cfg)


def open_file(path: Path) -> tuple[nn.Module, PipelineTransform, list[str]]:
    """Opens what mmdet's runner, its ``publish_model.py`` or our export left: weights, with the configuration and the
    classes' names in ``meta``. Raises UserError for any other file, and one whose weights do not fit.
    """
    content = read_plain(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping) or not isinstance(meta.get("cfg"), str):
        raise UserError(f"{path}: no configuration in meta.cfg, expected a detector's weights as mmdet saves them")
    cfg = mmengine.Config(plain_settings(meta["cfg"], path))
    held = meta.get("dataset_meta")
    known = {str(name).lower(): value for name, value in held.items()} if isinstance(held, Mapping) else {}
    classes = known.get("classes")
    if not isinstance(classes, list | tuple) or not classes:
        raise UserError(f"{path}: does not name its classes, expected them in meta.dataset_meta")
    with located(path):
        images = "val_dataloader" if cfg.get("test_dataloader") is None else "test_dataloader"
        if missing := [key for key in ("model", images) if not isinstance(cfg.get(key), Mapping)]:
            raise UserError(f"key '{missing[0]}' is missing, expected a detector's whole configuration in meta.cfg")
        use_scope(cfg)
        with quiet():
            model = build_detector(cfg, initial_weights=False)
        check_num_classes(model, classes)
    load_weights(model, content, path)
    with located(path):
        return *as_mmdet_has_it(model, cfg, {"dataset_meta": known}, classes), list(classes)


def plain_settings(text: str, path: Path) -> dict[str, Any]:
    """Reads a configuration's text, lines of ``key = value``, in which nothing runs: mmengine would execute it.

    Raises UserError that names ``path`` for anything but literals and ``dict(...)`` of them.
    """
    try:
        return dict(_setting(statement) for statement in ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its configuration, meta.cfg, is more than plain values: {error}") from error


def _setting(statement: ast.stmt) -> tuple[str, Any]:
    match _Dicts().visit(statement):
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(value)
    raise ValueError(f"line {statement.lineno}")


class _Dicts(ast.NodeTransformer):
    """Writes ``dict(a=1)`` and ``dict({...})`` as ``{...}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802  (ast's own name)
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(each.arg for each in keywords):
                return ast.Dict([ast.Constant(each.arg) for each in keywords], [each.value for each in keywords])
            case ast.Call(func=ast.Name(id="dict"), args=[ast.Dict() as held], keywords=[]):
                return held
        return node
