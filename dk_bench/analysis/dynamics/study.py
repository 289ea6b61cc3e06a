"""Learned dynamics of objects (the paper's figure 3), and what linear probes tell from them.

An object's dynamics are the learned values by which a model adapts at the object's place. Of local generators these are
the offsets at the place of each map that holds the middle of the object's box; of global generators and of experts, the
values for the whole image. They are taken as the generators give them, before any clipping to the scope. Probes tell
the object's class, scale and pose from them, from what random generators give there, and from class or scale alone.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dk_bench.analysis.console import tracked
from dk_bench.analysis.dynamics import MIN_OBJECTS, PROCEDURAL
from dk_bench.analysis.dynamics.linear_probe import CLASS, probe, targets_of
from dk_bench.analysis.held import HeldAccuracy, held_accuracy
from dk_bench.analysis.learned import Loaded, Source, load, recorded, sources
from dk_bench.analysis.objects import Objects, batches, coco_objects, procedural_objects, whole_image
from dk_bench.analysis.origin import Origin, origin_of
from dk_bench.errors import UserError
from dk_bench.models.probe import evaluating

ALL = "all"  # in place of a layer's name: the dynamics of all layers, side by side
LEARNED, RANDOM, SHUFFLED = "learned", "random generator", "shuffled targets"


@dataclass(frozen=True)
class DynamicsPlan:
    """The settings of a study: at most so many ``objects``, of the models' own procedural images, or of ``data``,
    annotations in COCO's format whose images are in the folder ``images``."""

    data: str = PROCEDURAL
    images: Path | None = None
    objects: int = 2000
    size: int | None = None  # shorter side of the images, pixels; None: as in evaluation
    device: str = "cpu"
    tsne: int = 1000  # for how many objects there is to be a t-SNE of that perplexity; 0: none
    perplexity: float = 30


@dataclass(frozen=True)
class Dynamics:
    """Dynamics of one model by kind and layer: (M, D), a row an object."""

    loaded: Loaded
    learned: dict[str, dict[str, np.ndarray]]
    random: dict[str, dict[str, np.ndarray]]  # what generators of the same shape and random weights give there

    def joined(self, kind: str, random: bool = False) -> np.ndarray:
        """Returns all layers side by side, (M, sum of D)."""
        return np.concatenate(list((self.random if random else self.learned)[kind].values()), axis=1)


@dataclass(frozen=True)
class ProbeScore:
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


@dataclass(frozen=True)
class ProbeResults:
    """Holds what probes tell, as files hold it."""

    scores: list[ProbeScore]  # of models
    alone: list[ProbeScore]  # of what is known without any model
    origins: list[Origin]  # of the checkpoints
    objects: str  # what they are, in words
    chance: float  # share of the most frequent class, percent
    held: list[HeldAccuracy]  # of models whose classes the objects have


@dataclass(frozen=True)
class DynamicsStudy:
    """The dynamics of several models on the same objects, and what they tell."""

    objects: Objects
    dynamics: list[Dynamics]
    results: ProbeResults

    @property
    def drawn(self) -> list[Dynamics]:
        """Returns the dynamics that figures show: of several seeds of a cell the first."""
        first = {each.loaded.cell: each for each in reversed(self.dynamics)}
        return [each for each in self.dynamics if each is first[each.loaded.cell]]


def study_dynamics(checkpoints: Sequence[str], plan: DynamicsPlan) -> DynamicsStudy:
    """Collects dynamics and probes them, with progress on stderr. Raises UserError for what does not fit."""
    loaded = _load(checkpoints)
    objects = _objects(loaded, plan)
    on = {"size": plan.size, "device": plan.device}
    with tracked("images", len(loaded) * len(objects.images)) as advance:
        dynamics = [collect(each, objects, **on, on_images=advance) for each in loaded]
    # What is compared at one number of components has as many as the smallest dynamics.
    dims = min(each.joined(kind).shape[1] for each in dynamics for kind in each.learned)
    try:
        with tracked("probes", sum(4 + len(part) for each in dynamics for part in each.learned.values())) as advance:
            scores = [score for each in dynamics for score in probe_all(each, objects, dims, advance)]
        alone = known_alone(objects)
    except ValueError as error:
        raise UserError(f"{objects.source}: {error}") from error
    with tracked("offsets held", 2 * len(loaded) * len(objects.images)) as advance:
        tried = (held_accuracy(each, objects, **on, on_images=advance) for each in loaded)
        held = [each for each in tried if each]
    origins = [origin_of(each.path, each.name, each.config, each.run_id) for each in loaded]
    chance = 100 * float(np.bincount(objects.label).max()) / len(objects)
    return DynamicsStudy(objects, dynamics, ProbeResults(scores, alone, origins, objects.source, chance, held))


def _load(checkpoints: Sequence[str]) -> list[Loaded]:
    """Returns models in which something adapts. Raises UserError for one that is there twice."""
    loaded: dict[tuple[str, int], Loaded] = {}
    for path in checkpoints:
        each = load(path)
        same = loaded.setdefault((each.cell, each.config.seed), each)
        if same is not each:
            raise UserError(f"{path}: the same model, settings and seed as {same.path}")
    return list(loaded.values())


