"""Tables as text: Markdown, CSV, LaTeX, and for the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

from rich.console import Console

from dk_bench.tables import latex as tex
from dk_bench.tables.entries import Chance, Markup, Number, Value
from dk_bench.tables.table import Document, Table
from dk_bench.tables.terminal import print_table

# What may begin or end emphasis, code, links, tags, entities, formulas or cells; an underscore inside a word does not.
MARKS = re.compile(r"[\\`*<&~$|]|(?<![^\W_])_|\](?=[(\[])")


def text(value: Value) -> str:
    """Returns a value as people read it."""
    return str(value)


def markdown(document: Document) -> str:
    """GitHub's Markdown."""
    parts = [f"# {markdown_text(document.title)}"]
    for table in document.tables:
        parts += [f"## {markdown_text(table.heading)}", markdown_table(table), *([table.note] if table.note else [])]
    return "\n\n".join([*parts, *document.notes]) + "\n"


def markdown_table(table: Table) -> str:
    """Returns a table alone: text on the left, figures on the right."""
    rule = [":--" if place in table.names else "--:" for place in range(len(table.columns))]
    lines = [map(markdown_text, table.columns), rule, *(map(_markdown_cell, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(words: str) -> str:
    """Returns a text as Markdown shows it, in a line or a cell of a table: nothing in it is mark-up, line breaks are
    blanks.
    """
    return MARKS.sub(r"\\\g<0>", " ".join(words.splitlines()))


def _markdown_cell(value: Value) -> str:
    """Names are from users; figures are ours."""
    if isinstance(value, Markup):
        return value
    return markdown_text(value) if isinstance(value, str) else text(value)


def csv_text(document: Document) -> str:
    """Returns one line a row of every table, with numbers as numbers; a figure over seeds takes four columns."""
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
    """Returns one table environment a table, in ASCII; needs the package booktabs, and what a comment at its head
    names.
    """
    parts = []
    for table in document.tables:
        alignment = "".join("l" if place in table.names else "r" for place in range(len(table.columns)))
        lines = [" & ".join(tex.escape(text(value)) for value in row) + r" \\" for row in table.rows]
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{tex.escape(document.title)} {tex.escape(table.heading)}.}}",
                    rf"\begin{{tabular}}{{{alignment}}}",
                    r"\toprule",
                    " & ".join(map(tex.escape, table.columns)) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    body = "\n\n".join(parts) + "\n"
    needed = "".join(rf"% Needs \usepackage{{{name}}} beside booktabs." + "\n" for name in tex.packages(body))
    return f"% {tex.escape(document.title)}\n{needed}\n{body}"


FORMATS: dict[str, Callable[[Document], str]] = {"md": markdown, "csv": csv_text, "tex": latex}


def show(document: Document, console: Console) -> None:
    """Prints a document to a terminal."""
    for number, table in enumerate(document.tables, start=1):
        rows = [[text(value) for value in row] for row in table.rows]
        notes = [table.note] * bool(table.note) + document.notes * (number == len(document.tables))
        print_table(console, f"{document.title} {table.heading}", table.columns, rows, names=table.names, notes=notes)


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
