"""Effective receptive fields: the gradient of one output unit to the input image (Gao et al., ICLR 2020, section 3.1;
Luo et al., NeurIPS 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from dk_bench.analysis.field import Measures, measure
from dk_bench.models.probe import evaluating
from dk_bench.nn.offsets import OffsetGenerator

__all__ = ["Field", "fixed_offsets", "layer_output", "receptive_field", "unit_gradient"]

Position = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """The field of one unit, over images.

    Attributes:
        signed: (H, W), mean over images of the gradient's sum over the image's channels.
        absolute: (H, W), mean over images of the sum of magnitudes over the image's channels.
        centre: (y, x) of the unit in the image, in pixels.
        measures: of each image's own absolute field.
    """

    signed: np.ndarray
    absolute: np.ndarray
    centre: tuple[float, float]
    measures: tuple[Measures, ...]

    def interval(self, name: str) -> tuple[float, float]:
        """Mean of a measure over the images and half of its 95 % interval (Student's t); NaN for one image."""
        values = [getattr(each, name) for each in self.measures]
        count = len(values)
        if count < 2:
            return float(values[0]), float("nan")
        return float(np.mean(values)), float(stats.t.ppf(0.975, count - 1) * stats.sem(values))


def receptive_field(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    layer: str | None = None,
    position: Position | Callable[[int], tuple[float, float]] | None = None,
    through_offsets: bool = True,
) -> Field:
    """The effective receptive field of a layer's unit, over images.

    A unit is a place of the layer's map: the sum of its channels.

    Args:
        model: takes (N, C, H, W); runs in evaluation mode and keeps its own.
        images: tensors (C, H, W) of one shape, normalised as the model expects.
        layer: name of a module whose output is (N, C, h, w); None: what ``forward_features`` gives (any timm model).
        position: (row, column) on the layer's map; or, by the image's index, (y, x) in its pixels; None: the middle.
        through_offsets: also count what an image changes by moving taps, as the derivative does; False holds the
            offsets fixed, as the paper's equations do.

    Raises:
        ValueError: no images, or of several shapes; no such layer or it has no map; position outside the map; a field
            of zeros (the unit does not see the image).
    """
    signed, absolute, measures, centre = 0.0, 0.0, [], None
    for index, image in enumerate(images):
        where = position(index) if callable(position) else position
        gradient, centre = unit_gradient(
            model, image, layer=layer, position=where, in_pixels=callable(position), through_offsets=through_offsets
        )
        if isinstance(absolute, np.ndarray) and absolute.shape != gradient.shape[1:]:
            raise ValueError(f"images: expected one shape, got {absolute.shape} and {gradient.shape[1:]}")
        own = np.abs(gradient).sum(0)
        measures.append(measure(own, centre))
        signed, absolute = signed + gradient.sum(0), absolute + own
    if centre is None:
        raise ValueError("images: expected at least one, got none")
    return Field(signed / len(measures), absolute / len(measures), centre, tuple(measures))


def unit_gradient(
    model: nn.Module,
    image: Tensor,
    *,
    layer: str | None = None,
    position: tuple[float, float] | None = None,
    in_pixels: bool = False,
    through_offsets: bool = True,
) -> tuple[np.ndarray, tuple[float, float]]:
    """The gradient of one unit to one image (C, H, W), in float64 numpy, and the unit's place (y, x) in pixels.

    Arguments and errors are those of :func:`receptive_field`; with ``in_pixels`` the position is a place in the image.
    """
    if image.dim() != 3:
        raise ValueError(f"image: expected (C, H, W), got the shape {tuple(image.shape)}")
    parameter = next(model.parameters())
    batch = image.detach()[None].to(parameter.device, parameter.dtype).requires_grad_()
    with evaluating(model), fixed_offsets(model, not through_offsets), torch.enable_grad():
        output = layer_output(model, batch, layer)
        height, width = output.shape[2:]
        scale = image.shape[1] / height, image.shape[2] / width
        row, column = _cell(position, (height, width), scale, in_pixels)
        (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), batch)
    centre = (row + 0.5) * scale[0] - 0.5, (column + 0.5) * scale[1] - 0.5
    return gradient[0].double().cpu().numpy(), centre


def _cell(
    position: tuple[float, float] | None, size: tuple[int, int], scale: tuple[float, float], in_pixels: bool
) -> Position:
    if position is None:
        return size[0] // 2, size[1] // 2
    y, x = position
    row, column = (int((y + 0.5) // scale[0]), int((x + 0.5) // scale[1])) if in_pixels else (int(y), int(x))
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise ValueError(f"position: expected a place on the layer's map of {size[0]} x {size[1]}, got {position}")
    return row, column


def layer_output(model: nn.Module, images: Tensor, layer: str | None) -> Tensor:
    """(N, C, h, w): what a layer puts out for images.

    Raises:
        ValueError: no such layer, or its output is no map.
    """
    if layer is None:
        if not hasattr(model, "forward_features"):
            raise ValueError(f"layer: {type(model).__name__} has no forward_features, expected the name of a module")
        output = model.forward_features(images)
    else:
        modules = dict(model.named_modules())
        if layer not in modules:
            names = ", ".join(name for name in modules if name and "." not in name)
            raise ValueError(f"layer: no module {layer!r}; some of {names}")
        seen: list[Tensor] = []
        hook = modules[layer].register_forward_hook(lambda module, args, result: seen.append(result))
        try:
            model(images)
        finally:
            hook.remove()
        if not seen:
            raise ValueError(f"layer: module {layer!r} does not run in the forward pass")
        output = seen[-1]
    if not isinstance(output, Tensor) or output.dim() != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        name = layer or "forward_features"
        raise ValueError(f"layer: expected a module that gives (N, C, h, w), {name} gives {shape}")
    return output


@contextmanager
def fixed_offsets(model: nn.Module, fixed: bool = True) -> Iterator[None]:
    """Holds the offsets of deformable convolutions fixed: gradients do not pass through their generators."""
    generators = [module for module in model.modules() if fixed and isinstance(module, OffsetGenerator)]
    hooks = [module.register_forward_hook(lambda module, args, offset: offset.detach()) for module in generators]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
