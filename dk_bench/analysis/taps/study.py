"""Where taps go (the paper's figures 1 and 5): in the scope of a deformable kernel, on the data of a deformable
convolution, at one position of an image and over all positions of several.

Coordinates are (y, x). In a scope they are in samples, the first of which is 0; a tap beyond the first or the last is
clipped to it (unless the layer does not clip). On data they are in pixels of the layer's input, zero beyond its edge.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dk_bench.analysis.console import tracked
from dk_bench.analysis.lattice import Lattice, Step, lattice_of, steps_down
from dk_bench.analysis.learned import DATA, KERNEL, Loaded, Source, load, recorded, sources
from dk_bench.analysis.objects import whole_image
from dk_bench.analysis.pictures import check_inside
from dk_bench.data.pixels import open_image
from dk_bench.errors import UserError
from dk_bench.functional import sample_kernel
from dk_bench.models.probe import evaluating
from dk_bench.nn.scope import grid_offset
from dk_bench.reference.checks import output_size

LAYERS = 4  # of each size of kernels, that are shown where none are named
QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Taps:
    """K taps at one position: (K, 2) each, (y, x)."""

    before: np.ndarray  # where they are at the start of training: in the scope, or on the layer's input
    after: np.ndarray  # where their offsets take them, before any clipping
    outside: np.ndarray  # (K,), whether that is outside the scope, or the input


@dataclass(frozen=True)
class LayerTaps:
    """A convolution's taps and kernels at one position of an image."""

    name: str  # in the model
    unit: tuple[int, int]  # (row, column) of the position on the layer's output
    input_size: tuple[int, int]  # (H, W) of what it reads
    image_size: tuple[int, int]  # (H, W) of the image that the network saw
    lattice: Lattice  # where in the image what the layer reads lies
    kernel: Taps | None  # in the scope; None where the kernel is rigid
    data: list[Taps] | None  # on the input, for each group of channels with its own offsets; None where none move
    resting: np.ndarray  # (K, 2), where rigid taps read the input
    stored: np.ndarray  # (channels, Sh, Sw), the weight over the scope; a dense kernel's pairs of channels in a row
    sampled: np.ndarray  # (channels, Kh, Kw), what the taps read of it; the weight itself where the kernel is rigid
    inputs: int  # channels of the input that each one of the output reads: 1 where the kernel is depthwise

    def pair(self, channel: int) -> tuple[int, int]:
        """Returns the channel of the output, and that of the input in its group, of one of ``stored``."""
        return divmod(channel, self.inputs)


@dataclass(frozen=True)
class Offsets:
    """All offsets of a layer, over positions and images."""

    source: Source  # where they are from
    values: np.ndarray  # (K * groups, 2, P), pixels: (dy, dx) of every tap at P positions (of a global kernel: images)
    outside: float  # share of the taps that land outside the scope, or the layer's input
    outside_before: float  # the same share of rigid taps: zero in a scope, the padding's on data


@dataclass(frozen=True)
class TapsStudy:
    """Holds where a model's taps go."""

    picture: Image.Image  # that was looked at
    position: tuple[float, float]  # the place in it, (y, x) as shares of height and width
    layers: list[LayerTaps]  # those that are shown, at that place
    offsets: list[Offsets]  # of all layers, over all positions of all images


def study_taps(
    checkpoint: str,
    images: Sequence[str],
    layers: Sequence[str] | None = None,
    position: tuple[float, float] | None = None,
    size: int | None = None,
) -> TapsStudy:
    """Looks at a model on images, the first of which is shown; progress shows on standard error.

    Args:
        checkpoint, images: files.
        layers: names of those to show; None: some spread over the depth, of each size of kernels.
        position: (y, x) in pixels of the first image; None: its middle.
        size: shorter side of the images as the model sees them, pixels; None: as in evaluation.

    Raises:
        UserError: a file cannot be read; nothing moves in the model or a layer; position outside the image.
    """
    loaded = load(checkpoint)
    shown = _shown(loaded, layers)
    picture = open_image(images[0])
    place = (0.5, 0.5)
    if position:
        check_inside(position, picture.height, picture.width)
        place = ((position[0] + 0.5) / picture.height, (position[1] + 0.5) / picture.width)
    transform = whole_image(loaded.config.data, size)
    at_place = offsets_at(loaded.model, transform(picture), place)
    with tracked("images", len(images)) as advance:
        over_all = offsets_over(loaded.model, (transform(open_image(path)) for path in images), advance)
    return TapsStudy(picture, place, [layer for layer in at_place if layer.name in shown], over_all)


