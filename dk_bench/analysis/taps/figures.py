"""Figures 1 and 5 of the paper: taps on an image and in the scope, stored and sampled kernels, offsets by layer."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from dk_bench.analysis.drawing import COLORS, GREY, save_figure, styled
from dk_bench.analysis.learned import KERNEL
from dk_bench.analysis.taps.study import LayerTaps, Offsets, TapsStudy

CHANNELS = 3  # with the largest norm, shown beside the mean
SHOWN = 20_000  # offsets that a violin is drawn from
BEFORE, AFTER, CLIPPED = COLORS[0], "#E8601C", "#DC050C"
VIOLIN = {"orientation": "horizontal", "widths": 0.85, "showextrema": False, "showmedians": True}
HALO = {"markeredgecolor": "white", "markeredgewidth": 0.6}
TAPS = (
    "Where taps read the image and the scope at the position +, at the start of training and as learnt; the stored "
    "kernel and what the taps sample of it."
)
OFFSETS = "Learned offsets over all positions by layer, and the share of taps outside the scope or the input."


def write_figures(study: TapsStudy, folder: Path) -> list[Path]:
    """Writes both figures as PNG and PDF. Raises UserError where it cannot."""
    picture = study.picture.copy()
    picture.thumbnail((640, 640))  # larger ones only make files larger
    with styled():
        taps = taps_figure(study.layers, np.asarray(picture), study.position)
        return [
            *save_figure(taps, folder, "taps", TAPS),
            *save_figure(offsets_figure(study.offsets), folder, "offsets", OFFSETS),
        ]


def channels_shown(layer: LayerTaps) -> list[int]:
    """Returns the channels with the largest norm of the stored kernel."""
    norms = np.square(layer.stored).sum((1, 2))
    return np.sort(np.argsort(-norms, kind="stable")[:CHANNELS]).tolist()


def taps_figure(layers: list[LayerTaps], picture: np.ndarray, position: tuple[float, float]) -> Figure:
    """Returns a row a layer: taps on the image (H, W, 3), taps in the scope over the mean magnitude (dark: large), what
    is sampled; then some channels, stored and sampled. ``position`` is (y, x) as shares of the image."""
    with_scope = any(layer.kernel for layer in layers)
    titles = ["mean |weight|,\ntaps in the scope", "sampled"] if with_scope else ["mean |weight|"]
    columns = 1 + len(titles) + len(titles) * CHANNELS
    figure = Figure(figsize=(1.45 * columns + 1.2, 1.75 * len(layers) + 0.8))
    axes = figure.subplots(len(layers), columns, squeeze=False, width_ratios=[1.5, *[1.0] * (columns - 1)])
    for row, layer in enumerate(layers):
        _on_image(axes[row, 0], layer, picture, position)
        axes[row, 0].set_ylabel(layer.name)
        _kernels(axes[row, 1:], layer, len(titles))
    for axis, title in zip(axes[0], ["taps on the image", *titles], strict=False):
        axis.set_title(title, fontsize=9)
    marks = [("o", BEFORE, "before"), ("o", AFTER, "after"), ("X", CLIPPED, "after, clipped to the edge")]
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=color, label=words, **HALO)
        for marker, color, words in marks[: 2 + with_scope]
    ]
    handles += [Patch(color="#7F3B08", label="negative weight"), Patch(color="#2D004B", label="positive weight")]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _on_image(axis: Axes, layer: LayerTaps, picture: np.ndarray, position: tuple[float, float]) -> None:
    size = np.array(picture.shape[:2])
    first, stride = np.array(layer.lattice).T

    def pixels(taps: np.ndarray) -> np.ndarray:  # (x, y) in the picture, whose pixels have their centres at integers
        return ((first + taps * stride + 0.5) * size / layer.image_size - 0.5)[:, ::-1].T

    axis.imshow(picture)
    axis.plot(*pixels(layer.resting), "o", color=BEFORE, markersize=4, **HALO)
    for taps in layer.data or []:
        _arrows(axis, pixels(taps.before), pixels(taps.after))
        axis.plot(*pixels(taps.after), "o", color=AFTER, markersize=4, **HALO)
    y, x = np.array(position) * size - 0.5
    axis.plot(x, y, "+", color="white", markersize=9, markeredgewidth=2.4)
    axis.plot(x, y, "+", color="black", markersize=8, markeredgewidth=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.autoscale()  # taps may lie beyond the image


def _kernels(axes: np.ndarray, layer: LayerTaps, parts: int) -> None:
    """Draws the mean and some channels, in ``parts`` panels each: stored, and as sampled where taps move in a scope."""
    mean, sampled = np.abs(layer.stored).mean(0), np.abs(layer.sampled).mean(0)
    top = max(mean.max(), sampled.max())
    _map(axes[0], mean, "Greys", 0, top)
    if layer.kernel is None:
        axes[0].set_xlabel("rigid kernel", fontsize=8)
    else:
        _in_scope(axes[0], layer)
        _map(axes[1], sampled, "Greys", 0, top)
    for number, channel in enumerate(channels_shown(layer)):
        pair = (layer.stored[channel], layer.sampled[channel])
        limit = max(np.abs(each).max() for each in pair)
        for part, what in enumerate(("stored", "sampled") if layer.kernel else ("rigid",)):
            axis = axes[parts * (1 + number) + part]
            _map(axis, pair[part], "PuOr", -limit, limit)
            output, read = layer.pair(channel)
            about = f"channel {output}" if layer.inputs == 1 else f"channel {output} of {read}"
            axis.set_title(f"{about}:\n{what}", fontsize=8)
    for axis in axes:
        if not axis.images:
            axis.set_axis_off()


def _in_scope(axis: Axes, layer: LayerTaps) -> None:
    taps, size = layer.kernel, np.array(layer.stored.shape[1:])
    landed = np.clip(taps.after, 0, size - 1)
    _arrows(axis, taps.before[:, ::-1].T, landed[:, ::-1].T)
    axis.plot(*taps.before[:, ::-1].T, "o", color=BEFORE, markersize=4, **HALO)
    for outside, color, marker in ((False, AFTER, "o"), (True, CLIPPED, "X")):
        axis.plot(*landed[taps.outside == outside][:, ::-1].T, marker, color=color, markersize=5, **HALO)


def _arrows(axis: Axes, start: np.ndarray, end: np.ndarray) -> None:
    axis.quiver(*start, *(end - start), angles="xy", scale_units="xy", scale=1, color=AFTER, width=0.008, headwidth=4)


def _map(axis: Axes, values: np.ndarray, cmap: str, low: float, high: float) -> None:
    axis.imshow(values, cmap=cmap, vmin=low, vmax=high or 1.0)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    height, width = values.shape
    axis.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=GREY, clip_on=False))


def offsets_figure(found: list[Offsets]) -> Figure:
    """Draws a violin a layer for each kind of offsets, dy above and dx below the line; the share of taps outside."""
    kinds = list(dict.fromkeys(each.source.kind for each in found))
    rows = [sum(each.source.kind == kind for each in found) for kind in kinds]
    figure = Figure(figsize=(8.5, 0.5 * sum(rows) + 1.1 * len(kinds) + 0.5))
    panels = figure.subplots(len(kinds), 2, squeeze=False, height_ratios=rows, width_ratios=[2.2, 1])
    for (left, right), kind in zip(panels, kinds, strict=True):
        of_kind = [each for each in found if each.source.kind == kind]
        places = np.arange(len(of_kind))
        for axis, side, color in ((0, "high", COLORS[0]), (1, "low", COLORS[1])):
            values = [each.values[:, axis].ravel() for each in of_kind]
            some = [flat[:: max(1, len(flat) // SHOWN)] for flat in values]  # evenly apart, as many as a violin needs
            drawn = left.violinplot(some, -places, side=side, **VIOLIN)
            for body in drawn["bodies"]:
                body.set(facecolor=color, alpha=0.8)
            drawn["cmedians"].set(color="white")
        left.set_yticks(-places, [each.source.layer for each in of_kind])
        left.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        left.set(title=kind, xlabel=f"offset ({'samples of the scope' if kind == KERNEL else 'pixels of its input'})")
        outside = [100 * each.outside for each in of_kind]
        bars = right.barh(-places, outside, color=GREY, height=0.6)
        right.bar_label(bars, [f"{share:.1f} %" for share in outside], padding=3, fontsize=9)
        if kind != KERNEL:
            right.plot([100 * each.outside_before for each in of_kind], -places, "|", color="black", markersize=12)
        right.set(yticks=[], xlabel="% of taps", ylim=left.get_ylim())
        right.set_title("clipped at the scope's edge" if kind == KERNEL else "outside the input (|: rigid taps)")
        right.margins(x=0.25)
    handles = [Patch(color=COLORS[0], label="dy"), Patch(color=COLORS[1], label="dx")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure
