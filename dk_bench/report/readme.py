"""The figures in a README, from the records: differences to rigid bases, speeds, and what is said of the claims, each
between two markers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from dk_bench.analysis.bench.speeds import speeds
from dk_bench.errors import UserError
from dk_bench.files import write_atomically
from dk_bench.tables.cells import Figure
from dk_bench.tables.render import Document, Markup, Table, Value, markdown_table, markdown_text

BEGIN, END = "<!-- from the records, by `make tables` -->", "<!-- end of what `make tables` writes -->"
SPEED_BEGIN, SPEED_END = "<!-- speeds, by `make tables` -->", "<!-- end of the speeds -->"
CLAIMS_BEGIN, CLAIMS_END = "<!-- claims, by `make tables` -->", "<!-- end of the claims -->"
METRICS = ("top-1", "mAP")
COUNTS = re.compile(r" \([\d,]+ classes, [\d,]+ training and [\d,]+ validation images\)$")  # as of `cells.Data`


def write_figures(path: str | Path, documents: Iterable[Document], folder: Path, link: str) -> Path:
    """Puts `differences` between the markers in a file, and, where it has markers for them, the `speeds` of the records
    in ``folder``/bench; atomically, and leaves all else. ``link`` is the folder of the tables as seen from the file.

    Raises UserError for a file that cannot be read or has not both markers once.
    """
    content = _replace(path, _read(path), BEGIN, END, differences(documents, link))
    if SPEED_BEGIN in content or SPEED_END in content:
        content = _replace(path, content, SPEED_BEGIN, SPEED_END, speeds(folder / "bench", f"{link}/bench"))
    return write_atomically(path, content)


def write_claims(path: str | Path, summary: str) -> Path:
    """Puts what is said of the claims between the markers in a file, as `write_figures`."""
    return write_atomically(path, _replace(path, _read(path), CLAIMS_BEGIN, CLAIMS_END, summary))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _replace(path: str | Path, content: str, begin: str, end: str, new: str) -> str:
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise UserError(f"{path}: expected the line {begin}, and below it {end}, once each")
    before, after = content.partition(begin)[0], content.partition(end)[2]
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def differences(documents: Iterable[Document], link: str) -> str:
    """Tells what ran, of the tables that have differences to a rigid base, in few columns, as Markdown."""
    rows: list[list[Value]] = []
    for document in documents:
        for table in document.tables:
            here = [_short(table, row) for row in table.rows if any(_has_figure(value) for value in row)]
            if any(_has_figure(difference) for *_, difference, _, _ in here):
                data = markdown_text(COUNTS.sub("", table.heading.rpartition(": ")[0] or table.heading))
                names = [Markup(f"[{data}]({quote(link)}/{document.name}.md)"), *[""] * (len(here) - 1)]
                rows += [[name, *row] for name, row in zip(names, here, strict=True)]
    columns = ("data, table", "model", "top-1 or mAP", "Δ rigid", "p (Holm)", "verdict")
    return markdown_table(Table("", columns, rows)) if rows else "No differences yet."


def _short(table: Table, row: list[Value]) -> list[Value]:
    """Of a row what names it, its metric, the difference, its p value and the verdict."""
    values = dict(zip(table.columns, row, strict=True))
    metric = next((values[name] for name in METRICS if name in values), "")
    # The texts at its start but for what is rigid, and what tells the cell from others of its model.
    start = next(index for index, value in enumerate(row) if not isinstance(value, str))
    label = " ".join(word for word in (*row[:start], values.get("setting", "")) if word not in ("rigid", ""))
    return [label, metric, *(values.get(f"Δ rigid{part}", "") for part in ("", ", p (Holm)", ", verdict"))]


def _has_figure(value: Value) -> bool:
    return isinstance(value, Figure) and value.summary is not None
