"""Writes figures into a README, between two markers each: differences to rigid bases, speeds, verdicts on claims."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from dk_bench.analysis.bench.speeds import speeds
from dk_bench.errors import UserError, system_errors
from dk_bench.files import write_atomically
from dk_bench.tables.columns import ABOVE, FIGURE, MODEL
from dk_bench.tables.entries import Figure, Markup, Value
from dk_bench.tables.render import markdown_table, markdown_text
from dk_bench.tables.table import Column, Document, Table, make_table

BEGIN, END = "<!-- from the records, by `make tables` -->", "<!-- end of what `make tables` writes -->"
SPEED_BEGIN, SPEED_END = "<!-- speeds, by `make tables` -->", "<!-- end of the speeds -->"
CLAIMS_BEGIN, CLAIMS_END = "<!-- claims, by `make tables` -->", "<!-- end of the claims -->"
COUNTS = re.compile(r" \([\d,]+ classes, [\d,]+ training and [\d,]+ validation images\)$")  # as of `cells.Data`


def write_figures(path: str | Path, documents: Iterable[Document], folder: Path, link: str) -> Path:
    """Puts `differences` between the markers in a file, and, where it has markers for them, the `speeds` of the records
    in ``folder``/bench; atomically, and leaves all else. ``link`` is the folder of the tables as seen from the file.
    Raises UserError for a file that cannot be read or has not both markers once."""
    content = _replace(path, _read(path), BEGIN, END, differences(documents, link))
    if SPEED_BEGIN in content or SPEED_END in content:
        content = _replace(path, content, SPEED_BEGIN, SPEED_END, speeds(folder / "bench", f"{link}/bench"))
    return write_atomically(path, content)


def write_claims(path: str | Path, summary: str) -> Path:
    """Puts what is said of the claims between the markers in a file, as `write_figures`."""
    return write_atomically(path, _replace(path, _read(path), CLAIMS_BEGIN, CLAIMS_END, summary))


def _read(path: str | Path) -> str:
    with system_errors(f"{path}: cannot be read"):
        return Path(path).read_text(encoding="utf-8")


def _replace(path: str | Path, content: str, begin: str, end: str, new: str) -> str:
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise UserError(f"{path}: expected the line {begin}, and below it {end}, once each")
    before, after = content.partition(begin)[0], content.partition(end)[2]
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def differences(documents: Iterable[Document], link: str) -> str:
    """Returns, as Markdown, what was run, of the tables that have differences to a rigid base, in few columns."""
    rows: list[tuple[str, Table, list[Value]]] = []
    for document in documents:
        for table in document.tables:
            here = [row for row in table.rows if any(map(_has_figure, row))]
            if any(_has_figure(_brief(table, row, ABOVE)) for row in here):
                data = markdown_text(COUNTS.sub("", table.heading.rpartition(": ")[0] or table.heading))
                names = [f"[{data}]({quote(link)}/{document.name}.md)", *[""] * (len(here) - 1)]
                rows += [(name, table, row) for name, row in zip(names, here, strict=True)]
    columns = [Column("data, table", lambda row: Markup(row[0])), Column(MODEL, lambda row: _label(*row[1:]))]
    shown = (FIGURE, ABOVE, "p (Holm)", "verdict")
    columns += [Column(name, lambda row, name=name: _brief(*row[1:], name)) for name in shown]
    return markdown_table(make_table("", columns, rows)) if rows else "No differences yet."


def _brief(table: Table, row: list[Value], name: str) -> Value:
    """Returns what a row of a table has for a column of its summary."""
    return next(_values(table, row, name), "")


def _label(table: Table, row: list[Value]) -> str:
    """Returns what names a row but for what is rigid, and what tells its cell from others of its model."""
    return " ".join(word for word in _values(table, row, MODEL) if word not in ("rigid", ""))


def _values(table: Table, row: list[Value], name: str) -> Iterator[Value]:
    return (value for value, short in zip(row, table.short, strict=True) if short == name)


def _has_figure(value: Value) -> bool:
    return isinstance(value, Figure) and value.summary is not None
