"""Numbers of effective receptive fields: over pictures, over checkpoints, differences by seed; as CSV and tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from dk_bench.analysis.drawing import write_csv, write_text
from dk_bench.analysis.erf.study import KINDS, Observation
from dk_bench.analysis.family import Difference, corrected, family_note
from dk_bench.analysis.origin import Origin, origin_table, read_about, write_about
from dk_bench.claims.studies import HELD
from dk_bench.errors import UserError
from dk_bench.tables.render import Document, Table, markdown
from dk_bench.tables.terminal import print_table

__all__ = ["ABOUT", "Line", "mean_interval", "print_summary", "read_summary", "summary", "write_summary"]

NUMBERS = ("sigma", "radius", "area", "inside", "lift", "agreement_rotated", "agreement_scaled")
DIGITS = {"sigma": 2, "radius": 2, "area": 1, "inside": 3, "lift": 2, "agreement_rotated": 3, "agreement_scaled": 3}
PICTURES, CHECKPOINTS, SEEDS = "pictures", "checkpoints", "seeds"
START, END = ("model", "over", "count"), ("dead", "units")
ABOUT = ("images", "pictures", "side", "layer", "position", "through_offsets")
NOTES = [
    "Sigma, radius (which holds half of the energy) and area (the fewest that hold half) in pixels; inside is the "
    "share of the energy on the object, lift that share over the object's share of the image; agreement is the cosine "
    "between the field and that of the picture rotated by 90 degrees, or scaled by 1.5, moved along.",
    "± is half of the 95 % interval of the mean (Student's t): over pictures of one checkpoint, over checkpoints of a "
    "model, each of which counts by its mean over pictures, or over seeds of the differences by seed.",
]


@dataclass(frozen=True)
class Line:
    """A line of the summary: mean and half of the 95 % interval of `NUMBERS`, over ``count`` pictures of one model;
    over ``count`` checkpoints of one kind, each of which counts by its mean over pictures; or how far one kind is above
    another, over ``count`` seeds that both have. Those have ``tests``, p values corrected over all of a summary.

    ``dead`` of the ``units`` on pictures as they are, rotated and scaled have no field and are left out."""

    model: str
    over: str
    count: int
    numbers: dict[str, tuple[float, float | None]]
    dead: int = 0
    units: int = 0
    tests: dict[str, Difference] = field(default_factory=dict)


def mean_interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and half of its 95 % interval (Student's t); no interval of fewer than two values."""
    values = list(values)
    if len(values) < 2:
        return float(values[0]), None
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def summary(observations: Sequence[Observation]) -> list[Line]:
    """A line a model, over pictures; one a kind of model that has several checkpoints, over those; one a kind with
    seeds in common with the first kind, on the differences to that; and one a kind on the differences to itself with
    offsets held at their mean, where that was observed too.

    Sigma, radius, area and what lies on the object are of the pictures as they are. ``lift`` is the share of the
    energy on the object over the object's share of the pixels; what no picture has is left out.
    """
    lines, observed, means, units = [], {}, {}, {}
    for seen in observations:
        observed.setdefault((seen.kind_of_model, seen.model), []).append(seen)
    for (kind, model), own in observed.items():
        columns = _columns(own)
        numbers = {name: mean_interval(values) for name, values in columns.items()}
        units.setdefault(kind, []).extend(seen.dead for seen in own)
        dead = sum(seen.dead for seen in own)
        lines.append(Line(model, PICTURES, len(columns.get("sigma", ())), numbers, dead, len(own)))
        # What stands in a checkpoint's name behind its kind is its seed.
        mean = {name: float(np.mean(values)) for name, values in columns.items()}
        means.setdefault(kind, {}).update({model.removeprefix(kind): mean} if mean else {})
    several = {kind: list(seeds.values()) for kind, seeds in means.items() if len(seeds) > 1}
    lines += [_over(kind, CHECKPOINTS, own, sum(units[kind]), len(units[kind])) for kind, own in several.items()]
    return lines + tested(_differences(means))


def _differences(means: dict[str, dict[str, dict[str, float]]]) -> list[Line]:
    """Of every kind to the first, and to itself held at the mean: those of several seeds."""
    first, *others = means
    pairs = [(kind, first) for kind in others if not kind.endswith(HELD)]
    pairs += [(kind, kind + HELD) for kind in means if kind + HELD in means]
    lines = []
    for kind, base in pairs:
        if len(common := [seed for seed in means[kind] if seed in means[base]]) > 1:
            above = [
                {
                    name: value - means[base][seed][name]
                    for name, value in means[kind][seed].items()
                    if name in means[base][seed]
                }
                for seed in common
            ]
            lines.append(_over(f"{kind} - {base}", SEEDS, above))
    return lines


def tested(differences: Sequence[Line]) -> list[Line]:
    """Lines of differences with their tests, all of them one family."""
    places = [(line, name) for line in differences for name in line.numbers]
    tests = corrected([Difference(*line.numbers[name], line.count) for line, name in places])
    found: dict[str, dict[str, Difference]] = {}
    for (line, name), test in zip(places, tests, strict=True):
        found.setdefault(line.model, {})[name] = test
    return [replace(line, tests=found.get(line.model, {})) for line in differences]


def _over(model: str, over: str, members: list[dict[str, float]], dead: int = 0, units: int = 0) -> Line:
    """Of the numbers that all members have."""
    names = [name for name in NUMBERS if all(name in own for own in members)]
    numbers = {name: mean_interval([own[name] for own in members]) for name in names}
    return Line(model, over, len(members), numbers, dead, units)


