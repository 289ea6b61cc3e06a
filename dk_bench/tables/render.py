"""Tables as files: Markdown, CSV, LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterable

from dk_bench.tables import latex as tex
from dk_bench.tables.entries import Figure, Markup, Value
from dk_bench.tables.table import Document, Table

# What may begin or end emphasis, code, links, tags, entities, formulas or cells; an underscore inside a word does not.
MARKS = re.compile(r"[\\`*<&~$|]|(?<![^\W_])_|\](?=[(\[])")
LATEX_TABLE = r"""\begin{table}
\caption{%s}
\begin{tabular}{%s}
\toprule
%s
\bottomrule
\end{tabular}
\end{table}"""


def markdown(document: Document) -> str:
    """Returns a document in GitHub's Markdown."""
    parts = [f"# {markdown_text(document.title)}"]
    for table in document.tables:
        parts += [f"## {markdown_text(table.heading)}", markdown_table(table), *[table.note] * bool(table.note)]
    return "\n\n".join([*parts, *document.notes]) + "\n"


def markdown_table(table: Table) -> str:
    """Returns a table alone: text on the left, figures on the right."""
    lines = [map(markdown_text, table.columns), table.sides(":--", "--:")]
    lines += [map(_markdown_cell, row) for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(words: str) -> str:
    """Returns a text as a line or cell of Markdown shows it: nothing in it is mark-up, line breaks are blanks."""
    return MARKS.sub(r"\\\g<0>", " ".join(words.splitlines()))


def _markdown_cell(value: Value) -> str:
    """Returns a value as a cell has it: names are from users, figures are ours."""
    return markdown_text(value) if isinstance(value, str) and not isinstance(value, Markup) else str(value)


def csv_text(document: Document) -> str:
    """Returns one line a row of every table, with numbers as numbers; a figure over seeds takes four columns."""
    rows = [
        {"table": table.heading} | _csv_fields(table.columns, row) for table in document.tables for row in table.rows
    ]
    stream = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def latex(document: Document) -> str:
    """Returns one table environment a table, in ASCII; needs booktabs, and the packages that a comment above names."""
    parts = []
    for table in document.tables:
        head, *rows = (" & ".join(tex.escape(str(value)) for value in row) for row in (table.columns, *table.rows))
        lines = "\n".join([rf"{head} \\", r"\midrule", *(rf"{row} \\" for row in rows)])
        caption = f"{tex.escape(document.title)} {tex.escape(table.heading)}."
        parts.append(LATEX_TABLE % (caption, "".join(table.sides("l", "r")), lines))
    body = "\n\n".join(parts) + "\n"
    needed = "".join(rf"% Needs \usepackage{{{name}}} beside booktabs." + "\n" for name in tex.packages(body))
    return f"% {tex.escape(document.title)}\n{needed}\n{body}"


FORMATS: dict[str, Callable[[Document], str]] = {"md": markdown, "csv": csv_text, "tex": latex}


def _csv_fields(columns: Iterable[str], row: Iterable[Value]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for column, value in zip(columns, row, strict=True):
        if isinstance(value, str):
            fields[column] = value
        elif isinstance(value, Figure):
            summary = value.summary
            fields[column] = _digits(summary and summary.mean)
            fields[f"{column} ±95%"] = _digits(summary and summary.half_width)
            fields[f"{column} n"] = str(summary.n if summary else 0)
            fields[f"{column} state"] = value.state
        else:
            fields[column] = _digits(value.value)
    return fields


def _digits(number: float | None) -> str:
    return "" if number is None else f"{number:.8g}"
