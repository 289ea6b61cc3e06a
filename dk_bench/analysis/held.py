"""A control for adaptation: the same trained model with its offsets held at their mean."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dk_bench.analysis.learned import EXPERTS, Loaded, Source, recorded, sources
from dk_bench.analysis.objects import Objects, batches, whole_image
from dk_bench.analysis.pictures import Picture
from dk_bench.analysis.subjects import Subject
from dk_bench.claims.studies import HELD
from dk_bench.models.probe import evaluating


@dataclass(frozen=True)
class HeldAccuracy:
    """Top-1 of one checkpoint on the images of a study, in percent: as it is, and with its offsets held at their mean
    over those images. ``cell`` names the configuration."""

    model: str
    cell: str
    seed: int
    run_id: str
    images: int
    top1: float
    top1_held: float


def held_at_mean(subject: Subject, pictures: Sequence[Picture]) -> Subject | None:
    """Returns a copy whose generators give, whatever the image, what the model's own give on average over all pictures
    and positions: one offset a tap and layer, scores of experts included. None for a model in which nothing adapts.

    What it computes of an image is what a rigid network could; so what the model's own field has beyond its field is
    due to adapting, where a rigid model's differs in all that training changed.
    """
    if not sources(subject.model):
        return None
    model, _ = _held(subject.model, (subject.tensor(picture)[None] for picture in pictures))
    kind = subject.kind + HELD
    return replace(subject, kind=kind, name=kind + subject.name.removeprefix(subject.kind), model=model)


def held_accuracy(
    loaded: Loaded,
    objects: Objects,
    *,
    size: int | None = None,
    device: str = "cpu",
    on_images: Callable[[int], object] = lambda count: None,
) -> HeldAccuracy | None:
    """Returns the accuracies of a checkpoint on images seen whole, as `analysis.dynamics.study.collect` has them; None
    where objects are not one an image, or of other classes than the model's."""
    if objects.classes != loaded.classes or objects.image.tolist() != list(range(len(objects.images))):
        return None
    model, label = loaded.model.to(device), torch.as_tensor(objects.label)

    def images() -> Iterable[Tensor]:
        for _, batch in batches(objects, whole_image(loaded.config.data, size)):
            yield batch.to(device)
            on_images(len(batch))

    held, own = _held(model, images())
    with evaluating(held), torch.no_grad():
        after = [held(batch).argmax(1).cpu() for batch in images()]
    right = [100 * float((torch.cat(found) == label).double().mean()) for found in (own, after)]
    return HeldAccuracy(loaded.name, loaded.cell, loaded.config.seed, loaded.run_id, len(label), *right)


def _held(model: nn.Module, images: Iterable[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    """Returns a copy with offsets held, and the classes that the model itself gives, a tensor a batch (N, C, H, W)."""
    found, given = sources(model), []
    with evaluating(model), torch.no_grad(), recorded(found, _sum) as seen:
        counted = 0
        for batch in images:
            given.append(model(batch).argmax(1).cpu())
            counted += len(batch)
    held = copy.deepcopy(model)
    for source, own in zip(sources(held), found, strict=True):
        _hold(source, torch.stack(seen[own]).sum(0) / counted)
    return held, given


def _sum(source: Source, read: Tensor, given: Tensor) -> Tensor:
    """Sums over images the mean over the positions of a map (N, D, h, w), or values (N, D): (D,)."""
    return (given.mean((2, 3)) if given.dim() == 4 else given).sum(0)


def _hold(source: Source, mean: Tensor) -> None:
    """Makes a generator stand for ``mean`` everywhere; experts' scores are the sigmoid of what theirs puts out."""
    value = torch.logit(mean) if source.kind == EXPERTS else mean

    def give(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return value.to(output).view(-1, *[1] * (output.dim() - 2)).expand_as(output).contiguous()

    source.generator.register_forward_hook(give)