def _columns(own: Sequence[Observation]) -> dict[str, list[float]]:
    """Returns the values of each of `NUMBERS` of one model."""
    plain = [seen for seen in own if seen.kind == "original" and not seen.dead]
    on_object = [seen for seen in plain if seen.inside is not None]
    columns = {name: [getattr(seen.measures, name) for seen in plain] for name in ("sigma", "radius", "area")}
    columns["inside"] = [seen.inside for seen in on_object]
    columns["lift"] = [seen.inside / seen.covered for seen in on_object]
    for kind in KINDS[1:]:
        columns[f"agreement_{kind}"] = [
            seen.agreement for seen in own if seen.kind == kind and seen.agreement is not None
        ]
    return {name: values for name, values in columns.items() if values}


def print_summary(lines: Sequence[Line]) -> None:
    """Returns the table of :func:`summary` on standard output."""
    rows = [
        [
            line.model,
            f"{line.count} {line.over}",
            *(_text(*line.numbers[name]) if name in line.numbers else "-" for name in NUMBERS),
            f"{line.dead} of {line.units}" if line.units else "-",
        ]
        for line in lines
    ]
    columns = [name.replace("_", " ") for name in ("model", "over", *NUMBERS, "dead units")]
    print_table(Console(), "effective receptive fields, mean and 95 % interval", columns, rows, names=(0, 1))


def _text(mean: float, half: float | None) -> str:
    return f"{mean:.3g}" if half is None else f"{mean:.3g} ± {half:.2g}"


def write_summary(
    lines: Sequence[Line], about: dict[str, Any], origins: Sequence[Origin], folder: Path, name: str = "summary"
) -> list[Path]:
    """Writes NAME.csv (all numbers), NAME.md (tables) and NAME.json (of what: settings, and of each checkpoint run,
    seed, configuration and commit). Raises UserError where it cannot."""
    return [
        write_csv(folder, name, (*START, *_value_columns(), *END), map(_row, lines)),
        write_text(folder / f"{name}.md", markdown(document(lines, about, origins))),
        write_about(folder / f"{name}.json", about, origins),
    ]


def _value_columns() -> list[str]:
    return [f"{name}{part}" for name in NUMBERS for part in ("", "_half_interval", "_p", "_p_holm")]


def _row(line: Line) -> list[object]:
    values: list[object] = []
    for name in NUMBERS:
        test = line.tests.get(name)
        chances = [test.p, test.p_holm] if test else [None, None]
        values += [*line.numbers.get(name, (None, None)), *(p if p is None else float(f"{p:.4g}") for p in chances)]
    return [line.model, line.over, line.count, *values, *((line.dead, line.units) if line.units else (None, None))]


def document(lines: Sequence[Line], about: dict[str, Any], origins: Sequence[Origin]) -> Document:
    """Returns the tables of a summary: differences with their tests, models, checkpoints."""
    shown = [name for name in NUMBERS if any(name in line.numbers for line in lines)]
    differences = [line for line in lines if line.over == SEEDS]
    tables = [
        Table(
            "Checkpoints' means over pictures",
            ("model", "pictures", *map(_headed, shown), "dead units"),
            [_cells(line, shown) for line in lines if line.over == PICTURES],
        ),
        origin_table(origins),
    ]
    if several := [_cells(line, shown) for line in lines if line.over == CHECKPOINTS]:
        tables.insert(0, Table("Models", ("model", "checkpoints", *map(_headed, shown), "dead units"), several))
    if differences:
        rows = [
            [line.model, str(line.count), *(line.tests[n].text(DIGITS[n]) if n in line.tests else "-" for n in shown)]
            for line in differences
        ]
        tables.insert(0, Table("Differences by seed", ("models", "seeds", *map(_headed, shown)), rows))
    notes = list(NOTES)
    if differences:
        members = [test for line in differences for test in line.tests.values()]
        notes.append(family_note(members, "all numbers of all rows of differences by seed"))
    return Document("summary", _title(about), notes, tables)


def _headed(name: str) -> str:
    return name.replace("_", " ")


def _cells(line: Line, shown: Sequence[str]) -> list[str]:
    """Of a model or checkpoint."""
    numbers = (line.numbers.get(name) for name in shown)
    texts = [
        "-" if pair is None else f"{pair[0]:.{digits}f}" + ("" if pair[1] is None else f" ± {pair[1]:.{digits}f}")
        for pair, digits in zip(numbers, (DIGITS[name] for name in shown), strict=True)
    ]
    return [line.model, str(line.count), *texts, f"{line.dead} of {line.units}" if line.units else "-"]


def _title(about: dict[str, Any]) -> str:
    layer = about["layer"] or "the last map"
    held = "" if about["through_offsets"] else ", without the gradient through offset generators"
    place = "the middle of the object" if about["position"] is None else f"{about['position']}"
    return (
        f"Effective receptive fields of {layer} at {place}: {about['pictures']} images of {about['side']} pixels "
        f"({about['images']}){held}"
    )


def read_summary(path: Path) -> tuple[list[Line], dict[str, Any], list[Origin]]:
    """Returns a CSV of :func:`write_summary`, p values made anew, and the JSON beside it.

    Raises UserError for a file that cannot be read or is no such CSV.
    """
    about, origins = read_about(path.with_suffix(".json"), ABOUT)
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            lines = [_read_line(row) for row in csv.DictReader(stream)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error!r}; expected summary.csv of `dk-bench erf`") from error
    differences = iter(tested([line for line in lines if line.over == SEEDS]))
    return [next(differences) if line.over == SEEDS else line for line in lines], about, origins


def _read_line(row: dict[str, str]) -> Line:
    numbers = {
        name: (float(row[name]), float(half) if (half := row[f"{name}_half_interval"]) else None)
        for name in NUMBERS
        if row.get(name)
    }
    return Line(row["model"], row["over"], int(row["count"]), numbers, *(int(row.get(name) or 0) for name in END))
