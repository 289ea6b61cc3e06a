"""A control for what adapts: the same trained model with its offsets held at their mean."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dk_bench.analysis.learned import EXPERTS, Source, recorded, sources
from dk_bench.analysis.pictures import Picture, Subject
from dk_bench.models.probe import evaluating

__all__ = ["HELD", "held_at_mean"]

HELD = ", offsets held at their mean"  # behind a model's name, before its seed


def held_at_mean(subject: Subject, pictures: Sequence[Picture]) -> Subject | None:
    """A copy whose generators give, whatever the image, what the model's own give on average over all pictures and
    positions: one offset a tap and layer, scores of experts included. None for a model in which nothing adapts.

    What it computes of an image is what a rigid network could; so what the model's own field has beyond its field is
    due to adapting, where a rigid model's differs in all that training changed.
    """
    model = copy.deepcopy(subject.model)
    found = sources(model)
    if not found:
        return None
    with evaluating(model), torch.no_grad(), recorded(found, lambda source, read, given: _mean(given)) as seen:
        for picture in pictures:
            model(subject.tensor(picture)[None])
    for source in found:
        _hold(source, torch.stack(seen[source]).mean(0))
    kind = subject.kind + HELD
    return replace(subject, kind=kind, name=kind + subject.name.removeprefix(subject.kind), model=model)


def _mean(given: Tensor) -> Tensor:
    """(D,): over images, and over the positions of a map (1, D, h, w)."""
    return given.mean((0, 2, 3)) if given.dim() == 4 else given.mean(0)


def _hold(source: Source, mean: Tensor) -> None:
    """``mean`` is of what the generator stands for; experts' scores are the sigmoid of what theirs puts out."""
    value = torch.logit(mean) if source.kind == EXPERTS else mean

    def give(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shape = (1, -1, 1, 1) if output.dim() == 4 else (1, -1)
        return value.to(output).view(shape).expand_as(output).contiguous()

    source.generator.register_forward_hook(give)
