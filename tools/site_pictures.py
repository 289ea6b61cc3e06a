"""Draws the pictures of docs/mathematics.md and docs/offsets.md, from the package's own functions and from records.

python tools/site_pictures.py            # writes docs/pictures/*.svg; the same bytes every time
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dk_bench.analysis.drawing import COLORS, GREY, styled
from dk_bench.analysis.dynamics.linear_probe import CLASS
from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, SHUFFLED
from dk_bench.analysis.dynamics.tables import read_tables
from dk_bench.nn.scope import grid_offset
from dk_bench.reference import tap_weights
from dk_bench.reference.sample_kernel import hat
from dk_bench.tables.statistics import summarize

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
STORED, TAP, MOVED = GREY, COLORS[0], COLORS[1]
# Offsets of nine taps as a generator might give them, for pictures alone.
OFFSETS = torch.stack(
    [
        torch.tensor([-0.2, -0.45, 0.3, 0.4, -0.1, -0.3, 0.45, 0.3, 0.2]),  # dy
        torch.tensor([-0.4, 0.3, 0.35, -0.3, 0.2, 0.45, 0.2, -0.4, 0.7]),  # dx
    ],
    dim=1,
)


def resting_places(kernel: int, scope: int, grid: str) -> torch.Tensor:
    """Returns where taps start, (K K, 2) as (y, x) in samples of the scope."""
    steps = torch.arange(kernel, dtype=torch.float64) + (scope - kernel) / 2
    return torch.cartesian_prod(steps, steps) + grid_offset((kernel, kernel), (scope, scope), grid).view(-1, 2)


def draw_samples(axes: Axes, scope: int, title: str) -> None:
    """Draws the scope: its stored values as squares, and the edge that taps are clipped to."""
    places = torch.cartesian_prod(torch.arange(scope), torch.arange(scope))
    axes.scatter(places[:, 1], places[:, 0], marker="s", s=70, facecolor="white", edgecolor=STORED, zorder=1)
    axes.add_patch(matplotlib.patches.Rectangle((0, 0), scope - 1, scope - 1, fill=False, linestyle=":", color=STORED))
    axes.set(xlim=(-0.7, scope - 0.3), ylim=(scope - 0.3, -0.7), aspect="equal", xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def draw_arrows(axes: Axes, begin: torch.Tensor, end: torch.Tensor) -> None:
    for (y, x), (to_y, to_x) in zip(begin.tolist(), end.tolist(), strict=True):
        style = {"arrowstyle": "->", "color": MOVED, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=style)
    axes.scatter(begin[:, 1], begin[:, 0], s=18, color=TAP, zorder=3)


def scope() -> Figure:
    """A 3 x 3 kernel in a scope of 4 x 4: where taps start, where offsets put them, what one of them reads."""
    figure = Figure(figsize=(9, 3.3))
    start, moves, reads = figure.subplots(1, 3)
    rest = resting_places(3, 4, "centred")
    moved = (rest + OFFSETS).clamp(0, 3)
    draw_samples(start, 4, "taps start in the middle of the scope")
    start.scatter(rest[:, 1], rest[:, 0], s=18, color=TAP, zorder=3)
    draw_samples(moves, 4, "offsets move them, inside the scope")
    draw_arrows(moves, rest, moved)
    draw_samples(reads, 4, "a tap reads its four neighbours")
    weights = tap_weights(OFFSETS.flatten()[None].double(), (3, 3), (4, 4), clip=True)[0, 4].view(4, 4)
    for y, x in weights.nonzero().tolist():
        reads.text(x, y - 0.32, f"{weights[y, x]:.2f}", ha="center", va="center", fontsize=9)
        reads.plot([x, moved[4, 1]], [y, moved[4, 0]], color=MOVED, linewidth=6 * weights[y, x], alpha=0.5, zorder=0)
    reads.scatter(*moved[4].flip(0), s=24, color=MOVED, zorder=3)
    return figure


def hats() -> Figure:
    """The coefficients of one axis: a hat over each stored value, clipped at the edge or not."""
    figure = Figure(figsize=(9, 2.6))
    coordinate = torch.linspace(-1.2, 4.2, 541, dtype=torch.float64)
    for axes, clip in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        for sample, values in enumerate(hat(coordinate, 4, clip).T):
            axes.plot(coordinate, values, color=COLORS[sample], label=f"of value {sample}")
        axes.set(title=f"clip={clip}", xlabel="coordinate of a tap, in samples", xticks=range(-1, 5))
    figure.axes[0].set_ylabel("coefficient")
    figure.axes[1].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def grids() -> Figure:
    """Where the nine taps of a 3 x 3 kernel start in scopes of several sizes, centred and spread."""
    figure = Figure(figsize=(9, 4.6))
    sizes = (3, 4, 5, 9)
    for row, grid in zip(figure.subplots(2, len(sizes)), ("centred", "spread"), strict=True):
        for axes, size in zip(row, sizes, strict=True):
            draw_samples(axes, size, f"scope {size}, {grid}")
            axes.collections[0].set_sizes([280 / size])
            places = resting_places(3, size, grid)
            axes.scatter(places[:, 1], places[:, 0], s=18, color=TAP, zorder=3)
    return figure


def learning() -> Figure:
    """How fast each of the kernel's nine directions learns, beside a rigid kernel: the eigenvalues of A times A^T."""
    figure = Figure(figsize=(6, 2.8))
    axes = figure.subplots()
    for grid, color in (("centred", TAP), ("spread", MOVED)):
        start = grid_offset((3, 3), (4, 4), grid)[None]
        read = tap_weights(start, (3, 3), (4, 4), clip=True)[0]
        factors = torch.linalg.eigvalsh(read @ read.T).flip(0)
        axes.plot(range(1, 10), factors, "o-", color=color, label=f"scope 4, {grid}")
    axes.axhline(1, color=STORED, linestyle=":", label="rigid, and scopes 3, 5 and 9")
    axes.set(xlabel="direction of the 3 x 3 kernel, fastest first", ylabel="step over rigid step", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def adaptation() -> Figure:
    """What a rigid convolution, deformable convolution and a deformable kernel read, of the data and of the kernel."""
    figure = Figure(figsize=(9, 5))
    rest = torch.cartesian_prod(torch.arange(3), torch.arange(3)).double()
    cases = (("rigid", False, False), ("deformable convolution", True, False), ("deformable kernel", False, True))
    for column, (name, data, kernel) in zip(figure.subplots(2, 3).T, cases, strict=True):
        draw_samples(column[0], 5, f"{name}\ndata")
        begin = rest + 1
        draw_arrows(column[0], begin, begin + 1.6 * OFFSETS * data)
        draw_samples(column[1], 4 if kernel else 3, "kernel")
        begin = resting_places(3, 4, "centred") if kernel else rest
        draw_arrows(column[1], begin, (begin + OFFSETS).clamp(0, 3) if kernel else begin)
    handles = [
        Line2D([], [], marker="s", color=STORED, markerfacecolor="white", linestyle="", label="pixel, or stored value"),
        Line2D([], [], marker="o", color=TAP, linestyle="", markersize=4, label="tap"),
        Line2D([], [], color=MOVED, label="learned offset"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def probes() -> Figure:
    """Of how many objects a linear probe tells the class, by what it reads it from."""
    found = read_tables(ROOT / "results" / "dynamics" / "probe.csv")
    scores = [score for score in found.scores if score.layer == ALL and score.target == CLASS]
    models = list(dict.fromkeys((score.model, score.kind) for score in scores))
    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots()
    for number, (features, color) in enumerate(((LEARNED, TAP), (RANDOM, STORED), (SHUFFLED, MOVED))):
        for place, model in enumerate(models):
            rows = [score for score in scores if (score.model, score.kind, score.features) == (*model, features)]
            told, label = summarize([score.value for score in rows]), "" if place else features
            axes.barh(place + (number - 1) * 0.27, told.mean, 0.25, xerr=told.half_width, color=color, label=label)
    axes.axvline(found.chance, color="black", linestyle=":", label="chance")
    axes.set_yticks(range(len(models)), [f"{model.removeprefix('test_resnetdw_')}: {kind}" for model, kind in models])
    axes.invert_yaxis()
    axes.set(xlabel="class told, % of objects (three seeds, 95 % interval)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


DRAWN: tuple[Callable[[], Figure], ...] = (adaptation, scope, hats, grids, learning, probes)


def write_pictures(folder: Path) -> list[Path]:
    """Writes all pictures as SVG, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with styled(), matplotlib.rc_context({"svg.hashsalt": "dk_bench"}):
        for draw in DRAWN:
            written.append(folder / f"{draw.__name__}.svg")
            draw().savefig(written[-1], metadata={"Date": None})
    return written


if __name__ == "__main__":
    print(*write_pictures(Path(sys.argv[1]) if sys.argv[1:] else PICTURES), sep="\n")
