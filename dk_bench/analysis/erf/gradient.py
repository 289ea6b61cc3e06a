"""The gradient of one output unit to the input image (Gao et al., ICLR 2020, section 3.1; Luo et al., NeurIPS 2016)."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dk_bench.analysis.lattice import Lattice, lattice_of, steps_down
from dk_bench.models.probe import evaluating
from dk_bench.nn.offsets import OffsetGenerator


def unit_gradient(
    model: nn.Module,
    image: Tensor,
    *,
    layer: str | None = None,
    position: tuple[float, float] | None = None,
    in_pixels: bool = False,
    through_offsets: bool = True,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns the gradient of one unit to one image, (C, H, W) in float64, signed, and the unit's place (y, x) in
    pixels. A unit is a place of a layer's map: the sum of its channels. A dead one's gradient is zero everywhere.

    Args:
        model: takes (N, C, H, W); runs in evaluation mode and keeps its own.
        image: (C, H, W), normalised as the model expects.
        layer: name of a module whose output is a map or tokens; None: the last map of any timm model.
        position: (row, column) on the layer's map, or, with ``in_pixels``, a place (y, x) in the image, to
            which the nearest unit is taken; None: the middle.
        through_offsets: also count what an image changes by moving taps, as the derivative does; False holds the
            offsets fixed, as the paper's equations do.

    Raises:
        ValueError: no such layer or it has no map; position outside the map; image of another shape.
    """
    if image.dim() != 3:
        raise ValueError(f"image: expected (C, H, W), got the shape {tuple(image.shape)}")
    parameter = next(model.parameters())
    batch = image.detach()[None].to(parameter.device, parameter.dtype).requires_grad_()
    with evaluating(model), fixed_offsets(model, not through_offsets), torch.enable_grad():
        with steps_down(model) as steps:
            output = layer_output(model, batch, layer)
        lattice = lattice_of(batch.shape[2:], output.shape[2:], steps)
        row, column = _unit(position, output.shape[2:], lattice, in_pixels)
        unit = output[0, :, row, column].sum()
        gradient = torch.zeros_like(batch)
        if unit.requires_grad:  # else the image has no part in it
            (gradient,) = torch.autograd.grad(unit, batch, materialize_grads=True)
    centre = tuple(first + place * stride for place, (first, stride) in zip((row, column), lattice, strict=True))
    return gradient[0].double().cpu().numpy(), centre


def _unit(position: tuple[float, float] | None, size: torch.Size, lattice: Lattice, in_pixels: bool) -> tuple[int, int]:
    """Returns the unit at a place of the map, or the nearest to a place in the image."""
    if position is None:
        return size[0] // 2, size[1] // 2
    if not in_pixels:
        row, column = map(int, position)
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            raise ValueError(f"position: expected a place on the layer's map of {size[0]} x {size[1]}, got {position}")
        return row, column
    nearest = [round((at - first) / stride) for at, (first, stride) in zip(position, lattice, strict=True)]
    row, column = (min(max(place, 0), places - 1) for place, places in zip(nearest, size, strict=True))
    return row, column


def layer_output(model: nn.Module, images: Tensor, layer: str | None) -> Tensor:
    """Returns what a layer puts out for images (N, C, H, W) as (N, C, h, w); tokens and maps with channels last too.

    Without a layer it is what ``forward_features`` gives. Where that is no map, or has been normalised over its
    channels, whose sum then no image changes, it is timm's last intermediate map, before that. Raises ValueError where
    there is no such layer, or its output is no map.
    """
    if layer is None:
        if not hasattr(model, "forward_features"):
            raise ValueError(f"layer: {type(model).__name__} has no forward_features, expected the name of a module")
        if isinstance(getattr(model, "norm", None), nn.LayerNorm) and hasattr(model, "forward_intermediates"):
            (output,) = model.forward_intermediates(images, indices=1, intermediates_only=True)  # (N, C, h, w)
        else:
            output = _as_map(model.forward_features(images), model, None, images)
    else:
        modules = dict(model.named_modules())
        if layer not in modules:
            names = ", ".join(name for name in modules if name and "." not in name)
            raise ValueError(f"layer: no module {layer!r}; some of {names}")
        seen: list[Tensor] = []
        with modules[layer].register_forward_hook(lambda module, args, result: seen.append(result)):
            model(images)
        if not seen:
            raise ValueError(f"layer: module {layer!r} does not run in the forward pass")
        output = _as_map(seen[-1], model, modules[layer], images)
    if not isinstance(output, Tensor) or output.dim() != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        name = layer or "forward_features"
        raise ValueError(f"layer: expected a module that gives (N, C, h, w), {name} gives {shape}")
    return output


def _as_map(output: object, model: nn.Module, module: nn.Module | None, images: Tensor) -> object:
    """Returns (N, h, w, C) and tokens (N, L, C) as (N, C, h, w), and anything else as it is."""
    if not isinstance(output, Tensor):
        return output
    if output.dim() == 4:
        layout = getattr(module, "output_fmt", getattr(model, "output_fmt", "NCHW"))  # timm's Swin, patch embeddings
        last = str(getattr(layout, "value", layout)) == "NHWC" and not isinstance(module, nn.Conv2d)
        return output.permute(0, 3, 1, 2) if last else output
    if output.dim() != 3:
        return output
    height, width = images.shape[2:]
    for prefix in dict.fromkeys((getattr(model, "num_prefix_tokens", 0), 0)):  # class tokens stand first
        count = output.shape[1] - prefix
        rows = round(math.sqrt(count * height / width)) if count > 0 else 0
        if rows > 1 and count % rows == 0 and round(rows * width / height) == count // rows:
            return output[:, prefix:].transpose(1, 2).unflatten(2, (rows, count // rows))
    return output


@contextmanager
def fixed_offsets(model: nn.Module, fixed: bool = True) -> Iterator[None]:
    """Holds the offsets of deformable convolutions fixed: gradients do not pass through their generators."""
    with ExitStack() as hooks:
        for module in model.modules():
            if fixed and isinstance(module, OffsetGenerator):
                hooks.enter_context(module.register_forward_hook(lambda module, args, offset: offset.detach()))
        yield
