"""Probes' scores as tables."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from dk_bench.analysis.drawing import write_csv, write_text
from dk_bench.analysis.dynamics.probe import CLASS
from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, SHUFFLED, Key, Line, difference, summary
from dk_bench.analysis.family import Difference, as_filed, corrected, family_note
from dk_bench.analysis.held import HeldAccuracy
from dk_bench.analysis.learned import EXPERTS
from dk_bench.analysis.origin import Origin, origin_table, read_about, write_about
from dk_bench.errors import UserError
from dk_bench.tables.render import Document, Table, markdown
from dk_bench.tables.statistics import summarize

Row = TypeVar("Row", Line, HeldAccuracy)
TOP1 = ("top1", "top1_held")
DIFFERENCES = ("table", "model", "cell", "kind", "target", "seeds", "difference", "half_interval", "p", "p_holm")

NOTES = [
    "Accuracy in percent of the class, R2 of the numbers, both on held-out objects (five folds, the same for all rows; "
    "standardised ridge and logistic regression). Bend and rotation are in radians.",
    "± is half of the 95 % interval of the mean over seeds (Student's t); brackets, where there is one seed, a 95 % "
    "bootstrap interval over images. One model's differences are by seed.",
    "A random generator is a linear map of what the learned one reads, of the same shape, with random weights: what "
    "any readout of that size tells. Only what is above it was learnt by the generator, not by the layers before it.",
]


def document(
    lines: list[Line],
    alone: list[Line],
    origins: list[Origin],
    source: str,
    chance: float,
    held: list[HeldAccuracy] | None = None,
) -> Document:
    """Makes all tables. ``chance``: share of the most frequent class, in percent. ``source``: what the objects are."""
    targets = tuple(dict.fromkeys(line.target for line in lines))
    whole = [line for line in lines if line.layer == ALL]
    components = next(line.features for line in whole if line.features.endswith("components"))
    compared = families(lines)
    tables = [
        Table(
            "Dynamics of all layers",
            ("model", "dynamics", "numbers", "seeds", *_headed(targets)),
            [*_rows(whole, LEARNED, targets), *_alone(alone, targets), _chance(chance, targets)],
        ),
        *(_difference_table(heading, members, targets) for heading, members in compared.items()),
        *(
            Table(
                heading, ("model", "dynamics", "numbers", "seeds", *_headed(targets)), _rows(whole, features, targets)
            )
            for heading, features in (
                ("Random generators of the same shape", RANDOM),
                (f"The first {components}, the same number for all", components),
                ("Shuffled targets", SHUFFLED),
            )
        ),
        Table(
            "By layer",
            ("model", "dynamics", "layer", "numbers", *_headed(targets)),
            _rows([line for line in lines if line.layer != ALL], LEARNED, targets, with_layer=True),
        ),
        origin_table(origins),
    ]
    notes = [
        f"{heading}: {family_note([each.difference for each in members], 'all numbers of this table')}"
        for heading, members in compared.items()
    ]
    if held:
        table, note = _held_table(held)
        tables.insert(1 + len(compared), table)
        notes.append(note)
    return Document("probe", f"What learned dynamics tell: {source}", [*NOTES, *notes], tables)


def _headed(targets: Iterable[str]) -> tuple[str, ...]:
    return tuple("class (%)" if target == CLASS else f"{target} (R2)" for target in targets)


def _digits(target: str) -> int:
    return 1 if target == CLASS else 2


def _cells(lines: list[Line], *names: str) -> dict[tuple, dict[str, list[Line]]]:
    """Lines by the values of these fields, then by target."""
    found: dict[tuple, dict[str, list[Line]]] = {}
    for line in lines:
        by_target = found.setdefault(tuple(getattr(line, name) for name in names), {})
        by_target.setdefault(line.target, []).append(line)
    return found


def _rows(lines: list[Line], features: str, targets: tuple[str, ...], with_layer: bool = False) -> list[list[Any]]:
    kept = [line for line in lines if line.features == features]
    rows = []
    for (model, _, kind, layer, dims), by_target in _cells(kept, "model", "cell", "kind", "layer", "dims").items():
        seeds = str(len(by_target[targets[0]]))
        start = [model, kind, layer, str(dims)] if with_layer else [model, kind, str(dims), seeds]
        rows.append(start + [_text(by_target[target], _digits(target)) for target in targets])
    return rows


def _text(lines: list[Line], digits: int) -> str:
    if len(lines) == 1:
        line = lines[0]
        return f"{line.value:z.{digits}f} [{line.low:z.{digits}f}, {line.high:z.{digits}f}]"
    found = summarize([line.value for line in lines])
    return f"{found.mean:z.{digits}f} ± {found.half_width:.{digits}f}"


def _alone(alone: list[Line], targets: tuple[str, ...]) -> list[list[str]]:
    return [
        ["no model", kind, str(dims), "-"]
        + [_text(by_target[target], _digits(target)) if target in by_target else "-" for target in targets]
        for (kind, dims), by_target in _cells(alone, "kind", "dims").items()
    ]


def _chance(chance: float, targets: tuple[str, ...]) -> list[str]:
    return ["no model", "chance", "0", "-", *(f"{chance:.1f}" if target == CLASS else "0.00" for target in targets)]


@dataclass(frozen=True)
class Compared:
    """A difference of one kind of dynamics' score to another's, with its test; ``table`` is its family."""

    table: str
    model: str
    cell: str
    kind: str
    target: str
    difference: Difference


def families(lines: list[Line]) -> dict[str, list[Compared]]:
    """Returns all differences of all layers' scores, by table; each table is one family of tests.

    The paper's claim as numbers, offsets know scale and experts' scores know the class, where there are experts; and
    what learning adds to a random generator.
    """
    whole = [line for line in lines if line.layer == ALL]
    found = {}
    if experts := next((line for line in whole if line.kind == EXPERTS), None):
        heading = f"Offsets minus expert scores of {experts.model}"
        found[heading] = _compared(
            heading,
            whole,
            lambda key: key[3] == LEARNED and key[1] != EXPERTS,
            lambda key: (experts.cell, EXPERTS, *key[2:]),
        )
    heading = "Learned minus random generator"
    found[heading] = _compared(heading, whole, lambda key: key[3] == LEARNED, lambda key: (*key[:3], RANDOM, key[4]))
    return {heading: members for heading, members in found.items() if members}


def _compared(heading: str, lines: list[Line], of: Callable[[Key], bool], over: Callable[[Key], Key]) -> list[Compared]:
    """Returns the differences of some cells' values to those of others, by seed."""
    values, names = summary(lines), {line.cell: line.model for line in lines}
    pairs = [(key, difference(values[key], values.get(over(key), {}))) for key in filter(of, values)]
    pairs = [(key, Difference(*found)) for key, found in pairs if found]
    tests = corrected([found for _, found in pairs])
    return [
        Compared(heading, names[key[0]], key[0], key[1], key[4], test)
        for (key, _), test in zip(pairs, tests, strict=True)
    ]