def _objects(loaded: Sequence[Loaded], plan: DynamicsPlan) -> Objects:
    """Returns the objects that all models see. Raises UserError for too few, or if models' own images differ."""
    if plan.data != PROCEDURAL:
        objects = coco_objects(plan.data, plan.images, plan.objects)
    else:
        first = loaded[0].config.data
        for other in loaded[1:]:
            if (other.config.data.procedural, other.config.data.size) != (first.procedural, first.size):
                raise UserError(f"{other.path}: other procedural images than {loaded[0].path}; compare them apart")
        objects = procedural_objects(first, plan.objects)
    if len(objects) < MIN_OBJECTS:
        raise UserError(f"{objects.source}: too few to tell anything, expected at least {MIN_OBJECTS} objects")
    if plan.tsne and plan.perplexity >= (shown := min(plan.tsne, len(objects))):
        wanted = f"t-SNE wants it below its number of objects, {shown}; give a lower one, or --tsne 0"
        raise UserError(f"--perplexity {plan.perplexity:g}: {wanted}")
    return objects


def collect(
    loaded: Loaded,
    objects: Objects,
    *,
    size: int | None = None,
    device: str = "cpu",
    on_images: Callable[[int], Any] = lambda count: None,
) -> Dynamics:
    """Returns the dynamics of every object, on images seen whole; ``on_images`` is told how many each batch had. The
    random generators are a control: a linear map of what the learned one reads, as large, that has learnt nothing.
    Raises UserError where any is not finite."""
    found = sources(loaded.model)
    controls = {source: _control(source.generator).to(device) for source in found}
    now: dict[str, Tensor] = {}

    def at_objects(source: Source, read: Tensor, given: Tensor) -> tuple[np.ndarray, np.ndarray]:
        pair = (given, source.read(controls[source](read)))
        return tuple(_at(values, **now).double().cpu().numpy() for values in pair)

    model = loaded.model.to(device)
    with evaluating(model), torch.no_grad(), recorded(found, at_objects) as seen:
        for first, images in batches(objects, whole_image(loaded.config.data, size)):
            inside = (objects.image >= first) & (objects.image < first + len(images))
            now["image"] = torch.as_tensor(objects.image[inside] - first, device=device)
            now["centre"] = torch.as_tensor(objects.centre[inside], device=device)
            model(images.to(device))
            on_images(len(images))
    parts: tuple[dict, dict] = ({}, {})
    for source in found:
        for part, values in zip(parts, map(np.concatenate, zip(*seen[source], strict=True)), strict=True):
            if not np.isfinite(values).all():
                raise UserError(f"{loaded.path}: {source.kind} of {source.layer} are not finite on {objects.source}")
            part.setdefault(source.kind, {})[source.layer] = values
    return Dynamics(loaded, *parts)


def _control(generator: nn.Module) -> nn.Module:
    """Returns a generator of the same shape with random weights, of a scale that keeps its input's, and no bias."""
    control = copy.deepcopy(generator)
    with torch.no_grad():
        fan_in = control.weight[0].numel()
        noise = torch.randn(control.weight.shape, generator=torch.Generator().manual_seed(0))
        control.weight.copy_(noise / math.sqrt(fan_in))
        control.bias.zero_()
    return control


def _at(values: Tensor, image: Tensor, centre: Tensor) -> Tensor:
    """Returns maps (N, D, h, w) at each object's place, or what is of its image (N, D): (M, D)."""
    if values.dim() == 2:
        return values[image]
    size = torch.tensor(values.shape[2:], device=values.device)
    row, column = (centre * size).long().clamp(torch.zeros_like(size), size - 1).T
    return values[image, :, row, column]


def probe_all(dynamics: Dynamics, objects: Objects, dims: int, on_probe: Callable[[], Any]) -> Iterator[ProbeScore]:
    """Gives the scores of every kind of dynamics: of all layers with their controls, at ``dims`` components, by layer.
    Raises ValueError as :func:`probe`."""
    loaded = dynamics.loaded
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
            known = (loaded.name, loaded.cell, loaded.config.seed, loaded.run_id, kind, layer, used, features)
            yield from (ProbeScore(*known, target, *score) for target, score in scores.items())
            on_probe()


def known_alone(objects: Objects) -> list[ProbeScore]:
    """Scores what class and scale tell of each other and of the pose, without any model: the data's own confounding."""
    targets = targets_of(objects.label, objects.scale, objects.pose)
    one_hot = np.eye(len(objects.classes))[objects.label]
    lines = []
    for known, features in ((CLASS, one_hot), ("log scale", np.log(objects.scale)[:, None])):
        wanted = {name: target for name, target in targets.items() if name != known}
        scores = probe(features, wanted, objects.image)
        start = ("none", "", 0, "", f"{known} alone", ALL, features.shape[1], LEARNED)
        lines += [ProbeScore(*start, target, *score) for target, score in scores.items()]
    return lines
