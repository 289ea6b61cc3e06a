"""The plots of a report: accuracy against cost, differences to the rigid base, curves, operators' times."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from dk_bench.models import MODELS
from dk_bench.report.benches import Ratios
from dk_bench.report.svg import CARD, INK, MARKERS, drawing, label, series_colour, to_svg
from dk_bench.runs.record import RunRecord
from dk_bench.tables.cells import Cell, Data, gather
from dk_bench.tables.entries import Figure
from dk_bench.tables.rows import ModelRow, spec_of
from dk_bench.tables.table import as_figure
from dk_bench.tasks import KINDS

WIDE_RANGE = 15  # a span of values from which on an axis is logarithmic
TOOLTIP = 120  # characters of a name in one


@dataclass(frozen=True)
class PlottedCell:
    """A cell with its name and look in plots."""

    name: str
    cell: Cell
    colour: int | None
    marker: str

    @property
    def tooltip(self) -> str:
        return label(self.name, TOOLTIP)


@dataclass(frozen=True)
class Plot:
    """``key`` is unique on a page and names the plot in ids."""

    key: str
    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class Group:
    """Holds what may be compared: cells of one task on one data set."""

    key: str
    data: Data
    metric: str
    axis: str
    cells: list[PlottedCell]


def make_groups(records: Iterable[RunRecord]) -> list[Group]:
    """Returns groups with the rigid models first, then as the models are listed.

    A model has the same colour and marker in all of them.
    """
    records, groups, known = list(records), [], {name: place for place, name in enumerate(MODELS)}
    looks: dict[tuple[str, str], tuple[int | None, str]] = {}  # colours, None for that of text, and markers
    for kind in KINDS.values():
        cells = gather(record for record in records if record.task == kind.name)
        for data in sorted({cell.data for cell in cells}):
            here = [(spec_of(cell.model, cell).is_rigid, cell) for cell in cells if cell.data == data]
            plotted = []
            for rigid, cell in sorted(here, key=lambda item: (not item[0], known.get(item[1].model, len(known)))):
                # The first rigid model, which the others are compared with, is in the colour of text.
                colour = None if rigid and None not in dict(looks.values()) else len(looks)
                look = looks.setdefault((cell.model, cell.label), (colour, MARKERS[len(looks) % len(MARKERS)]))
                name = f"{cell.model}, {cell.label}" if cell.label else cell.model
                plotted.append(PlottedCell(name, cell, *look))
            groups.append(Group(f"g{len(groups)}", data, kind.metric, kind.words, plotted))
    return groups


def plots_of(group: Group) -> list[Plot]:
    """Returns the plots that there are figures for."""
    drawn = [
        _gains(group),
        _accuracy_and_cost(group),
        _curves(group, group.metric, f"{group.axis.removesuffix(', %')} during training", group.axis),
        _curves(group, "train/loss", "Training loss", "loss"),
    ]
    return [plot for plot in drawn if plot]


def _accuracy_and_cost(group: Group) -> Plot | None:
    """Draws the metric, with its interval, against multiply-adds. Marks of the same place stand side by side."""
    counts = [(shown, shown.cell.cost("macs"), shown.cell.final(group.metric)) for shown in group.cells]
    points = [(s, macs, figure) for s, macs, figure in counts if isinstance(macs, int | float) and figure.summary]
    if not points:
        return None
    largest = max(macs for _, macs, _ in counts if isinstance(macs, int | float))
    unit, axis = (1e9, "multiply-adds, billions") if largest >= 1e9 else (1e6, "multiply-adds, millions")
    points = [(shown, macs / unit, figure) for shown, macs, figure in points]
    tooltips = {f"t{n}": f"{s.tooltip}: {figure}, {x:.4g} {axis}" for n, (s, x, figure) in enumerate(points)}
    places: dict[float, list[PlottedCell]] = {}
    for shown, x, _ in points:
        places.setdefault(x, []).append(shown)
    with drawing() as (drawn, axes):
        for n, (shown, x, figure) in enumerate(points):
            same, summary = places[x], figure.summary
            aside = 7 * (same.index(shown) - (len(same) - 1) / 2) / 72
            shift = axes.transData + ScaledTranslation(aside, 0, drawn.dpi_scale_trans)
            _mark(axes, shown, (x, summary.mean), yerr=summary.half_width, gid=f"t{n}", transform=shift)
            # Errorbars that are moved aside do not count for the limits.
            axes.update_datalim([(x, summary.mean + sign * (summary.half_width or 0)) for sign in (-1, 1)])
        axes.autoscale_view()
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        _log_if_wide(axes, [x for _, x, _ in points])
        axes.set(xlabel=axis, ylabel=group.axis)
        note = _uncertainty([figure for *_, figure in points])
        note += " Marks of equal value are moved apart." * (max(map(len, places.values())) > 1)
        key, title = f"{group.key}-macs", "Accuracy and cost"
        return Plot(key, title, note, to_svg(drawn, key, title, tooltips))


def _uncertainty(figures: Sequence[Figure], several: str = "Bars: 95 % interval of the mean over seeds.") -> str:
    """Tells what bars and open marks stand for, as far as there are some."""
    single = [figure.summary.n == 1 for figure in figures]
    if all(single):
        return "One seed: no interval."
    return several + " Open marks: one seed, no interval." * any(single)


def _mark(axes: Axes, shown: PlottedCell, point: tuple[float, float], **settings) -> None:
    """Draws a mark with its bar, ``xerr`` or ``yerr``; open where a single seed says nothing about the spread."""
    colour = series_colour(shown.colour)
    is_open = settings.get("xerr", settings.get("yerr")) is None
    face, edge, width = (CARD, colour, 1.6) if is_open else (colour, CARD, 0.8)
    look = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width, "markersize": 8}
    axes.errorbar(*point, fmt=shown.marker, color=colour, elinewidth=1.3, **look, **settings)


def _gains(group: Group) -> Plot | None:
    """Draws differences to the rigid base, run by run, with their intervals."""
    cells = [shown.cell for shown in group.cells]
    judged = [(s, ModelRow(s.cell.model, s.cell, cells, group.metric).above_base()) for s in group.cells]
    points = [(shown, figure) for shown, value in judged if isinstance(figure := as_figure(value), Figure)]
    if not points:
        return None
    tooltips = {f"t{n}": f"{shown.tooltip}: {figure}" for n, (shown, figure) in enumerate(points)}
    with drawing(height=max(3.1, 0.32 * len(points) + 0.7)) as (drawn, axes):
        axes.axvline(0, color=INK, linewidth=1)
        for n, (shown, figure) in enumerate(points):
            _mark(axes, shown, (figure.summary.mean, n), xerr=figure.summary.half_width, gid=f"t{n}")
        _name_rows(axes, [label(shown.name) for shown, _ in points])
        axes.set(xlabel=f"difference in {group.axis.removesuffix(', %')}, points")
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 5, 10)))
        several = (
            "Paired by seed. Bars: 95 % interval, not corrected for the number of models, which have the base's runs "
            "in common."
        )
        note = _uncertainty([figure for _, figure in points], several)
        title, key = "Difference to the rigid base", f"{group.key}-gain"
        return Plot(key, title, note, to_svg(drawn, key, title, tooltips))


def _curves(group: Group, metric: str, title: str, axis: str) -> Plot | None:
    """Draws every epoch: thin lines for runs, dotted where they did not finish, bold for finished runs' mean."""
    curves = [
        (shown, [(run.status == "finished", _values(run, metric)) for run in shown.cell.runs]) for shown in group.cells
    ]
    if not any(values for _, runs in curves for _, values in runs):
        return None
    tooltips = {}
    with drawing() as (drawn, axes):
        for n, (shown, runs) in enumerate(curves):
            colour = series_colour(shown.colour)
            for done, values in runs:
                if values:
                    look = {"linestyle": "-" if done else ":", "marker": "" if len(values) > 1 else "."}
                    axes.plot(*zip(*values.items(), strict=True), color=colour, linewidth=0.9, alpha=0.4, **look)
            if finished := [values for done, values in runs if done and values]:
                common = sorted(set.intersection(*map(set, finished)))
                means = [statistics.fmean(values[epoch] for values in finished) for epoch in common]
                tooltips[f"t{n}"] = f"{shown.tooltip}: mean of {len(finished)}"
                axes.plot(common, means, color=colour, linewidth=2, gid=f"t{n}", marker="" if len(means) > 1 else ".")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set(xlabel="epoch", ylabel=axis)
        several = any(len(runs) > 1 for _, runs in curves)
        note = "Thin: each seed. Bold: their mean." if several else "One seed a model."
        note += " Dotted: not finished." * any(not done for _, runs in curves for done, _ in runs)
        key = f"{group.key}-{metric.replace('/', '-')}"
        return Plot(key, title, note, to_svg(drawn, key, title, tooltips))


