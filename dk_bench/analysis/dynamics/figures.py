"""Figure 3 of the paper, t-SNE of learned dynamics, and what the probes tell from them."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from dk_bench.analysis.drawing import COLORS, GREY, MARKERS, save_figure, styled
from dk_bench.analysis.dynamics.linear_probe import CLASS
from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, Dynamics, DynamicsStudy, ProbeScore
from dk_bench.analysis.objects import Objects
from dk_bench.analysis.outputs import write_csv
from dk_bench.tables.statistics import summarize

Row = tuple[str, str]  # a cell and a kind of its dynamics
COLUMNS = 5  # panels in a row
DECILES = colormaps["viridis"].resampled(10)
PROBE = "What linear probes tell of held-out objects from learned dynamics, with 95 % intervals."
POINTS = "t-SNE of learned dynamics, a point an object: coloured by class above, by decile of its scale below."


def write_figures(study: DynamicsStudy, folder: Path, tsne: int, perplexity: float) -> list[Path]:
    """Writes the probes' scores and t-SNE of so many objects as PNG and PDF; the points of t-SNE as CSV. Raises
    UserError where it cannot."""
    drawn = study.drawn
    words = [each.loaded.words for each in drawn]
    names = {each.loaded.cell: each.loaded.words for each in drawn}
    names |= {each.loaded.cell: each.loaded.name for each in drawn if words.count(each.loaded.words) > 1}
    scores, objects = study.results.scores, study.objects
    with styled():
        written = save_figure(probe_figure(scores, names, study.results.chance), folder, "probe", PROBE)
        if not tsne:
            return written
        chosen = np.sort(np.random.default_rng(0).permutation(len(objects))[:tsne])
        maps = {
            (each.loaded.cell, kind): embed(each.joined(kind)[chosen], perplexity)
            for each in drawn
            for kind in each.learned
        }
        written.append(write_csv(folder, "tsne", _points(maps, drawn, objects, chosen)))
        return written + save_figure(tsne_figure(maps, names, objects, chosen, scores), folder, "tsne", POINTS)


def _points(
    maps: dict[Row, np.ndarray], drawn: Sequence[Dynamics], objects: Objects, chosen: np.ndarray
) -> Iterator[dict[str, object]]:
    """Gives the lines of tsne.csv, one a point."""
    loaded = {each.loaded.cell: each.loaded for each in drawn}
    decile = deciles(objects.scale)
    for (cell, kind), points in maps.items():
        for index, point in zip(chosen, points, strict=True):
            of_model = {"model": loaded[cell].name, "cell": cell, "seed": loaded[cell].config.seed, "kind": kind}
            of_object = {"class": objects.classes[objects.label[index]], "scale": float(objects.scale[index])}
            place = dict(zip("xy", map(float, point), strict=True))
            yield of_model | {"object": int(index)} | of_object | {"scale decile": int(decile[index]) + 1} | place


def embed(features: np.ndarray, perplexity: float) -> np.ndarray:
    """Returns t-SNE of standardised features (M, D), (M, 2): the same for the same features."""
    standard = StandardScaler().fit_transform(features)
    init = "pca" if np.ptp(standard) > 0 else "random"  # of a model not trained yet all are the same
    return TSNE(perplexity=perplexity, init=init, random_state=0).fit_transform(standard)


def deciles(scale: np.ndarray) -> np.ndarray:
    """Returns the tenth of all objects that each is in, (M,) from 0 to 9; ties by order."""
    return np.argsort(np.argsort(scale, kind="stable")) * 10 // len(scale)


def tsne_figure(
    maps: dict[Row, np.ndarray], names: dict[str, str], objects: Objects, chosen: np.ndarray, scores: list[ProbeScore]
) -> Figure:
    """Returns a column a map (M, 2) of the objects that are ``chosen`` (M,): coloured by class above, by scale decile
    below. ``names`` are the cells'. Of more than ten classes the ten with most objects have colours."""
    label, decile, told = objects.label[chosen], deciles(objects.scale)[chosen], captions(scores)
    bands = math.ceil(len(maps) / COLUMNS)
    columns = math.ceil(len(maps) / bands)
    figure = Figure(figsize=(2.5 * columns + 1.5, 5.8 * bands))
    parts = figure.subfigures(bands, 1, squeeze=False, hspace=0.05)[:, 0]
    axes = np.stack([part.subplots(2, columns, squeeze=False) for part in parts])
    for axis in axes.flat:
        axis.set_axis_off()
    common = sorted(np.argsort(-np.bincount(label, minlength=len(objects.classes)), kind="stable")[: len(COLORS)])
    for index, (row, points) in enumerate(maps.items()):
        band, column = divmod(index, columns)
        above, below = axes[band, :, column]
        _by_class(above, points, label, common)
        below.scatter(*points.T, c=DECILES(decile), s=7, linewidths=0)
        above.set_title(f"{names[row[0]]}\n{row[1]}")
        for axis, caption in zip((above, below), told[row], strict=True):
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[], xlabel=caption)
            axis.spines[:].set_visible(False)
    _legends(figure, [objects.classes[each] for each in common], len(objects.classes) > len(common))
    return figure


