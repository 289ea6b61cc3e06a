"""The protocol of predictions: what a task's trained model tells of images, in plain data and in pictures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import nn

Prediction = dict[str, Any]  # class, index, how certain, and what else the task tells; plain data


class Predictor(ABC):
    """A trained model that is asked about images, on a device, to which it is moved.

    At most the ``top`` surest predictions of an image are kept, of them those that are at least as sure as
    ``threshold`` (0 to 1); None stands for the task's own number.

    Attributes:
        batch_size: how many images at once, where nobody says.
        columns: the parts of a prediction in a table.
        surest: the part that says how sure it is.
    """

    batch_size: ClassVar[int]
    columns: ClassVar[Sequence[str]]
    surest: ClassVar[str]
    least: ClassVar[float] = 0.0
    most: ClassVar[int | None] = None

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        *,
        top: int | None = None,
        threshold: float | None = None,
        device: str = "cpu",
    ) -> None:
        self.model, self.classes, self.device = model.to(device), classes, torch.device(device)
        self.top = self.most if top is None else top
        self.threshold = self.least if threshold is None else threshold

    @torch.no_grad()
    def predict(self, inputs: Sequence[Any]) -> list[list[Prediction]]:
        """Returns the predictions of each image, the surest first. ``inputs`` are what the model's transform made.

        Raises ArithmeticError where the model gives numbers that are not finite.
        """
        return [[one for one in found[: self.top] if one[self.surest] >= self.threshold] for found in self._all(inputs)]

    @abstractmethod
    def _all(self, inputs: Sequence[Any]) -> list[list[Prediction]]:
        """Returns all predictions of each image, the surest first."""

    @abstractmethod
    def draw(self, image: Image.Image, found: Sequence[Prediction]) -> Image.Image:
        """Returns the image (RGB), which may be changed, with its predictions drawn on it."""

    def row(self, one: Prediction) -> dict[str, Any]:
        """Returns a prediction by `columns`."""
        return one

    def words(self, one: Prediction) -> str:
        """Returns a prediction's class and how sure it is, as pictures say it."""
        return f"{one['class']} {100 * one[self.surest]:.0f} %"


def labeller(image: Image.Image) -> tuple[Callable[[tuple[float, float], str, Any], float], int]:
    """Returns what writes (place of the upper left corner, text, colour) on an image, in black or white on the colour,
    at a size that can be read, inside the image, and gives where the line ends below; and the width of lines that go
    with it."""
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(max(10, min(image.size) // 30))
    height = sum(font.getmetrics()) + 2

    def write(place: tuple[float, float], text: str, color: Any) -> float:
        text = " ".join(text.split())  # a name may hold line breaks
        width = pen.textlength(text, font=font) + 4
        x = max(0, min(place[0], image.width - width))
        y = max(0, min(place[1], image.height - height))
        pen.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
        red, green, blue = ImageColor.getrgb(color)[:3] if isinstance(color, str) else color
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128
        pen.text((x + 2, y + 1), text, fill="white" if dark else "black", font=font)
        return y + height

    return write, max(1, min(image.size) // 160)
