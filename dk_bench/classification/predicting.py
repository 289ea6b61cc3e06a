"""A trained classifier outside of training: its pixels, and what timm's ``save_for_hf`` wrote read again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from dk_bench.config import DataConfig
from dk_bench.data.pixels import eight_bits
from dk_bench.data.transforms import EvalTransform
from dk_bench.errors import UserError
from dk_bench.files import read_json
from dk_bench.training.predicting import Prediction, Predictor, labeller

SHOWN, COLOR = 3, "yellow"  # of classes on a picture


class ImageTransform:
    """The evaluation transform of a configuration, of an image: RGB -> (3, size, size) float32."""

    def __init__(self, config: DataConfig) -> None:
        self._of_batches = EvalTransform(config)

    def __call__(self, image: Image.Image) -> Tensor:
        image = image if image.mode == "RGB" else eight_bits(image.copy())
        return self._of_batches([torch.from_numpy(np.array(image)[None]).permute(0, 3, 1, 2)])[0]


class ClassPredictor(Predictor):
    """Tells classes with their probabilities, the softmax of the model's outputs."""

    batch_size, most = 32, 5
    columns, surest = ("class", "index", "probability"), "probability"

    def _all(self, inputs: Sequence[Tensor]) -> list[list[Prediction]]:
        images = torch.stack(list(inputs)).to(self.device, memory_format=torch.channels_last)
        logits = self.model(images).float().cpu()
        if not torch.isfinite(logits).all():
            raise ArithmeticError("the model gives outputs that are not finite")
        # By the logits: probabilities may be equal where these are not.
        order, probabilities = logits.sort(dim=1, descending=True, stable=True).indices, logits.softmax(dim=1)
        return [
            [{"class": self.classes[index], "index": index, "probability": shares[index]} for index in indices]
            for indices, shares in zip(order.tolist(), probabilities.tolist(), strict=True)
        ]

    def draw(self, image: Image.Image, found: Sequence[Prediction]) -> Image.Image:
        """Writes the surest classes into the upper left corner, one below the other."""
        write, _ = labeller(image)
        top = 0
        for one in found[:SHOWN]:
            top = write((0, top), self.words(one), COLOR)
        return image


def open_folder(folder: Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor], list[str]]:
    """Opens a folder in the layout of timm's hub: the model with its weights, its transform, the classes' names.

    Raises UserError where timm cannot make the model of it, or makes one of other classes or colours.
    """
    described = read_json(folder / "config.json")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        settings = resolve_data_config(model=model)
        classes = _classes(described, model)
        _check(model, settings, classes, folder)
        transform = as_ours(settings) or create_transform(**settings)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a description that timm did not write makes timm raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: timm makes no model of what is in it: {reason or type(error).__name__}") from error
    return model, transform, classes


def _check(model: nn.Module, settings: Mapping[str, Any], classes: Sequence[str], folder: Path) -> None:
    """Raises UserError for a model that tells nothing apart, of which timm left the classifier random as the weights
    are of another number of classes, whose names are not as many, or of other images than of three colours."""
    held = model.pretrained_cfg.get("num_classes")
    if not model.num_classes or held != model.num_classes:
        raise UserError(f"{folder}: weights of {held} classes, config.json says {model.num_classes}")
    if len(classes) != model.num_classes:
        raise UserError(f"{folder}: names of {len(classes)} classes, expected {model.num_classes}")
    channels, mean, std = settings["input_size"][0], settings["mean"], settings["std"]
    if channels != 3:
        raise UserError(f"{folder}: a model of images of {channels} channels, expected 3: red, green and blue")
    if not len(mean) == len(std) == 3 or min(std) <= 0:
        raise UserError(f"{folder}: mean {mean} and std {std}, expected three numbers each, of std above 0")


def as_ours(settings: Mapping[str, Any]) -> ImageTransform | None:
    """Returns our own transform where timm's settings describe what it does, a bilinear resize and the centre of a
    square. timm's agrees with it but for single grey levels."""
    _, height, width = settings["input_size"]
    same = (settings["interpolation"], settings["crop_mode"], height) == ("bilinear", "center", width)
    if not same or settings["crop_pct"] > 1:
        return None
    mean, std = (list(map(float, settings[key])) for key in ("mean", "std"))
    return ImageTransform(DataConfig(size=height, crop_pct=settings["crop_pct"], mean=mean, std=std))


def _classes(described: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Returns the names that the folder holds; without them ImageNet's, where the number says so, or numbers."""
    names = described.get("label_names") or (described.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(names, Mapping):  # with gaps
        return [str(names.get(str(index), index)) for index in range(model.num_classes)]
    if names:
        return list(map(str, names))
    if subset := infer_imagenet_subset(model):
        info = ImageNetInfo(subset)
        return [info.index_to_description(index) for index in range(model.num_classes)]
    return list(map(str, range(model.num_classes)))
