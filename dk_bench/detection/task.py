"""The task of detection: any detector of mmdet, on data in COCO's format. Configurations are mmengine's."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dk_bench.classification.timm_models import kernel_spec
from dk_bench.config import ModelConfig
from dk_bench.detection import mmengine_config
from dk_bench.training.task import Task

if TYPE_CHECKING:
    from PIL import Image

    from dk_bench.detection.data import DetectionData
    from dk_bench.detection.module import LitDetector
    from dk_bench.detection.predicting import BoxPredictor
    from dk_bench.models.workload import Workload
    from dk_bench.training.graph import Graph
    from dk_bench.training.outline import Outline


class Detection(Task):
    """Training as mmdet's runner does it, scored by COCO's average precision."""

    name = "detection"
    metrics = ("val/mAP", "val/mAP_50", "val/mAP_75", "val/mAP_s", "val/mAP_m", "val/mAP_l")

    read, parse = staticmethod(mmengine_config.load_detection_config), staticmethod(mmengine_config.config_from_values)

    def __init__(self, config: mmengine_config.DetectionConfig) -> None:
        super().__init__(config, config.run, config.to_dict(), config.loop.epochs)

    def data(self, *, once: bool = False) -> "DetectionData":
        from dk_bench.detection.data import DetectionData

        return DetectionData(self.config)

    def module(self, classes: list[str], run_id: str = "", *, initial_weights: bool = True) -> "LitDetector":
        from dk_bench.detection.module import LitDetector

        return LitDetector(self.values, classes, run_id, initial_weights=initial_weights)

    def trainer_options(self) -> dict[str, Any]:
        unused = self.config.cfg.get("find_unused_parameters")
        return {"strategy": "ddp_find_unused_parameters_true"} if unused else {}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Silences mmengine, and the warning of modules that mmdet keeps in evaluation mode in training."""
        with mmengine_config.quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            # Of schedules that go on after every batch where gradients are accumulated, as mmengine's do.
            warnings.filterwarnings("ignore", message="Detected call of `scheduler.step")
            yield

    def images_in(self, batch: dict[str, Any]) -> int:
        return len(batch["inputs"])

    def describe_model(self, classes: list[str]) -> dict[str, Any]:
        """Names the backbone, by its timm name or mmdet's type, what deforms it, and the detector around it."""
        cfg = self.config.cfg
        backbone = cfg.model.get("backbone") or {}
        name = backbone.get("model_name") or f"{backbone.get('type')}{backbone.get('depth') or ''}"
        given = backbone.get("spec")
        spec = kernel_spec(ModelConfig(name, dict(given) if given else None))
        return {
            "name": name,
            "detector": str(cfg.model.type).rpartition(".")[2],
            "spec": spec.to_dict() if spec else None,
            "input_size": input_size(cfg.val_dataloader.dataset),
        }

    def count(self, model: nn.Module, input_size: tuple[int, ...]) -> dict[str, Any]:
        """Counts the backbone alone: what follows it does more or less work as the image has it."""
        backbone = super().count(model.backbone, input_size)
        note = "multiply-adds depend on the image; the backbone's alone are counted"
        return {"note": note} | {f"backbone_{name}": value for name, value in backbone.items()}

    def place(self, epoch: int) -> dict[str, int]:
        """Tells also the iteration, of a loop of iterations, whose epochs end where it validates."""
        loop = self.config.loop
        return super().place(epoch) | ({"iteration": loop.ends[epoch]} if loop.by_iterations else {})

    def epoch_line(self, figures: Mapping[str, float | None], classes: int) -> str:
        of_iterations = f"iteration {figures['iteration']}  " if "iteration" in figures else ""
        return of_iterations + super().epoch_line(figures, classes)

    def summary(self, figures: Mapping[str, float | None], classes: int, split: str = "val") -> str:
        """Returns the figures, each with its name; n/a for one that there is not."""
        parts = []
        for name in self.metrics:
            value = figures.get(name)
            shown = "n/a" if value is None or math.isnan(value) else f"{value:.1f}"
            parts.append(f"{name.removeprefix('val/').replace('mAP_', 'AP_')} {shown}")
        return "  ".join(parts)

    def for_use(
        self, model: nn.Module, checkpoint: Mapping[str, Any]
    ) -> "tuple[nn.Module, Callable[[Image.Image], dict[str, Any]]]":
        from dk_bench.detection.predicting import as_mmdet_has_it

        classes = checkpoint["hyper_parameters"]["classes"]
        return as_mmdet_has_it(model, self.config.cfg, checkpoint.get("meta") or {}, classes)

    @classmethod
    def open_export(cls, path: Path) -> "tuple[nn.Module, Callable[[Image.Image], dict[str, Any]], list[str]]":
        from dk_bench.detection.predicting import open_file

        return open_file(path)

    @classmethod
    def predictor(cls) -> "type[BoxPredictor]":
        from dk_bench.detection.predicting import BoxPredictor

        return BoxPredictor

    @classmethod
    def graph(cls, model: nn.Module, checkpoint: Mapping[str, Any] | None) -> "Graph":
        from dk_bench.detection.exporting import graph_of

        return graph_of(model)

    @classmethod
    def for_mmdet(cls, model: nn.Module, path: Path) -> tuple[dict[str, Any], str]:
        from dk_bench.detection.exporting import for_mmdet

        return for_mmdet(model, path)

    def outline(self) -> "Outline":
        from dk_bench.detection.outlining import outline_of

        return outline_of(self.config, self.describe_model([])["name"])

    def workload(self, outline: "Outline", *, rigid: bool = False) -> "Workload":
        from dk_bench.detection.outlining import workload_of

        return workload_of(self.config.cfg, outline)

    def sheet(self, rows: int, split: str = "train") -> "Image.Image":
        from dk_bench.detection.sheet import sheet

        self.check_split(split)
        return sheet(self.config, rows)


def input_size(dataset: Any) -> list[int] | None:
    """Returns [3, height, width] of the box that validation images are scaled to fit; None where there is no size."""
    for step in dataset.get("pipeline") or ():
        scale = step.get("scale") or step.get("img_scale")
        if scale is not None and "Resize" in str(step.get("type")):
            width, height = (scale, scale) if isinstance(scale, int) else scale
            return [3, int(height), int(width)]
    return None
