"""The effective receptive fields of several models on the same images: numbers, figures 4 and 6 of the paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from dk_bench.analysis.drawing import progress, save_figure, styled, write_csv
from dk_bench.analysis.erf.field import Measures, measure, replknet_sides, share_inside
from dk_bench.analysis.erf.gradient import unit_gradient
from dk_bench.analysis.pictures import Picture, Subject

__all__ = ["KINDS", "Observation", "replknet", "study", "write_study"]

KINDS = ("original", "rotated", "scaled")
SHOWN = 4  # pictures in a figure
FIELDS = (
    "model",
    "trained",
    "picture",
    "kind",
    "y",
    "x",
    "sigma",
    "radius",
    "area",
    "inside",
    "covered",
    "agreement",
    "dead",
)


@dataclass(frozen=True)
class Observation:
    """One field: of a model, on a picture that was left alone, rotated or scaled.

    Attributes:
        kind_of_model, model: the model's name, and that of its checkpoint or, for random weights, the same; it says so.
        signed, absolute: (side, side), over the image's channels.
        centre: (y, x) of the unit, pixels.
        measures: of the absolute field about the unit; None for a dead unit, whose field is zero everywhere, as behind
            a ReLU that lets nothing through.
        inside: share of the energy on the object, and ``covered`` the object's share of the pixels; None: no object.
        agreement: cosine between the absolute field and that of the picture as it was, moved along with it; 1 for a
            model whose field follows the rotation or scaling exactly. None for the picture as it was, and where one of
            the two units is dead.
    """

    kind_of_model: str
    model: str
    trained: bool
    picture: str
    kind: str
    signed: np.ndarray
    absolute: np.ndarray
    centre: tuple[float, float]
    measures: Measures | None
    inside: float | None
    covered: float | None
    agreement: float | None

    @property
    def dead(self) -> bool:
        """Tells whether the picture moves nothing in the unit."""
        return self.measures is None


def study(
    subjects: Sequence[Subject],
    pictures: Sequence[Picture],
    layer: str | None = None,
    position: tuple[float, float] | None = None,
    through_offsets: bool = True,
) -> list[Observation]:
    """Returns every model on every picture, as it is, rotated and scaled; a progress bar on standard error.

    ``position`` is a place (y, x) in pixels, the objects' centres where it is None, and is rotated with the picture.
    Dead units are kept, to be counted. Raises ValueError as :func:`unit_gradient` does, for a gradient that is not
    finite, and where every unit is dead.
    """
    found: list[Observation] = []
    with progress(Console(stderr=True)) as bar:
        for subject in subjects:
            for picture in bar.track(pictures, description=f"receptive fields of {subject.name}"):
                if position is not None:
                    picture = Picture(picture.name, picture.image, position, picture.mask)
                base: np.ndarray | None = None
                for kind in KINDS:
                    moved = picture if kind == "original" else picture.transformed(kind)
                    seen = _observe(subject, moved, kind, layer, through_offsets, base, picture.centre)
                    base = seen.absolute if kind == "original" and not seen.dead else base
                    found.append(seen)
    if all(seen.dead for seen in found):
        raise ValueError(
            f"layer {layer or '(the last map)'}: all {len(found)} units are dead, their gradient is zero "
            "everywhere; expected a layer, or a position, with units that the picture moves"
        )
    return found


def _observe(
    subject: Subject,
    picture: Picture,
    kind: str,
    layer: str | None,
    through_offsets: bool,
    base: np.ndarray | None,
    middle: tuple[float, float],
) -> Observation:
    gradient, centre = unit_gradient(
        subject.model,
        subject.tensor(picture),
        layer=layer,
        position=picture.centre,
        in_pixels=True,
        through_offsets=through_offsets,
    )
    absolute = np.abs(gradient).sum(0)
    if not np.isfinite(absolute).all():
        raise ValueError(f"{subject.name} on {picture.name}: the gradient is not finite, expected finite weights")
    measures = measure(absolute, centre) if absolute.any() else None
    mask = picture.mask if measures and picture.mask is not None and picture.mask.any() else None
    return Observation(
        subject.kind,
        subject.name,
        subject.trained,
        picture.name,
        kind,
        gradient.sum(0),
        absolute,
        centre,
        measures,
        inside=None if mask is None else share_inside(absolute, mask),
        covered=None if mask is None else float(mask.mean()),
        agreement=None if base is None or measures is None else _cosine(absolute, _moved(base, kind, middle)),
    )


def _moved(field: np.ndarray, kind: str, centre: tuple[float, float]) -> np.ndarray:
    """Returns a field moved as :meth:`Picture.transformed` moves the picture."""
    if kind == "rotated":
        return np.rot90(field)
    from PIL import Image

    from dk_bench.analysis.pictures import scaled

    return np.asarray(scaled(Image.fromarray(field.astype(np.float32)), centre, Image.Resampling.BILINEAR), float)


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where one of them is zero, as a field of which scaling leaves nothing in the picture."""
    product = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / product if product else None