def _values(run: RunRecord, metric: str) -> dict[int, float]:
    """Returns a metric by epoch, counted from 1, where there is one."""
    epochs = run.metrics["epochs"]
    return {n: epoch[metric] for n, epoch in enumerate(epochs, start=1) if epoch.get(metric) is not None}


def ratios(key: str, of: Ratios) -> Plot:
    """Draws positive ratios to something, by row and mode: small marks, and a large one for their geometric mean."""
    rows, tooltips, everything = of.rows, {}, []
    with drawing(width=5, height=0.42 * len(rows) + 0.9) as (drawn, axes):
        axes.axvline(1, color=INK, linewidth=1)
        for n, (row, by_mode) in enumerate(rows.items()):
            for mode, values in by_mode.items():
                m, gid = of.modes.index(mode), f"t{n}-{of.modes.index(mode)}"
                y, colour = n + min(0.22, 0.7 / len(of.modes)) * (m - (len(of.modes) - 1) / 2), series_colour(m)
                mean, span = statistics.geometric_mean(values), f"{min(values):.2f} to {max(values):.2f}"
                tooltips[gid] = f"{label(row, TOOLTIP)}, {label(mode, TOOLTIP)}: {mean:.2f}, {span}"
                axes.plot(sorted(values), [y] * len(values), "o-", color=colour, markersize=3, linewidth=1.3)
                look = {"markersize": 8, "markeredgecolor": CARD, "markeredgewidth": 0.8}
                axes.plot([mean], [y], MARKERS[m % len(MARKERS)], color=colour, gid=gid, **look)
                everything += values
        _name_rows(axes, [label(row, 28) for row in rows])
        axes.set(xlabel=of.axis)
        _log_if_wide(axes, everything)
        return Plot(key, of.title, of.note, to_svg(drawn, key, of.title, tooltips))


def _name_rows(axes: Axes, names: list[str]) -> None:
    """Names the rows of a plot that is read from the top down."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.grid(False, axis="y")


def _log_if_wide(axes: Axes, values: list[float]) -> None:
    """Makes the horizontal axis logarithmic where values differ by factors, with its numbers written out."""
    low, high = min(values), max(values)
    if low > 0 and high / low > WIDE_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
