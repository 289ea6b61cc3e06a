"""Tables as text: Markdown, CSV, LaTeX, and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dk_bench.results.cells import Figure

NOTHING = "-"


@dataclass(frozen=True)
class Number:
    """A number that is printed with so many digits after the point, with its sign where it is a difference."""

    value: float | None
    digits: int = 1
    signed: bool = False


@dataclass(frozen=True)
class Chance:
    """A p value, or none."""

    value: float | None


Value = str | Number | Chance | Figure


@dataclass(frozen=True)
class Table:
    """Columns and rows; a row has one value a column. A value says itself how it is printed."""

    heading: str
    columns: tuple[str, ...]
    rows: list[list[Value]]


@dataclass(frozen=True)
class Document:
    """Tables that go into one file, ``<name>.md`` and so on."""

    name: str
    title: str
    notes: list[str]
    tables: list[Table] = field(default_factory=list)


def text(value: Value) -> str:
    """A value as people read it: ``71.2 ± 0.5 (n=3), 1 failed``; one run has no spread: ``71.2 (n=1)``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Number):
        return NOTHING if value.value is None else f"{value.value:{'+' if value.signed else ''}.{value.digits}f}"
    if isinstance(value, Chance):
        return NOTHING if value.value is None else f"{value.value:.3f}" if value.value >= 0.0005 else "<0.001"
    summary = value.summary
    if summary is None:
        return value.state
    spread = "" if summary.half_width is None else f" ± {summary.half_width:.1f}"
    mean = f"{summary.mean:{'+' if value.signed else ''}.1f}"
    return f"{mean}{spread} (n={summary.n})" + (f", {value.state}" if value.state else "")


def markdown(document: Document) -> str:
    """GitHub's Markdown."""
    parts = [f"# {document.title}"]
    for table in document.tables:
        parts += [f"## {table.heading}", markdown_table(table)]
    return "\n\n".join([*parts, *document.notes]) + "\n"


def markdown_table(table: Table) -> str:
    """A table alone: text on the left, figures on the right."""
    rule = [":--" if isinstance(value, str) else "--:" for value in _kinds(table)]
    lines = [table.columns, rule, *([text(value) for value in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(_pipe_safe(cell) for cell in line)} |" for line in lines)


def csv_text(document: Document) -> str:
    """One line a row of every table, with numbers as numbers; a figure over seeds takes four columns."""
    rows = []
    for table in document.tables:
        for row in table.rows:
            flat = {"table": table.heading}
            for column, value in zip(table.columns, row, strict=True):
                flat |= _csv_fields(column, value)
            rows.append(flat)
    stream = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def latex(document: Document) -> str:
    """One table environment a table; needs the package booktabs."""
    parts = [f"% {document.title}"]
    for table in document.tables:
        alignment = "".join("l" if isinstance(value, str) else "r" for value in _kinds(table))
        lines = [" & ".join(_tex(text(value)) for value in row) + r" \\" for row in table.rows]
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_tex(document.title)} {_tex(table.heading)}.}}",
                    rf"\begin{{tabular}}{{{alignment}}}",
                    r"\toprule",
                    " & ".join(map(_tex, table.columns)) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


FORMATS: dict[str, Callable[[Document], str]] = {"md": markdown, "csv": csv_text, "tex": latex}


def show(document: Document, console: Console) -> None:
    """Prints a document to a terminal."""
    for table in document.tables:
        drawn = RichTable(title=Text(f"{document.title} {table.heading}"), title_justify="left")
        for column, value in zip(table.columns, _kinds(table), strict=True):
            drawn.add_column(column, justify="left" if isinstance(value, str) else "right")
        for row in table.rows:
            drawn.add_row(*(Text(text(value)) for value in row))  # Text: brackets are no markup
        console.print(drawn)
    for note in document.notes:
        console.print(note, style="dim", markup=False)


def _kinds(table: Table) -> list[Value]:
    """A value of each column that shows its kind: a number or a figure if it has one, text otherwise."""
    columns = zip(*table.rows, strict=True)
    kinds = [next((value for value in column if not isinstance(value, str)), "") for column in columns]
    return kinds or [""] * len(table.columns)


def _csv_fields(column: str, value: Value) -> dict[str, str]:
    if isinstance(value, str):
        return {column: value}
    if isinstance(value, Number | Chance):
        return {column: "" if value.value is None else f"{value.value:.8g}"}
    summary = value.summary
    return {
        column: f"{summary.mean:.8g}" if summary else "",
        f"{column} ±95%": f"{summary.half_width:.8g}" if summary and summary.half_width is not None else "",
        f"{column} n": str(summary.n if summary else 0),
        f"{column} state": value.state,
    }


def _pipe_safe(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")


TEX_SPECIAL = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"Δ": r"$\Delta$", "<": r"$<$", "\n": " "}
)


def _tex(cell: str) -> str:
    return cell.translate(TEX_SPECIAL)