def _shown(loaded: Loaded, layers: Sequence[str] | None) -> Sequence[str]:
    """Returns the names of the layers to show. Raises UserError for one in which no taps move."""
    sizes = {source.layer: source.conv.kernel_size for source in moving(loaded.model)}
    names = list(sizes)
    if not names:
        raise UserError(f"{loaded.path}: {loaded.name} has experts but no taps that move")
    if layers is None:  # every so many of all would meet one place of each block, and so perhaps one size alone
        of_size = [[name for name in names if sizes[name] == size] for size in dict.fromkeys(sizes.values())]
        return [each[i] for each in of_size for i in {round(i) for i in np.linspace(0, len(each) - 1, LAYERS)}]
    if unknown := [layer for layer in layers if layer not in names]:
        raise UserError(f"--layer {unknown[0]}: no taps move there, expected one of {', '.join(names)}")
    return layers


def moving(model: nn.Module) -> list[Source]:
    """Returns the generators that move taps: of kernel offsets and of data offsets."""
    return [source for source in sources(model) if source.kind in (KERNEL, DATA)]


def offsets_at(model: nn.Module, image: Tensor, position: tuple[float, float]) -> list[LayerTaps]:
    """Returns every layer whose taps move, at its unit nearest to a place of an image (C, H, W), (y, x) as shares."""
    found = moving(model)
    with evaluating(model), torch.no_grad(), recorded(found, lambda source, read, given: (read, given)) as seen:
        with steps_down(model) as steps:
            model(image[None])
        size = tuple(image.shape[1:])
        at = tuple(share * side - 0.5 for share, side in zip(position, size, strict=True))
        parts: dict[str, dict[str, tuple[Source, Tensor, Tensor]]] = {}
        for source in found:
            parts.setdefault(source.layer, {})[source.kind] = (source, *seen[source][0])
        return [_layer(name, of_kind, at, size, steps) for name, of_kind in parts.items()]


