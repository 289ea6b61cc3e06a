"""The task of classification: a timm model, deformed or not, on images of classes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dk_bench.config import Config, config_from_dict, load_config, to_dict
from dk_bench.data.shifts import TEST, held_out_sets
from dk_bench.errors import UserError
from dk_bench.training.task import Task, some_of

if TYPE_CHECKING:
    from PIL import Image
    from pytorch_lightning.callbacks import Callback
    from torch import Tensor, nn

    from dk_bench.classification.data import ClassificationData
    from dk_bench.classification.module import LitClassifier
    from dk_bench.classification.predicting import ClassPredictor
    from dk_bench.models.workload import Workload
    from dk_bench.training.graph import Graph
    from dk_bench.training.outline import Outline

DECODED = "decoded"  # folder of decoded images, beside those of the runs


class Classification(Task):
    """Training by the paper's recipe or one of timm's, on procedural images or any that timm reads."""

    name = "classification"
    metrics = ("val/loss", "val/top1", "val/top5")

    read, parse = staticmethod(load_config), staticmethod(config_from_dict)

    def __init__(self, config: Config) -> None:
        super().__init__(config, config, to_dict(config), config.optim.epochs, held_out_sets(config.data))

    def data(self, *, once: bool = False) -> "ClassificationData":
        from dk_bench.classification.data import ClassificationData

        cache = "off" if once else Path(self.config.output, DECODED)
        return ClassificationData(self.config.data, self.config.seed, cache=cache)

    def module(self, classes: list[str], run_id: str = "", *, initial_weights: bool = True) -> "LitClassifier":
        from dk_bench.classification.module import LitClassifier

        return LitClassifier(self.values, classes, run_id=run_id, initial_weights=initial_weights)

    def callbacks(self, *, logged: bool) -> "list[Callback]":
        from pytorch_lightning.callbacks import LearningRateMonitor

        from dk_bench.classification.averaging import weight_averaging

        averaging = weight_averaging(self.config.ema)
        monitor = LearningRateMonitor(logging_interval="step") if logged else None
        return [callback for callback in (averaging, monitor) if callback is not None]

    def trainer_options(self) -> dict[str, Any]:
        clip = self.config.trainer
        if clip.gradient_clip_val is None or clip.gradient_clip_algorithm == "agc":  # which the module does
            return {}
        return {"gradient_clip_val": clip.gradient_clip_val, "gradient_clip_algorithm": clip.gradient_clip_algorithm}

    def describe_model(self, classes: list[str]) -> dict[str, Any]:
        from dk_bench.classification.timm_models import kernel_spec

        spec, side = kernel_spec(self.config.model), self.config.data.size
        return {
            "name": self.config.model.name,
            "num_classes": len(classes),
            "input_size": [3, side, side],
            "spec": spec.to_dict() if spec else None,
        }

    def summary(self, figures: Mapping[str, float | None], classes: int, split: str = "val") -> str:
        """Returns top-1 and top-5 in percent; of five classes or fewer every top-5 is right."""
        top5 = f"  top-5 {figures[f'{split}/top5']:.2f} %" if classes > 5 else ""
        return f"top-1 {figures[f'{split}/top1']:.2f} %{top5}"

    def epoch_line(self, figures: Mapping[str, float | None], classes: int) -> str:
        top5 = f"  top-5 {figures['val/top5']:.1f} %" if classes > 5 else ""
        losses = f"loss {figures['train/loss']:.3f}  val loss {figures['val/loss']:.3f}"
        return f"{losses}  top-1 {figures['val/top1']:.1f} %{top5}"

    def details(self, figures: Mapping[str, float | None], classes: int, split: str = "val") -> str:
        return f"{self.summary(figures, classes, split)}  loss {figures[f'{split}/loss']:.4f}"

    def check_split(self, split: str) -> None:
        if split == TEST and not self.tests:
            keys = {"timm": "data.test=PLACE", "procedural": "data.procedural.test_images=N"}
            expected = keys.get(source := self.config.data.source, f"no test with 'data.source' {source!r}")
            raise UserError(f"there are no test images: expected {expected}")

    def check_checkpoint(self, checkpoint: Mapping[str, Any], classes: list[str], path: str | Path) -> None:
        held, name = checkpoint["hyper_parameters"], self.config.model.name
        if (held_name := held["config"]["model"].get("name")) != name:
            then, now = (f"{len(names)} classes" for names in (held["classes"], classes))
            raise UserError(f"{path}: checkpoint of {held_name} with {then}, expected {name} with {now}")
        super().check_checkpoint(checkpoint, classes, path)

    def for_use(
        self, model: "nn.Module", checkpoint: Mapping[str, Any]
    ) -> "tuple[nn.Module, Callable[[Image.Image], Tensor]]":
        from dk_bench.classification.predicting import ImageTransform

        return model, ImageTransform(self.config.data)

    @classmethod
    def open_export(cls, path: Path) -> "tuple[nn.Module, Callable[[Image.Image], Tensor], list[str]]":
        from dk_bench.classification.predicting import open_folder

        return open_folder(path.parent)

    @classmethod
    def predictor(cls) -> "type[ClassPredictor]":
        from dk_bench.classification.predicting import ClassPredictor

        return ClassPredictor

    @classmethod
    def graph(cls, model: "nn.Module", checkpoint: Mapping[str, Any] | None) -> "Graph":
        from dk_bench.classification.exporting import graph_of

        return graph_of(model, checkpoint)

    @classmethod
    def for_mmdet(cls, model: "nn.Module", path: Path) -> NoReturn:
        from dk_bench.classification.exporting import refuse_mmdet

        refuse_mmdet(model, path)

    def outline(self) -> "Outline":
        from dk_bench.classification.outlining import outline_of

        return outline_of(self.config)

    def workload(self, outline: "Outline", *, rigid: bool = False) -> "Workload":
        from dk_bench.classification.outlining import workload_of

        return workload_of(self.config, outline, rigid)

    def sheet(self, rows: int, split: str = "train") -> "Image.Image":
        from dk_bench.data.procedural import sheet
        from dk_bench.data.sources import open_images

        data = self.config.data
        if data.source != "procedural":
            raise UserError(f"key 'data.source' is {data.source!r}, expected procedural: there is nothing else to draw")
        if split != "train":
            self.check_split(split)
        sets = [open_images(data, name) for name in (["train"] if split == "train" else self.tests)]
        held = min(map(len, sets)) // len(sets[0].classes)  # of every class
        if not held:
            raise UserError(
                f"there are {min(map(len, sets))} images, expected one of each of {some_of(sets[0].classes)}"
            )
        return sheet(sets, min(rows, held), () if split == "train" else self.tests)