def replknet(subject: Subject, pictures: Sequence[Picture], layer: str | None = None) -> dict[float, float]:
    """:func:`replknet_sides` of the middle unit's positive gradients over all pictures, as RepLKNet's tool has them."""
    total = np.zeros((subject.side, subject.side))
    for picture in pictures:
        gradient, _ = unit_gradient(subject.model, subject.tensor(picture), layer=layer)
        total += np.maximum(gradient, 0).sum(0)
    return replknet_sides(total)


def write_study(observations: Sequence[Observation], pictures: Sequence[Picture], folder: str | Path) -> list[Path]:
    """Writes fields.csv (every number), profile.csv, maps/*.csv (what figures show); fields, transforms and profile as
    PNG and PDF. Of several checkpoints of a kind the first is drawn. Returns the files but for the maps. Raises
    UserError where it cannot."""
    from dk_bench.analysis.erf.figures import draw_fields, draw_transforms
    from dk_bench.analysis.erf.profile import PROFILE, draw_profiles, profile_rows, profiles

    folder, averaged = Path(folder), profiles(observations)
    files = [
        write_csv(folder, "fields", FIELDS, map(_row, observations)),
        write_csv(folder, "profile", PROFILE, profile_rows(averaged)),
    ]
    shown = {picture.name for picture in pictures[:SHOWN]}
    first: dict[str, str] = {}
    for seen in observations:
        first.setdefault(seen.kind_of_model, seen.model)
    drawn = [seen for seen in observations if first[seen.kind_of_model] == seen.model]
    for seen in drawn:
        if seen.picture in shown:
            name = re.sub(r"[^\w.-]+", "_", f"{seen.model}-{seen.picture}-{seen.kind}")
            write_csv(folder / "maps", name, range(seen.signed.shape[1]), seen.signed.tolist())
    with styled():
        side_by_side = draw_fields(drawn, pictures[:SHOWN])
        moved = draw_transforms(drawn, pictures[0])
        by_distance = draw_profiles(averaged)
    for figure, name, caption in (
        (
            side_by_side,
            "fields",
            "Effective receptive field of the unit at +, by model: magnitude of its gradient to "
            "the picture; the radius holds half of the energy, and so much of it lies on the outlined object.",
        ),
        (moved, "transforms", "Effective receptive fields of a picture as it is, rotated and scaled."),
        (
            by_distance,
            "profile",
            "The gradient by its distance from the unit, averaged over pictures or checkpoints, "
            "with 95 % intervals of the mean.",
        ),
    ):
        files += save_figure(figure, folder, name, caption + _remarks(observations))
    return files


def _remarks(observations: Sequence[Observation]) -> str:
    """Tells what a caption has to say beside what is drawn: whose weights are random, whose units are dead."""
    models = dict.fromkeys(seen.model for seen in observations)
    random = [model for model in models if not all(seen.trained for seen in observations if seen.model == model)]
    dead = []
    for model in models:
        own = [seen.dead for seen in observations if seen.model == model]
        dead += [f"{sum(own)} of {len(own)} of {model}"] if any(own) else []
    words = f" Not trained: {', '.join(random)}." if random else ""
    return words + (f" Left out, as their gradient is zero, units: {', '.join(dead)}." if dead else "")


def _row(seen: Observation) -> list[object]:
    own = seen.measures
    measured = [own.sigma, own.radius, own.area] if own else [None] * 3
    measured += [seen.inside, seen.covered, seen.agreement, seen.dead]
    return [seen.model, seen.trained, seen.picture, seen.kind, *seen.centre, *measured]