def _layer(
    name: str,
    of_kind: dict[str, tuple[Source, Tensor, Tensor]],
    at: tuple[float, float],
    image_size: tuple[int, int],
    steps: list[Step],
) -> LayerTaps:
    """Returns a layer at its unit nearest to a place in the image, pixels."""
    conv, read = next((source.conv, read) for source, read, _ in of_kind.values())
    size = tuple(read.shape[2:])
    places = output_size(size, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    lattice = lattice_of(image_size, size, steps)
    row, column = (_nearest(at[axis], places[axis], lattice[axis], conv, axis) for axis in (0, 1))
    given = {
        kind: (values[0] if values.dim() == 2 else values[0, :, row, column]).double()
        for kind, (_, _, values) in of_kind.items()
    }
    resting = _resting(conv, places)[:, :, row, column]
    kernel, data, sampled = None, None, conv.weight
    if KERNEL in given:
        offset = given[KERNEL].view(-1, 2).numpy()
        rest = _in_scope(conv)
        before = rest + grid_offset(conv.kernel_size, conv.scope, conv.grid).view(-1, 2).numpy()
        kernel = Taps(before, rest + offset, _beyond(rest + offset, conv.scope))
        moved = given[KERNEL].to(conv.weight)[None]
        (sampled,) = sample_kernel(conv.weight, moved, kernel_size=conv.kernel_size, clip=conv.clip)
    if DATA in given:
        offset = given[DATA].view(-1, len(resting), 2).numpy()
        data = [Taps(resting, resting + each, _beyond(resting + each, size)) for each in offset]
    kernels = (each.detach().flatten(0, 1).double().cpu().numpy() for each in (conv.weight, sampled))
    inputs = conv.weight.shape[1]
    return LayerTaps(name, (row, column), size, image_size, lattice, kernel, data, resting, *kernels, inputs)


def _nearest(at: float, places: int, lattice: tuple[float, float], conv: nn.Module, axis: int) -> int:
    """Returns the unit of a convolution whose middle tap at rest is nearest to a place in the image, along an axis."""
    first, stride = lattice
    middle = (conv.kernel_size[axis] - 1) * conv.dilation[axis] / 2 - conv.padding[axis]
    return min(max(math.floor(((at - first) / stride - middle) / conv.stride[axis] + 0.5), 0), places - 1)


def _rows_and_columns(size: Sequence[int]) -> np.ndarray:
    """Returns the row and column of every place of a map or tap of a kernel, in order, (places, 2)."""
    return np.indices(size, float).reshape(2, -1).T


def _in_scope(conv: nn.Module) -> np.ndarray:
    """Returns where offsets of zero leave the taps in the scope, (K, 2)."""
    return _rows_and_columns(conv.kernel_size) + (np.array(conv.scope) - conv.kernel_size) / 2


def _resting(conv: nn.Module, places: Sequence[int]) -> np.ndarray:
    """Returns where rigid taps of every unit of a map (h, w) read the input, (K, 2, h, w)."""
    first = _rows_and_columns(places) * conv.stride - conv.padding
    taps = _rows_and_columns(conv.kernel_size) * conv.dilation
    return (taps[:, :, None] + first.T).reshape(len(taps), 2, *places)


def _beyond(taps: np.ndarray, size: tuple[int, int], axis: int = -1) -> np.ndarray:
    """Tells whether taps, whose (y, x) are along an axis, are outside samples 0 to size - 1."""
    taps = np.moveaxis(taps, axis, -1)
    return ((taps < 0) | (taps > np.array(size) - 1)).any(-1)


def offsets_over(
    model: nn.Module, images: Iterable[Tensor], on_image: Callable[[], Any] = lambda: None
) -> list[Offsets]:
    """Returns all offsets of every generator that moves taps, over the positions of images (C, H, W) of any sizes."""
    found = moving(model)
    with evaluating(model), torch.no_grad(), recorded(found, _taps_of_image) as seen:
        for image in images:
            model(image[None])
            on_image()
    result = []
    for source, of_images in seen.items():
        values, outside, before = (np.concatenate(each, axis=-1) for each in zip(*of_images, strict=True))
        result.append(Offsets(source, values, float(outside.mean()), float(before.mean())))
    return result


def _taps_of_image(source: Source, read: Tensor, given: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns offsets (K * groups, 2, P), and whether they take taps outside, and rigid ones are, (K * groups, P)."""
    conv, values = source.conv, given[0].float().cpu().numpy()
    values = values.reshape(-1, 2, values[0].size)  # of a global kernel one position
    if source.kind == KERNEL:
        rest, size = _in_scope(conv)[:, :, None], conv.scope
    else:
        rest, size = _resting(conv, given.shape[2:]), tuple(read.shape[2:])
        rest = np.tile(rest.reshape(*rest.shape[:2], -1), (len(values) // len(rest), 1, 1))
    return values, _beyond(rest + values, size, axis=-2), _beyond(rest, size, axis=-2)


def statistics(values: np.ndarray) -> Iterator[tuple[str, dict[str, float]]]:
    """Gives mean, standard deviation and quantiles by name, of dy, of dx and of the length of offsets (K, 2, P)."""
    for axis, each in (("dy", values[:, 0]), ("dx", values[:, 1]), ("length", np.linalg.norm(values, axis=1))):
        each = each.astype(float)
        quantiles = {name: float(np.quantile(each, share)) for name, share in QUANTILES.items()}
        yield axis, {"mean": float(each.mean()), "std": float(each.std()), **quantiles}
