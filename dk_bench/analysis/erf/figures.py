"""Figures of effective receptive fields: models side by side, a picture rotated and scaled, profiles by distance."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dk_bench.analysis.drawing import COLORS, GREY
from dk_bench.analysis.erf.study import KINDS, Observation
from dk_bench.analysis.erf.summary import PARTS, Profile
from dk_bench.analysis.pictures import Picture

PANEL = 1.9  # inches
HEAT, UNIT = "inferno", "#00e5ff"
TITLES = {"original": "as it is", "rotated": "rotated by 90°", "scaled": "scaled by 1.5"}


def draw_fields(observations: Sequence[Observation], pictures: Sequence[Picture]) -> Figure:
    """Returns a row a picture, a column a model: the field over the picture (figure 4 of the paper)."""
    models = list(dict.fromkeys(seen.model for seen in observations))
    figure, panels = _panels(len(pictures), 1 + len(models))
    for row, picture in enumerate(pictures):
        _show(panels[row][0], picture)
        for column, model in enumerate(models, start=1):
            seen = _find(observations, model, picture.name, "original")
            _show(panels[row][column], picture, seen)
            if row == 0:
                panels[row][column].set_title(model.replace(" (", "\n("), fontsize=8)
    _key(figure, panels[:, 1:], any(picture.mask is not None for picture in pictures))
    return figure


def draw_transforms(observations: Sequence[Observation], picture: Picture) -> Figure:
    """Returns a row a model, a column a transformation of one picture (figure 6 of the paper)."""
    models = list(dict.fromkeys(seen.model for seen in observations))
    figure, panels = _panels(1 + len(models), len(KINDS))
    for column, kind in enumerate(KINDS):
        moved = picture if kind == "original" else picture.transformed(kind)
        panels[0][column].set_title(TITLES[kind], fontsize=9)
        _show(panels[0][column], moved)
        for row, model in enumerate(models, start=1):
            _show(panels[row][column], moved, _find(observations, model, picture.name, kind))
            if column == 0:
                panels[row][0].set_ylabel(model.replace(" (", "\n("), fontsize=8)
    _key(figure, panels, picture.mask is not None)
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(PANEL * columns, PANEL * rows + 0.9), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _find(observations: Sequence[Observation], model: str, picture: str, kind: str) -> Observation:
    return next(o for o in observations if (o.model, o.picture, o.kind) == (model, picture, kind))


def _show(axes: Axes, picture: Picture, seen: Observation | None = None) -> None:
    """Shows a picture with its object's outline, and a field over it as heat, brightest at its 99.5th percentile."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    image = np.asarray(picture.image, float) / 255
    axes.imshow(image if seen is None else 0.25 + 0.5 * image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    if seen and seen.dead:
        axes.set_xlabel("dead unit: no gradient", fontsize=7, labelpad=2)
    elif seen:
        heat = np.clip(seen.absolute / max(np.percentile(seen.absolute, 99.5), 1e-30), 0, 1)
        axes.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.15 + 0.85 * np.sqrt(heat))
        y, x = seen.centre
        axes.plot(x, y, "+", color=UNIT, markersize=6, markeredgewidth=1)
        inside = "" if seen.inside is None else f", {100 * seen.inside:.0f} % inside"
        axes.set_xlabel(f"radius {seen.measures.radius:.1f} px{inside}", fontsize=7, labelpad=2)
    if picture.mask is not None and picture.mask.any():
        axes.contour(picture.mask, levels=[0.5], colors=UNIT, linewidths=0.7)


def _key(figure: Figure, panels: np.ndarray, outlined: bool) -> None:
    """Tells what colours and marks are, under the panels."""
    layout = {"orientation": "horizontal", "fraction": 0.02, "aspect": 40, "pad": 0.02}
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=panels.ravel().tolist(), **layout)
    bar.set_ticks([0, 1], labels=["0", "99.5th percentile"], fontsize=7)
    bar.set_label("|gradient|, each panel's own scale", fontsize=7, labelpad=-4)
    bar.outline.set_visible(False)
    handles = [Line2D([], [], linestyle="", marker="+", color=UNIT, markeredgewidth=1.5, label="unit")]
    handles += [Line2D([], [], color=UNIT, linewidth=1, label="object")] * outlined
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def draw_profiles(found: Sequence[Profile]) -> Figure:
    """Draws the absolute gradient to the left, the signed one to the right, each kind of model as a line in a band."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), PARTS, strict=True):
        for number, each in enumerate(found):
            mean = 100 * np.array([value.mean for value in each.parts[name]])
            half = 100 * np.array([value.half_width or 0.0 for value in each.parts[name]])
            color, place = COLORS[number % len(COLORS)], range(len(mean))
            axes.plot(place, mean, color=color, label=f"{each.model} ({each.count} {each.over})", linewidth=1.2)
            axes.fill_between(place, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        axes.set(xlabel="distance from the unit (pixels)", title=f"{name} gradient")
        axes.set_xlim(0, _reach(found))
    figure.axes[0].set_ylabel("share of the field a pixel (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _reach(found: Sequence[Profile]) -> int:
    """Returns the distance within which every absolute profile falls to a hundredth of its largest value."""
    profiles = [np.array([value.mean for value in each.parts["absolute"]]) for each in found]
    return max(int(np.flatnonzero(means > means.max() / 100)[-1]) + 1 for means in profiles)