def captions(scores: list[ProbeScore]) -> dict[Row, tuple[str, str]]:
    """Says, for t-SNE's panels, what the probes of all layers tell of class and scale, mean over seeds."""
    found: dict[Row, dict[str, list[float]]] = {}
    for score in scores:
        if (score.layer, score.features) == (ALL, LEARNED):
            found.setdefault((score.cell, score.kind), {}).setdefault(score.target, []).append(score.value)
    return {
        row: (
            f"probe: class {np.mean(of[CLASS]):.0f} %" if CLASS in of else "one class",
            f"probe: scale $R^2$ = {np.mean(of['log scale']):.2f}" if "log scale" in of else "one scale",
        )
        for row, of in found.items()
    }


def _by_class(axis: Axes, points: np.ndarray, label: np.ndarray, common: list[int]) -> None:
    rare = ~np.isin(label, common)
    axis.scatter(*points[rare].T, c=GREY, s=4, linewidths=0)
    for number, each in enumerate(common):
        axis.scatter(*points[label == each].T, c=COLORS[number], marker=MARKERS[number], s=9, linewidths=0)


def _legends(figure: Figure, names: list[str], more: bool) -> None:
    def dot(color: object, marker: str, label: str) -> Line2D:
        return Line2D([], [], color=color, marker=marker, label=label, linestyle="", markersize=5)

    handles = list(map(dot, COLORS, MARKERS, names)) + [dot(GREY, "o", "others")] * more
    figure.legend(handles=handles, loc="outside right upper", title="class", frameon=False)
    ends = {0: "1 (smallest)", 9: "10 (largest)"}
    handles = [dot(DECILES(each), "o", ends.get(each, str(each + 1))) for each in range(10)]
    figure.legend(handles=handles, loc="outside right lower", title="scale decile", frameon=False)


def probe_figure(scores: list[ProbeScore], names: dict[str, str], chance: float) -> Figure:
    """Draws a panel a target, a row a kind of dynamics: the learned one filled, the random generator's hollow. Bars are
    95 % intervals, over seeds where there are several, otherwise over images. ``names`` are cells' names."""
    whole = [score for score in scores if score.layer == ALL and score.features in (LEARNED, RANDOM)]
    targets = list(dict.fromkeys(score.target for score in whole))
    rows = list(dict.fromkeys((score.cell, score.kind) for score in whole))
    figure = Figure(figsize=(2.0 * len(targets) + 2.4, 0.42 * len(rows) + 1.5))
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axis, target in zip(panels, targets, strict=True):
        axis.axvline(chance if target == CLASS else 0.0, color=GREY, linewidth=1, linestyle=":")
        for place, row in enumerate(rows):
            own = [score for score in whole if (score.cell, score.kind) == row and score.target == target]
            _bar(axis, place - 0.13, [score for score in own if score.features == LEARNED], COLORS[0], COLORS[0])
            _bar(axis, place + 0.17, [score for score in own if score.features == RANDOM], COLORS[1], "white")
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


def _bar(axis: Axes, place: float, scores: list[ProbeScore], color: str, face: str) -> None:
    """Draws the mean of one score or of several seeds' with its interval."""
    found = summarize([score.value for score in scores])
    below = above = found.half_width
    if found.n == 1:
        below, above = max(0.0, found.mean - scores[0].low), max(0.0, scores[0].high - found.mean)
    mark = {"marker": "o", "markersize": 5, "capsize": 2, "linewidth": 1.2, "markerfacecolor": face}
    axis.errorbar(found.mean, place, xerr=[[below], [above]], color=color, **mark)
