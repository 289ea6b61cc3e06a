"""Learned dynamics of objects (the paper's figure 3), and what linear probes tell from them.

An object's dynamics are the learned values by which a model adapts at the object's place. Of local generators these are
the offsets at the cell of each map that holds the middle of the object's box; of global generators and of experts, the
values for the whole image. They are taken as the generators give them, before any clipping to the scope.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dk_bench.analysis.dynamics.probe import CLASS, probe, targets_of
from dk_bench.analysis.learned import Loaded, Source, recorded, sources
from dk_bench.analysis.objects import Objects, whole_image
from dk_bench.errors import UserError
from dk_bench.models.probe import evaluating
from dk_bench.tables.statistics import summarize

__all__ = [
    "ALL",
    "LEARNED",
    "RANDOM",
    "SHUFFLED",
    "Dynamics",
    "Line",
    "batches",
    "collect",
    "difference",
    "known_alone",
    "probe_all",
    "summary",
]

BATCH = 32
ALL = "all"  # in place of a layer's name: the dynamics of all layers, side by side
LEARNED, RANDOM, SHUFFLED = "learned", "random generator", "shuffled targets"


@dataclass(frozen=True)
class Dynamics:
    """Dynamics of one model by kind and layer: (M, D), a row an object."""

    loaded: Loaded
    learned: dict[str, dict[str, np.ndarray]]
    random: dict[str, dict[str, np.ndarray]]  # what generators of the same shape and random weights give there

    def joined(self, kind: str, random: bool = False) -> np.ndarray:
        """(M, sum of D): all layers side by side."""
        return np.concatenate(list((self.random if random else self.learned)[kind].values()), axis=1)


@dataclass(frozen=True)
class Line:
    """One probe's score: accuracy in percent of a class, R2 of a number; 95 % interval by a bootstrap over images."""

    model: str
    cell: str  # the configuration's, whatever the seed
    seed: int
    run_id: str
    kind: str
    layer: str
    dims: int
    features: str  # learned, of a random generator, or of so many components; or the learned with shuffled targets
    target: str
    value: float
    low: float
    high: float


def collect(
    loaded: Loaded,
    objects: Objects,
    *,
    size: int | None = None,
    device: str = "cpu",
    on_images: Callable[[int], Any] = lambda count: None,
) -> Dynamics:
    """Returns the dynamics of every object; ``on_images`` is told how many images each batch had.

    Images are seen whole, see :func:`dk_bench.analysis.objects.whole_image`. The random generators are a control: a
    linear map of what the learned one reads, as large, that has learnt nothing. Raises UserError for dynamics that are
    not finite.
    """
    found = sources(loaded.model)
    controls = {source: _control(source.generator).to(device) for source in found}
    now: dict[str, Tensor] = {}

    def at_objects(source: Source, read: Tensor, given: Tensor) -> tuple[np.ndarray, np.ndarray]:
        pair = (given, source.read(controls[source](read)))
        return tuple(_at(values, now["image"], now["centre"]).double().cpu().numpy() for values in pair)

    model = loaded.model.to(device)
    with evaluating(model), torch.no_grad(), recorded(found, at_objects) as seen:
        for first, images in batches(objects, whole_image(loaded.config.data, size)):
            inside = (objects.image >= first) & (objects.image < first + len(images))
            now["image"] = torch.as_tensor(objects.image[inside] - first, device=device)
            now["centre"] = torch.as_tensor(objects.centre[inside], device=device)
            model(images.to(device))
            on_images(len(images))
    parts: tuple[dict, dict] = ({}, {})
    for which, part in enumerate(parts):
        for source in found:
            values = np.concatenate([pair[which] for pair in seen[source]])
            if not np.isfinite(values).all():
                raise UserError(f"{loaded.path}: {source.kind} of {source.layer} are not finite on {objects.source}")
            part.setdefault(source.kind, {})[source.layer] = values
    return Dynamics(loaded, *parts)