def _difference_table(heading: str, members: list[Compared], targets: tuple[str, ...]) -> Table:
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in members:
        row = rows.setdefault((each.model, each.cell, each.kind), {})
        row[each.target] = each.difference.text(_digits(each.target))
    return Table(
        heading,
        ("model", "dynamics", *_headed(targets)),
        [[model, kind, *(row.get(target, "-") for target in targets)] for (model, _, kind), row in rows.items()],
    )


def _held_table(held: list[HeldAccuracy]) -> tuple[Table, str]:
    """Top-1 as trained and with offsets held at their mean, a row a configuration, and the note on its family."""
    of_cell: dict[str, list[HeldAccuracy]] = {}
    for each in held:
        of_cell.setdefault(each.cell, []).append(each)
    found = [summarize([each.top1_held - each.top1 for each in own]) for own in of_cell.values()]
    tests = corrected([Difference(each.mean, each.half_width, each.n) for each in found])
    rows = [
        [own[0].model, str(len(own)), *(_mean([getattr(each, name) for each in own]) for name in TOP1), test.text(1)]
        for own, test in zip(of_cell.values(), tests, strict=True)
    ]
    heading = "Top-1 with offsets held at their mean"
    words = f"{heading}, of {held[0].images} images, over which the mean is taken, and over all positions: "
    return (
        Table(heading, ("model", "seeds", "top-1 (%)", "held (%)", "held minus as trained"), rows),
        words + family_note(tests, "the differences of this table"),
    )


def _mean(values: list[float]) -> str:
    found = summarize(values)
    return f"{found.mean:.1f}" + ("" if found.half_width is None else f" ± {found.half_width:.1f}")


def write_tables(
    lines: list[Line],
    alone: list[Line],
    origins: list[Origin],
    about: dict[str, Any],
    folder: Path,
    name: str = "probe",
    held: list[HeldAccuracy] | None = None,
) -> list[Path]:
    """Writes NAME.csv (all scores), NAME_differences.csv (with p values), NAME_held.csv where there is ``held``,
    NAME.md and NAME.json (of what: objects, chance, and of each checkpoint run, seed, configuration and commit).

    Raises UserError where it cannot.
    """
    held = held or []
    lines, alone = ([_as_filed(line) for line in part] for part in (lines, alone))
    compared = [each for members in families(lines).values() for each in members]
    rows = [
        [
            each.table,
            each.model,
            each.cell,
            each.kind,
            each.target,
            each.difference.count,
            each.difference.mean,
            each.difference.half,
            *(p if p is None else float(f"{p:.4g}") for p in (each.difference.p, each.difference.p_holm)),
        ]
        for each in compared
    ]
    tables = document(lines, alone, origins, about["objects"], about["chance"], held)
    written = [
        write_csv(folder, name, [field.name for field in fields(Line)], map(astuple, lines + alone)),
        write_csv(folder, f"{name}_differences", DIFFERENCES, rows),
        write_text(folder / f"{name}.md", markdown(tables)),
        write_about(folder / f"{name}.json", about, origins),
    ]
    if held:
        columns = [field.name for field in fields(HeldAccuracy)]
        written.append(write_csv(folder, f"{name}_held", columns, map(astuple, held)))
    return written


def _as_filed(line: Line) -> Line:
    return replace(line, value=as_filed(line.value), low=as_filed(line.low), high=as_filed(line.high))


def read_tables(path: Path) -> tuple[list[Line], list[Line], list[Origin], dict[str, Any]]:
    """Returns a CSV of :func:`write_tables`: scores of models, those without a model, and what its JSON says.

    Raises UserError for a file that cannot be read or is no such CSV.
    """
    about, origins = read_about(path.with_suffix(".json"), ("objects", "chance"))
    lines = _read_rows(path, Line)
    return [line for line in lines if line.cell], [line for line in lines if not line.cell], origins, about


def read_held(path: Path) -> list[HeldAccuracy]:
    """Tells what stands beside such a CSV on offsets held at their mean; nothing where there is no such file."""
    beside = path.with_name(f"{path.stem}_held.csv")
    return _read_rows(beside, HeldAccuracy) if beside.exists() else []


def _read_rows(path: Path, kind: type[Row]) -> list[Row]:
    numbers = {"int": int, "float": float, "str": str}
    of_field = {field.name: numbers[str(field.type)] for field in fields(kind)}
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return [
                kind(**{name: of_field[name](value) for name, value in row.items()}) for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read: {error!r}; expected a CSV of `dk-bench dynamics`") from error
