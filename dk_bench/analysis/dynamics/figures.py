"""Figure 3 of the paper, t-SNE of learned dynamics, and what the probes tell from them."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from dk_bench.analysis.drawing import COLORS, GREY, MARKERS
from dk_bench.analysis.dynamics.probe import CLASS
from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, Line
from dk_bench.tables.statistics import summarize

__all__ = ["captions", "deciles", "embed", "probe_figure", "tsne_figure"]

Row = tuple[str, str]  # a cell and a kind of its dynamics
COLUMNS = 5  # panels in a row
DECILES = colormaps["viridis"].resampled(10)


def embed(features: np.ndarray, perplexity: float) -> np.ndarray:
    """(M, 2): t-SNE of standardised features (M, D). The same for the same features."""
    standard = StandardScaler().fit_transform(features)
    init = "pca" if np.ptp(standard) > 0 else "random"  # of a model not trained yet all are the same
    return TSNE(perplexity=perplexity, init=init, random_state=0).fit_transform(standard)


def deciles(scale: np.ndarray) -> np.ndarray:
    """(M,) from 0 to 9: by rank, so that each has as many objects, up to one; ties by order."""
    return np.argsort(np.argsort(scale, kind="stable")) * 10 // len(scale)


def tsne_figure(
    maps: dict[Row, np.ndarray],
    names: dict[str, str],
    label: np.ndarray,
    decile: np.ndarray,
    classes: list[str],
    captions: dict[Row, tuple[str, str]],
) -> Figure:
    """Returns a column a map (M, 2): coloured by class above, by scale decile below. ``names`` are the cells',
    ``captions`` what stands under the two panels. Of more than ten classes the ten with most objects have colours."""
    bands = math.ceil(len(maps) / COLUMNS)
    columns = math.ceil(len(maps) / bands)
    figure = Figure(figsize=(2.5 * columns + 1.5, 5.8 * bands))
    parts = figure.subfigures(bands, 1, squeeze=False, hspace=0.05)[:, 0]
    axes = np.stack([part.subplots(2, columns, squeeze=False) for part in parts])
    for axis in axes.flat:
        axis.set_axis_off()
    common = sorted(np.argsort(-np.bincount(label, minlength=len(classes)), kind="stable")[: len(COLORS)])
    for index, (row, points) in enumerate(maps.items()):
        band, column = divmod(index, columns)
        above, below = axes[band, :, column]
        _by_class(above, points, label, common)
        below.scatter(*points.T, c=DECILES(decile), s=7, linewidths=0)
        above.set_title(f"{names[row[0]]}\n{row[1]}")
        for axis, caption in zip((above, below), captions[row], strict=True):
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[], xlabel=caption)
            axis.spines[:].set_visible(False)
    _legends(figure, [classes[each] for each in common], len(classes) > len(common))
    return figure


def captions(lines: list[Line]) -> dict[Row, tuple[str, str]]:
    """Tells what the probes of all layers tell of class and scale, mean over seeds: what stands under t-SNE's
    panels.
    """
    found: dict[Row, dict[str, list[float]]] = {}
    for line in lines:
        if (line.layer, line.features) == (ALL, LEARNED):
            found.setdefault((line.cell, line.kind), {}).setdefault(line.target, []).append(line.value)

    def told(values: dict[str, list[float]]) -> tuple[str, str]:
        tops, scales = values.get(CLASS), values.get("log scale")
        return (
            f"probe: class {np.mean(tops):.0f} %" if tops else "one class",
            f"probe: scale $R^2$ = {np.mean(scales):.2f}" if scales else "one scale",
        )

    return {row: told(values) for row, values in found.items()}


def _by_class(axis: Axes, points: np.ndarray, label: np.ndarray, common: list[int]) -> None:
    rare = ~np.isin(label, common)
    axis.scatter(*points[rare].T, c=GREY, s=4, linewidths=0)
    for number, each in enumerate(common):
        axis.scatter(*points[label == each].T, c=COLORS[number], marker=MARKERS[number], s=9, linewidths=0)


def _legends(figure: Figure, names: list[str], more: bool) -> None:
    dot = {"linestyle": "", "markersize": 5}
    handles = [
        Line2D([], [], color=COLORS[number], marker=MARKERS[number], label=name, **dot)
        for number, name in enumerate(names)
    ] + [Line2D([], [], color=GREY, marker="o", label="others", **dot)] * more
    figure.legend(handles=handles, loc="outside right upper", title="class", frameon=False)
    ends = {0: "1 (smallest)", 9: "10 (largest)"}
    handles = [
        Line2D([], [], color=DECILES(each), marker="o", label=ends.get(each, str(each + 1)), **dot)
        for each in range(10)
    ]
    figure.legend(handles=handles, loc="outside right lower", title="scale decile", frameon=False)


def probe_figure(lines: list[Line], names: dict[str, str], chance: float) -> Figure:
    """Returns a panel a target, a row a kind of dynamics: the learned one filled, the random generator's hollow. Bars
    are 95 % intervals, over seeds where there are several, otherwise over images. ``names`` are cells' names."""
    whole = [line for line in lines if line.layer == ALL and line.features in (LEARNED, RANDOM)]
    targets = list(dict.fromkeys(line.target for line in whole))
    rows = list(dict.fromkeys((line.cell, line.kind) for line in whole))
    figure = Figure(figsize=(2.0 * len(targets) + 2.4, 0.42 * len(rows) + 1.5))
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axis, target in zip(panels, targets, strict=True):
        axis.axvline(chance if target == CLASS else 0.0, color=GREY, linewidth=1, linestyle=":")
        for place, row in enumerate(rows):
            for features, shift in ((LEARNED, -0.13), (RANDOM, 0.17)):
                found = [ln for ln in whole if ((ln.cell, ln.kind), ln.target, ln.features) == (row, target, features)]
                value, below, above = _interval(found)
                color = COLORS[0] if features == LEARNED else COLORS[1]
                axis.errorbar(
                    value,
                    place + shift,
                    xerr=[[below], [above]],
                    color=color,
                    marker="o",
                    markersize=5,
                    capsize=2,
                    linewidth=1.2,
                    markerfacecolor=color if features == LEARNED else "white",
                )
        axis.set_title("class: accuracy (%)" if target == CLASS else f"{target}: $R^2$")
        axis.grid(axis="x", linewidth=0.4)
        axis.set_xlim((0, 100) if target == CLASS else (-0.25, 1))
        axis.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), [f"{names[cell]}: {kind}" for cell, kind in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=COLORS[0], marker="o", markersize=5, label="learned"),
        Line2D([], [], color=COLORS[1], marker="o", markersize=5, markerfacecolor="white", label="random generator"),
        Line2D([], [], color=GREY, linestyle=":", label="chance"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _interval(lines: list[Line]) -> tuple[float, float, float]:
    """Returns a value and how far its interval reaches to both sides."""
    if len(lines) == 1:
        return lines[0].value, max(0.0, lines[0].value - lines[0].low), max(0.0, lines[0].high - lines[0].value)
    found = summarize([line.value for line in lines])
    return found.mean, found.half_width, found.half_width
