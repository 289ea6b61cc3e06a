"""The claims as a forest plot: our contrasts with their intervals, the paper's as hollow marks."""

import re
from collections.abc import Iterable
from importlib import resources

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dk_bench.claims.document import contrast_name, contrast_text, figure_text, short_name
from dk_bench.claims.findings import Family, Finding
from dk_bench.report.plots import Plot
from dk_bench.report.svg import CARD, INK, LINE, MUTED, drawing, label, series_colour, to_svg
from dk_bench.tables.contrasts import CONTRADICTED, EQUIVALENT, SUPPORTED, UNDECIDED

LOOKS = {
    SUPPORTED: (series_colour(2), "o"),
    CONTRADICTED: (series_colour(1), "s"),
    EQUIVALENT: (series_colour(0), "D"),
    UNDECIDED: (MUTED, "o"),
}
ROW, WIDTH = 0.24, 8.0  # inches
BEYOND = 4.0  # points beyond the largest mean, where intervals of few seeds are cut
TITLE = "The paper's claims: differences, paper's and ours"


def forest(found: Iterable[Family]) -> Plot | None:
    """Returns the plot of every family with a figure in points, as part of a page; None where there is none."""
    shown = ((f, [x for x in f.findings if x.judgement.mean is not None and x.claim.unit == "points"]) for f in found)
    panels = [(family, findings) for family, findings in shown if findings]
    if not panels:
        return None
    counts = [len(findings) for _, findings in panels]
    tooltips = {f"t{n}-{m}": _tooltip(each) for n, (_, rows) in enumerate(panels) for m, each in enumerate(rows)}
    with drawing(WIDTH, ROW * sum(counts) + 0.45 * len(panels) + 0.9) as (drawn, axes):
        axes.remove()
        grid = drawn.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[c + 1 for c in counts])[:, 0]
        for n, (axes, (family, findings)) in enumerate(zip(grid, panels, strict=True)):
            _panel(axes, family, findings, f"t{n}")
        grid[-1].set(xlabel="difference, points", xlim=_limits([f for _, findings in panels for f in findings]))
        drawn.legend(handles=_legend(), loc="outside lower center", ncols=5, frameon=False, labelcolor=INK, fontsize=9)
        note = "Bars: 95 % interval of the mean over seeds, not corrected. Hollow: the paper's difference, on its data."
        return Plot("claims", TITLE, note, to_svg(drawn, "claims", TITLE, tooltips))


def forest_file(found: Iterable[Family]) -> str:
    """Returns the same as an SVG file of its own, in light and dark; a line of text where there is no figure yet."""
    plot = forest(found)
    if plot is None:
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 40"><text x="10" y="25" fill="gray" '
            'font-family="sans-serif">No claim has a figure yet.</text></svg>\n'
        )
    sheet = resources.files("dk_bench.report").joinpath("page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)[:2]
    style = (
        f"svg {{ {' '.join(light.split())} font-family: system-ui, sans-serif; background: var(--page) }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {' '.join(dark.split())} }} }}"
    )
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', plot.svg).groups()  # points
    opening = rf'<svg width="{width}pt" height="{height}pt"\1><style>{style}</style>'
    return re.sub(r"<svg([^>]*)>", opening, str(plot.svg), count=1) + "\n"


def _tooltip(finding: Finding) -> str:
    paper = "" if finding.paper is None else f", paper {finding.paper:+.1f}"
    return f"{contrast_text(finding)}: {figure_text(finding)}{paper}: {finding.verdict}"


def _panel(axes: Axes, family: Family, findings: list[Finding], gid: str) -> None:
    axes.axvline(0, color=INK, linewidth=1)
    bar = {"markersize": 6, "elinewidth": 1.4, "markeredgecolor": CARD, "markeredgewidth": 0.6}
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    for n, finding in enumerate(findings):
        judged, (colour, marker) = finding.judgement, LOOKS[finding.verdict.word]
        if finding.paper is not None:
            axes.plot([finding.paper], [n], "D", color=INK, markersize=7, markerfacecolor="none", markeredgewidth=1.1)
        axes.errorbar(judged.mean, n, xerr=judged.half, fmt=marker, color=colour, gid=f"{gid}-{n}", **bar)
        axes.annotate(str(finding.verdict), (1, n), (6, 0), va="center", color=colour, fontsize=9, **beside)
    axes.set_yticks(range(len(findings)), [label(contrast_name(each), 44) for each in findings], color=INK)
    axes.set_ylim(len(findings) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.spines["left"].set_color(LINE)
    axes.set_title(f"{short_name(family)}", loc="left", color=INK, fontsize=10, fontweight="bold")


def _limits(findings: list[Finding]) -> tuple[float, float]:
    """Returns limits that hold all means, the paper's too, and intervals as long as they are not far beyond."""
    means = [0.0, *(f.judgement.mean for f in findings), *(f.paper for f in findings if f.paper is not None)]
    intervals = [f.judgement for f in findings if f.judgement.half is not None]
    ends = [judged.mean + sign * judged.half for judged in intervals for sign in (-1, 1)]
    low, high = min([*means, *ends]), max([*means, *ends])
    return max(low, min(means) - BEYOND) - 0.3, min(high, max(means) + BEYOND) + 0.3


def _legend() -> list[Line2D]:
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=word)
        for word, (colour, marker) in LOOKS.items()
    ]
    paper = Line2D([], [], color=INK, marker="D", linestyle="", markerfacecolor="none", label="the paper's")
    return [*marks, paper]
