"""The effective receptive fields of several models on the same images (figures 4 and 6 of the paper).

A model's field is looked at on every picture as it is, rotated by 90 degrees and scaled by 1.5, at the unit nearest to
the object. Models may stand beside themselves with their offsets held at their mean.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dk_bench.analysis.console import tracked
from dk_bench.analysis.erf.field import Measures, measure, replknet_sides, share_inside
from dk_bench.analysis.erf.gradient import unit_gradient
from dk_bench.analysis.held import held_at_mean
from dk_bench.analysis.origin import Origin
from dk_bench.analysis.pictures import OWN, Picture, check_inside, moved, open_pictures
from dk_bench.analysis.subjects import Subject, open_models
from dk_bench.errors import UserError

KINDS = ("original", "rotated", "scaled")
GradientOf = Callable[..., tuple[np.ndarray, tuple[float, float]]]  # `unit_gradient` of one layer


@dataclass(frozen=True)
class Observation:
    """One field: of a model, on a picture that was left alone, rotated or scaled.

    A dead unit's field is zero everywhere, as behind a ReLU that lets nothing through, and has no measures.
    ``agreement`` is the cosine between the absolute field and that of the picture as it was, moved along with it; 1 for
    a model whose field follows the rotation or scaling exactly. None for the picture as it was, and where one of the
    two units is dead.
    """

    kind_of_model: str
    model: str  # of the checkpoint; for random weights the same as its kind, which says so
    trained: bool
    picture: str
    kind: str
    signed: np.ndarray  # (side, side), sum over the image's channels
    absolute: np.ndarray  # (side, side), sum of magnitudes over them
    centre: tuple[float, float]  # (y, x) of the unit, pixels
    measures: Measures | None = None  # of the absolute field about the unit
    inside: float | None = None  # share of the energy on the object; None: no object
    covered: float | None = None  # the object's share of the pixels
    agreement: float | None = None

    @property
    def dead(self) -> bool:
        """Tells whether the picture moves nothing in the unit."""
        return self.measures is None


@dataclass(frozen=True)
class FieldPlan:
    """The settings of a study: so many images of a source, see :func:`open_pictures`, and the unit of a layer."""

    images: str = "procedural"
    root: str | None = None
    count: int = 16
    side: int | None = None  # pixels the images are resized to; None: what the models were trained at
    layer: str | None = None  # whose unit it is; None: the last feature map
    position: tuple[float, float] | None = None  # (y, x) of the unit in the image, pixels; None: the object's middle
    through_offsets: bool = True  # whether the gradient passes through offset generators
    held: bool = False  # whether models that adapt stand beside themselves with offsets held at their mean


@dataclass(frozen=True)
class FieldStudy:
    """All fields of all models; ``about`` says what was looked at, as the files beside the numbers hold it."""

    subjects: list[Subject]
    pictures: list[Picture]
    observations: list[Observation]
    about: dict[str, Any]

    @property
    def origins(self) -> list[Origin]:
        """Returns where the checkpoints are from; a model and its control share one origin."""
        return list(dict.fromkeys(subject.origin for subject in self.subjects if subject.origin))


def study_fields(models: Sequence[str], plan: FieldPlan) -> FieldStudy:
    """Measures the fields of models, checkpoints or timm's names, by a plan; progress shows on standard error. Raises
    UserError for models, images and places that are not there, and as :func:`study`."""
    subjects = open_models(models, plan.side, plan.images)
    side, data = subjects[0].side, subjects[0].data
    if plan.position:
        check_inside(plan.position, side, side)
    pictures = open_pictures(plan.images, side, plan.count, plan.root, data)
    try:
        if plan.held:
            subjects = _with_controls(subjects, pictures)
        observations = study(subjects, pictures, plan.layer, plan.position, plan.through_offsets)
    except ValueError as error:
        raise UserError(f"{error}") from error
    images = f"validation images of {data.name}" if plan.images == OWN else plan.images
    about = {"images": images, "pictures": len(pictures), "side": side}
    about |= {name: getattr(plan, name) for name in ("layer", "position", "through_offsets")}
    return FieldStudy(subjects, pictures, observations, about)


def _with_controls(subjects: list[Subject], pictures: list[Picture]) -> list[Subject]:
    """Puts behind each model that adapts itself with offsets held. Raises UserError where nothing adapts in any."""
    held = [held_at_mean(subject, pictures) for subject in subjects]
    if not any(held):
        raise UserError(f"--held-offsets: nothing adapts in {', '.join(subject.name for subject in subjects)}")
    return [each for pair in zip(subjects, held, strict=True) for each in pair if each]


def study(
    subjects: Sequence[Subject],
    pictures: Sequence[Picture],
    layer: str | None = None,
    position: tuple[float, float] | None = None,
    through_offsets: bool = True,
) -> list[Observation]:
    """Returns every model on every picture, as it is, rotated and scaled.

    ``position`` is a place (y, x) in pixels, the objects' centres where it is None, and is rotated with the picture.
    Dead units are kept, to be counted. Raises ValueError as :func:`unit_gradient` does, for a gradient that is not
    finite, and where every unit is dead on pictures as they are.
    """
    gradient_of = partial(unit_gradient, layer=layer, in_pixels=True, through_offsets=through_offsets)
    found: list[Observation] = []
    for subject in subjects:
        with tracked(f"receptive fields of {subject.name}", len(pictures)) as advance:
            for picture in pictures:
                if position is not None:
                    picture = replace(picture, centre=position)
                found += _transformations(subject, picture, gradient_of)
                advance()
    plain = [seen.dead for seen in found if seen.kind == "original"]
    if all(plain):
        dead = f"all {len(plain)} units on pictures as they are are dead, their gradient is zero everywhere"
        expected = "expected a layer, or a position, with units that the picture moves"
        raise ValueError(f"layer {layer or '(the last map)'}: {dead}; {expected}")
    return found


def _transformations(subject: Subject, picture: Picture, gradient_of: GradientOf) -> Iterator[Observation]:
    """Gives a model's field on a picture as it is, rotated and scaled."""
    original = _observe(subject, picture, "original", gradient_of)
    yield original
    for kind in KINDS[1:]:
        seen = _observe(subject, picture.transformed(kind), kind, gradient_of)
        if not original.dead and not seen.dead:
            expected = moved(original.absolute, kind, picture.centre).astype(float)
            seen = replace(seen, agreement=_cosine(seen.absolute, expected))
        yield seen


