"""Style of all figures: colours that colour-blind readers tell apart."""

import io
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from dk_bench.analysis.outputs import write_bytes

# Paul Tol's muted scheme, in an order that puts unlike colours side by side.
COLORS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#000000")
GREY = "#999999"
MARKERS = "osD^vPX<>*"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


def styled() -> AbstractContextManager[None]:
    """Gives all figures made in the block one style."""
    return matplotlib.rc_context(STYLE)


def save_figure(figure: Figure, folder: Path, name: str, caption: str | None = None) -> list[Path]:
    """Writes NAME.png and NAME.pdf, the same bytes for the same figure, with the caption in them, where
    `dk-bench report` finds it. Raises UserError where it cannot."""
    kept = {"png": {"Software": None, "Description": caption}, "pdf": {"CreationDate": None, "Subject": caption}}
    written = []
    for suffix, metadata in kept.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=suffix, metadata=metadata)
        written.append(write_bytes(folder / f"{name}.{suffix}", stream.getvalue()))
    return written
