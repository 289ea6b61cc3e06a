"""Fills ``page.html`` with what was collected."""

import base64
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dk_bench.claims.document import claims_document
from dk_bench.files import write_atomically
from dk_bench.report.forest import forest
from dk_bench.report.material import collect
from dk_bench.report.plots import make_groups, plots_of, ratios
from dk_bench.report.svg import MARKERS, SERIES, UNFIT
from dk_bench.runs.record import RunRecord, attempts_of
from dk_bench.tables.entries import Figure, Value
from dk_bench.tables.table import Document
from dk_bench.tasks import KINDS

LONGEST = 300  # characters of a name or a cell that are shown


def write_report(folder: Path, out: Path) -> dict[str, int]:
    """Writes the report of a folder's records to ``out``, atomically, and counts what is on it: runs, plots, pictures,
    problems. The same files give the same bytes. Raises UserError where ``folder`` is no folder, OSError where ``out``
    cannot be written."""
    material = collect(folder)
    records = material.runs.values()
    groups = [(group, plots_of(group)) for group in make_groups(records)]
    benches = [
        (path, bench, [(ratios(f"b{n}-{m}", drawn), drawn.modes) for m, drawn in enumerate(bench.ratios)])
        for n, (path, bench) in enumerate(material.benches.items())
    ]
    claims = forest(material.claims)
    page = _template().render(
        name=folder.resolve().name,
        material=material,
        groups=groups,
        benches=benches,
        claims=claims,
        verdicts=claims_document(material.claims) if material.claims else None,
        states=Counter(record.status for record in records),
        dates=_dates(records),
        models=len({record.model["name"] for record in records}),
    )
    write_atomically(out, UNFIT.sub("\ufffd", page))
    plots = sum(len(drawn) for *_, drawn in [*groups, *benches]) + (claims is not None)
    pictures, problems = len(material.pictures), len(material.problems)
    return {"runs": len(records), "plots": plots, "pictures": pictures, "problems": problems}


def _template() -> jinja2.Template:
    """Returns the page to be filled, which knows its script and style, and how values are shown."""
    template, script, style = (
        resources.files("dk_bench.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "js", "css")
    )
    # Chainable: a part that an older or a foreign record does without is left out of the page.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined
    )
    environment.filters |= {"short": _short, "entry": _entry, "took": _took}
    environment.filters["command"] = lambda record: shlex.join(map(str, record.command))
    environment.tests["has_figures"] = _has_figures
    environment.globals |= {"attempts_of": attempts_of, "final_of": _final_of, "markers": MARKERS, "colours": SERIES}
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": Markup(script), "style": Markup(style), "script_hash": script_hash}
    return environment.from_string(template)


def _has_figures(document: Document) -> bool:
    """Tells whether a run of ours has given it a figure."""
    return any(isinstance(v, Figure) and v.run for table in document.tables for row in table.rows for v in row)


def _short(value: Any, longest: int = LONGEST) -> str:
    value = str(value)
    return value if len(value) <= longest else value[: longest - 1] + "…"


def _entry(value: Value) -> tuple[str, str, Any, bool]:
    """Returns what a table shows of a value: its text, what stands behind it in small, what it is sorted by (nothing:
    it goes last), and whether there is nothing."""
    shown = str(value)
    if isinstance(value, str):
        return _short(shown), "", _short(shown), not shown
    if isinstance(value, Figure):
        head, bracket, tail = shown.partition(" (n=")
        return head, bracket + tail, value.summary.mean if value.summary else "", value.summary is None
    return shown, "", "" if value.value is None else value.value, value.value is None


def _final_of(record: RunRecord) -> float | None:
    """Returns the figure that a run is about."""
    found = (record.metrics["final"].get(kind.metric) for kind in KINDS.values())
    return next((value for value in found if value is not None), None)


def _took(record: RunRecord) -> float | None:
    """Returns the seconds from a run's start to its end, pauses included; None where it does not say."""
    try:
        return (datetime.fromisoformat(record.ended or "") - datetime.fromisoformat(record.started)).total_seconds()
    except (ValueError, TypeError):  # no end yet, no times at all, or one with and one without a zone
        return None


def _dates(records: Iterable[RunRecord]) -> list[str]:
    """Returns the first and the last day on which runs began, or the one day."""
    days = sorted({record.started[:10] for record in records if re.match(r"\d{4}-\d\d-\d\d", record.started)})
    return days[:1] + days[1:][-1:]