def _observe(subject: Subject, picture: Picture, kind: str, gradient_of: GradientOf) -> Observation:
    """Returns a model's field on a picture, the agreement left open. Raises ValueError as :func:`study`."""
    gradient, centre = gradient_of(subject.model, subject.tensor(picture), position=picture.centre)
    absolute, mask = np.abs(gradient).sum(0), picture.mask
    if not np.isfinite(absolute).all():
        raise ValueError(f"{subject.name} on {picture.name}: the gradient is not finite, expected finite weights")
    names = (subject.kind, subject.name, subject.trained, picture.name, kind)
    found = Observation(*names, gradient.sum(0), absolute, centre)
    if absolute.any():
        found = replace(found, measures=measure(absolute, centre))
        if mask is not None and mask.any():
            found = replace(found, inside=share_inside(absolute, mask), covered=float(mask.mean()))
    return found


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns None where one of them is zero, as a field of which scaling leaves nothing in the picture."""
    product = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / product if product else None


def replknet(subject: Subject, pictures: Sequence[Picture], layer: str | None = None) -> dict[float, float] | None:
    """Returns :func:`replknet_sides` of the middle unit's positive gradients over all pictures; None without any."""
    total = np.zeros((subject.side, subject.side))
    for picture in pictures:
        gradient, _ = unit_gradient(subject.model, subject.tensor(picture), layer=layer)
        total += np.maximum(gradient, 0).sum(0)
    return replknet_sides(total) if total.any() else None
