"""A trained classifier outside of training: its pixels, and what timm's ``save_for_hf`` wrote read again."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from dk_bench.config import DataConfig
from dk_bench.data.pixels import eight_bits
from dk_bench.data.transforms import EvalTransform
from dk_bench.errors import UserError
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

    Raises UserError where timm cannot make the model of it.
    """
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: timm makes no model of what is in it: {reason}") from error
    return model, transform_of(model, folder), _classes(folder, model)


def transform_of(model: nn.Module, source: object) -> Callable[[Image.Image], Tensor]:
    """Returns what makes a timm model's input, by its ``pretrained_cfg``: our own transform, which timm's agrees with
    but for single grey levels, where it is a bilinear resize and the centre of a square, and timm's for all else.

    Raises UserError that names ``source`` for a model of other images than of three colours.
    """
    settings = resolve_data_config(model=model)
    channels, height, width = settings["input_size"]
    if channels != 3:
        raise UserError(f"{source}: a model of images of {channels} channels, expected 3: red, green and blue")
    same = (settings["interpolation"], settings["crop_mode"], height) == ("bilinear", "center", width)
    if not same or settings["crop_pct"] > 1:
        return create_transform(**settings)
    mean, std = (list(map(float, settings[key])) for key in ("mean", "std"))
    return ImageTransform(DataConfig(size=height, crop_pct=settings["crop_pct"], mean=mean, std=std))


def _classes(folder: Path, model: nn.Module) -> list[str]:
    """Returns the names that the folder holds; without them ImageNet's, where the number says so, or numbers."""
    content: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = content.get("label_names") or (content.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(names, Mapping):  # with gaps
        return [str(names.get(str(index), index)) for index in range(model.num_classes)]
    if names:
        return list(map(str, names))
    if subset := infer_imagenet_subset(model):
        info = ImageNetInfo(subset)
        return [info.index_to_description(index) for index in range(model.num_classes)]
    return list(map(str, range(model.num_classes)))
