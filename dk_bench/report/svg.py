"""Matplotlib figures as SVG inside a page: in the page's own fonts and colours, light or dark, with tooltips."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SERIES = 8  # colours of series, --s0 to --s7 of the page
MARKERS = "osD^vPX"
# Matplotlib draws in colours that stand for the page's CSS variables; nobody sees these.
_INKS = ("--ink", "--muted", "--line", "--card")
_VARIABLES = {f"#0102{n:02x}": f"--s{n}" for n in range(SERIES)}
_VARIABLES |= {f"#0103{n:02x}": name for n, name in enumerate(_INKS)}
_COLOURS = {variable: colour for colour, variable in _VARIABLES.items()}
INK, MUTED, LINE, CARD = (_COLOURS[name] for name in _INKS)
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"#([\w.-]+)")
# Characters that no page can hold, and those that turn the direction of the text around them.
UNFIT = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dk_bench",  # the same figure gives the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelpad": 7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    **{f"{axis}tick.color": MUTED for axis in "xy"},
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
}

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def series_colour(number: int | None) -> str:
    """Returns the colour of a series; that of text for None, the rigid ones that the others are compared with."""
    return INK if number is None else _COLOURS[f"--s{number % SERIES}"]


def label(text: str, longest: int = 24) -> str:
    """Returns a name from a record as it can stand in a plot: short, and nothing but what is printed."""
    text = " ".join(UNFIT.sub("\ufffd", text[: 2 * longest]).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


@contextmanager
def drawing(width: float = 4.5, height: float = 3.1) -> Iterator[tuple[Figure, Axes]]:
    """Gives a figure, in inches, with one pair of axes, in the page's style; to be made SVG inside the block."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser draws the text, in fonts of its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, prefix: str, name: str, tooltips: Mapping[str, str] | None = None) -> Markup:
    """Returns the figure as an ``<svg>`` element whose ids begin with ``prefix``, called ``name`` for those who cannot
    see it. ``tooltips``: text for artists by their gid."""
    _lay_out(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True)
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # the page has a style of its own
                parent.remove(child)
    used = {i for element in root.iter() for v in element.attrib.values() for i in _REFERENCE.findall(v)}
    for element in root.iter():
        _adapt(element, prefix, used, tooltips or {})
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": UNFIT.sub("\ufffd", name)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _lay_out(figure: Figure) -> None:
    """Puts axes where the layout has them, to a millionth of the figure: its solver's sums depend on addresses in
    memory in their last digits, and the same figure is to give the same bytes in every process."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(edge, 6) for edge in axes.get_position().bounds])


def _adapt(element: ElementTree.Element, prefix: str, used: set[str], tooltips: Mapping[str, str]) -> None:
    """Gives an element the page's colours and fonts, ids of its own plot's, and its tooltip."""
    own = element.attrib.pop("id", None)
    if own in tooltips:
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = UNFIT.sub("\ufffd", tooltips[own])
        element.insert(0, title)
    for key, value in element.attrib.items():
        if key == "style":
            value = re.sub(r"font-family:[^;]*;? ?", "", value)
            value = re.sub(r"#[0-9a-f]{6}", lambda c: f"var({_VARIABLES[c[0]]})" if c[0] in _VARIABLES else c[0], value)
            element.set(key, value)
        elif "#" in value:
            element.set(key, _REFERENCE.sub(rf"#{prefix}-\1", value))
    if own in used:
        element.set("id", f"{prefix}-{own}")