def _control(generator: nn.Module) -> nn.Module:
    """Returns a generator of the same shape whose weights are random, of a scale that keeps its input's, and no
    bias.
    """
    control = copy.deepcopy(generator)
    with torch.no_grad():
        fan_in = control.weight[0].numel()
        noise = torch.randn(control.weight.shape, generator=torch.Generator().manual_seed(0))
        control.weight.copy_(noise / math.sqrt(fan_in))
        control.bias.zero_()
    return control


def _at(values: Tensor, image: Tensor, centre: Tensor) -> Tensor:
    """(M, D): at each object's cell of maps (N, D, h, w), or of its image (N, D)."""
    if values.dim() == 2:
        return values[image]
    size = torch.tensor(values.shape[2:], device=values.device)
    row, column = (centre * size).long().clamp(torch.zeros_like(size), size - 1).T
    return values[image, :, row, column]


def batches(objects: Objects, transform: Any) -> Iterator[tuple[int, Tensor]]:
    """(index of the first image, (N, 3, H, W)), all images in order."""
    batch: list[Tensor] = []
    for index, open_image in enumerate(objects.images):
        image = transform(open_image())
        if batch and (len(batch) == BATCH or image.shape != batch[0].shape):
            yield index - len(batch), torch.stack(batch)
            batch = []
        batch.append(image)
    yield len(objects.images) - len(batch), torch.stack(batch)


def probe_all(dynamics: Dynamics, objects: Objects, dims: int) -> Iterator[list[Line]]:
    """Returns the scores of every kind of dynamics: of all layers with their controls, at ``dims`` components, by
    layer.

    Raises ValueError as :func:`dk_bench.analysis.dynamics.probe.probe`.
    """
    targets = targets_of(objects.label, objects.scale, objects.pose)
    shuffle = np.random.default_rng(0).permutation(len(objects))
    shuffled = {name: target[shuffle] for name, target in targets.items()}
    for kind, layers in dynamics.learned.items():
        whole = dynamics.joined(kind)
        tasks = [
            (ALL, LEARNED, whole, targets, None),
            (ALL, RANDOM, dynamics.joined(kind, random=True), targets, None),
            (ALL, SHUFFLED, whole, shuffled, None),
            (ALL, f"{dims} components", whole, targets, dims),
            *((layer, LEARNED, values, targets, None) for layer, values in layers.items()),
        ]
        for layer, features, values, wanted, components in tasks:
            scores = probe(values, wanted, objects.image, dims=components)
            used = min(components or values.shape[1], values.shape[1])
            loaded = dynamics.loaded
            known = (loaded.name, loaded.cell, loaded.config.seed, loaded.run_id, kind, layer, used, features)
            yield [Line(*known, target, s.value, s.low, s.high) for target, s in scores.items()]


def known_alone(objects: Objects) -> list[Line]:
    """Tells what class and scale tell of each other and of the pose without any model: the baseline of confounded
    data.
    """
    targets = targets_of(objects.label, objects.scale, objects.pose)
    one_hot = np.eye(len(objects.classes))[objects.label]
    lines = []
    for known, features in ((CLASS, one_hot), ("log scale", np.log(objects.scale)[:, None])):
        wanted = {name: target for name, target in targets.items() if name != known}
        scores = probe(features, wanted, objects.image)
        start = ("none", "", 0, "", f"{known} alone", ALL, features.shape[1], LEARNED)
        lines += [Line(*start, target, s.value, s.low, s.high) for target, s in scores.items()]
    return lines


Key = tuple[str, str, str, str, str]  # cell, kind, layer, features, target


def summary(lines: list[Line]) -> dict[Key, dict[int, float]]:
    """Values by seed, of every cell, kind, layer, features and target."""
    found: dict[Key, dict[int, float]] = {}
    for line in lines:
        found.setdefault((line.cell, line.kind, line.layer, line.features, line.target), {})[line.seed] = line.value
    return found


def difference(one: dict[int, float], other: dict[int, float]) -> tuple[float, float | None, int] | None:
    """Mean of the differences by seed, half of its 95 % interval (None for one seed), their number; None if none."""
    common = sorted(one.keys() & other.keys())
    if not common:
        return None
    found = summarize([one[seed] - other[seed] for seed in common])
    return found.mean, found.half_width, found.n
