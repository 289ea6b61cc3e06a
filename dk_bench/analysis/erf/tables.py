"""Receptive fields as files: every field, its map and figures; the summary as CSV, as Markdown, and on a terminal."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dk_bench.analysis.drawing import save_figure, styled
from dk_bench.analysis.erf.field import Measures
from dk_bench.analysis.erf.figures import draw_fields, draw_profiles, draw_transforms
from dk_bench.analysis.erf.study import Observation
from dk_bench.analysis.erf.summary import CHECKPOINTS, NUMBERS, PICTURES, SEEDS, FieldSummary, profiles, tested
from dk_bench.analysis.family import family_note, interval_text, p_columns
from dk_bench.analysis.origin import Origin, origin_table, read_about, write_about
from dk_bench.analysis.outputs import read_csv, write_csv, write_text
from dk_bench.analysis.pictures import Picture
from dk_bench.tables.entries import NOTHING
from dk_bench.tables.render import markdown
from dk_bench.tables.statistics import Summary
from dk_bench.tables.table import Column, Document, Table, make_table

SHOWN = 4  # pictures in a figure
DIGITS = dict(zip(NUMBERS, (2, 2, 1, 3, 2, 3, 3), strict=True))
ABOUT = ("images", "pictures", "side", "layer", "position", "through_offsets")
NOTES = [
    "Sigma, radius (which holds half of the energy) and area (the fewest that hold half) in pixels; inside is the "
    "share of the energy on the object, lift that share over the object's share of the image; agreement is the cosine "
    "between the field and that of the picture rotated by 90 degrees, or scaled by 1.5, moved along.",
    "± is half of the 95 % interval of the mean (Student's t): over pictures of one checkpoint, over checkpoints of a "
    "model, each of which counts by its mean over pictures, or over seeds of the differences by seed.",
]
CAPTIONS = {
    "fields": "Effective receptive field of the unit at +, by model: magnitude of its gradient to the picture; the "
    "radius holds half of the energy, and so much of it lies on the outlined object.",
    "transforms": "Effective receptive fields of a picture as it is, rotated and scaled.",
    "profile": "The gradient by its distance from the unit, averaged over pictures or checkpoints, with 95 % intervals "
    "of the mean.",
}


def write_study(observations: Sequence[Observation], pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """Writes fields.csv (every number), profile.csv, maps/*.csv (what figures show); fields, transforms and profile as
    PNG and PDF. Of several checkpoints of a kind the first is drawn. Returns all but the maps. Raises UserError."""
    averaged, shown = profiles(observations), pictures[:SHOWN]
    files = [
        write_csv(folder, "fields", map(_field_row, observations)),
        write_csv(folder, "profile", (row for each in averaged for row in each.rows())),
    ]
    first = {seen.kind_of_model: seen.model for seen in reversed(observations)}
    drawn = [seen for seen in observations if first[seen.kind_of_model] == seen.model]
    for seen in drawn:
        if seen.picture in {picture.name for picture in shown}:
            name = re.sub(r"[^\w.-]+", "_", f"{seen.model}-{seen.picture}-{seen.kind}")
            write_csv(folder / "maps", name, (dict(enumerate(line)) for line in seen.signed.tolist()))
    with styled():
        figures = {
            "fields": draw_fields(drawn, shown),
            "transforms": draw_transforms(drawn, pictures[0]),
            "profile": draw_profiles(averaged),
        }
    for name, figure in figures.items():
        files += save_figure(figure, folder, name, CAPTIONS[name] + _remarks(observations))
    return files


def _field_row(seen: Observation) -> dict[str, object]:
    start = {"model": seen.model, "trained": seen.trained, "picture": seen.picture, "kind": seen.kind}
    centre = dict(zip("yx", seen.centre, strict=True))
    measured = {name: getattr(seen.measures, name, None) for name in Measures._fields}
    shares = {"inside": seen.inside, "covered": seen.covered, "agreement": seen.agreement}
    return start | centre | measured | shares | {"dead": seen.dead}


def _remarks(observations: Sequence[Observation]) -> str:
    """Tells what a caption has to say beside what is drawn: whose weights are random, whose units are dead."""
    units = Counter(seen.model for seen in observations)
    random = dict.fromkeys(seen.model for seen in observations if not seen.trained)
    counts = Counter(seen.model for seen in observations if seen.dead)
    dead = [f"{count} of {units[model]} of {model}" for model, count in counts.items()]
    words = f" Not trained: {', '.join(random)}." if random else ""
    return words + (f" Left out, as their gradient is zero, units: {', '.join(dead)}." if dead else "")


def write_summary(
    lines: Sequence[FieldSummary], about: dict[str, Any], origins: Sequence[Origin], folder: Path, name: str = "summary"
) -> list[Path]:
    """Writes NAME.csv (all numbers), NAME.md (tables) and NAME.json (of what: settings, and of each checkpoint run,
    seed, configuration and commit). Raises UserError where it cannot."""
    return [
        write_csv(folder, name, map(_summary_row, lines)),
        write_text(folder / f"{name}.md", markdown(document(lines, about, origins))),
        write_about(folder / f"{name}.json", about, origins),
    ]


def _summary_row(line: FieldSummary) -> dict[str, object]:
    row: dict[str, object] = {"model": line.model, "over": line.over, "count": line.count}
    for name in NUMBERS:
        mean = line.numbers.get(name)
        row |= {name: mean and mean.mean, f"{name}_half_interval": mean and mean.half_width}
        row |= {f"{name}_{part}": p for part, p in p_columns(line.tests.get(name)).items()}
    return row | {"dead": line.dead if line.units else None, "units": line.units or None}


def read_summary(path: Path) -> tuple[list[FieldSummary], dict[str, Any], list[Origin]]:
    """Reads a CSV of `write_summary` and what lies beside it, p values made anew. Raises UserError for a file
    that cannot be read or is no such CSV."""
    about, origins = read_about(path.with_suffix(".json"), ABOUT)
    lines = read_csv(path, _read_line, "summary.csv of `dk-bench erf`")
    differences = iter(tested([line for line in lines if line.over == SEEDS]))
    return [next(differences) if line.over == SEEDS else line for line in lines], about, origins


def _read_line(row: dict[str, str]) -> FieldSummary:
    count, numbers = int(row["count"]), {}
    for name in NUMBERS:
        if row.get(name):
            half = row[f"{name}_half_interval"]
            numbers[name] = Summary(count, float(row[name]), half_width=float(half) if half else None)
    dead, units = (int(row.get(name) or 0) for name in ("dead", "units"))
    return FieldSummary(row["model"], row["over"], count, numbers, dead, units)


def document(lines: Sequence[FieldSummary], about: dict[str, Any], origins: Sequence[Origin]) -> Document:
    """Makes the tables of a summary: differences with their tests, models, checkpoints, and where those are from."""
    dead = Column("dead units", lambda line: f"{line.dead} of {line.units}" if line.units else NOTHING)
    tables, notes = [], list(NOTES)
    if differences := [line for line in lines if line.over == SEEDS]:
        tables.append(_table("Differences by seed", "models", lines, SEEDS))
        members = [test for line in differences for test in line.tests.values()]
        notes.append(family_note(members, "all numbers of all rows of differences by seed"))
    for heading, over in (("Models", CHECKPOINTS), ("Checkpoints' means over pictures", PICTURES)):
        if any(line.over == over for line in lines):
            tables.append(_table(heading, "model", lines, over, dead))
    held = "" if about["through_offsets"] else ", without the gradient through offset generators"
    title = (
        f"Effective receptive fields of {about['layer'] or 'the last map'} at "
        f"{about['position'] or 'the middle of the object'}: {about['pictures']} images of {about['side']} pixels "
        f"({about['images']}){held}"
    )
    return Document("summary", title, notes, [*tables, origin_table(origins)])


def _table(heading: str, head: str, lines: Sequence[FieldSummary], over: str, *more: Column[FieldSummary]) -> Table:
    """Returns the lines that are over one thing, with the numbers that any line has."""
    columns = [Column(head, lambda line: line.model), Column(over, lambda line: str(line.count))]
    for name in NUMBERS:
        known = any(name in line.numbers for line in lines)
        columns.append(Column(name.replace("_", " "), partial(_number_text, name), when=known))
    return make_table(heading, [*columns, *more], [line for line in lines if line.over == over])


def _number_text(name: str, line: FieldSummary) -> str:
    if name not in line.numbers:
        return NOTHING
    if line.over == SEEDS:
        return line.tests[name].text(DIGITS[name])
    return interval_text(line.numbers[name], DIGITS[name])
