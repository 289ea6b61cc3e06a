"""Probes' scores as files: CSV, and tables in Markdown; and read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

from dk_bench.analysis.dynamics.differences import Compared, families
from dk_bench.analysis.dynamics.linear_probe import CLASS
from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, SHUFFLED, Dynamics, ProbeResults, ProbeScore
from dk_bench.analysis.family import Difference, as_filed, corrected, family_note, interval_text, p_columns
from dk_bench.analysis.held import HeldAccuracy
from dk_bench.analysis.objects import Objects
from dk_bench.analysis.origin import origin_table, read_about, write_about
from dk_bench.analysis.outputs import read_dataclasses, write_csv, write_text
from dk_bench.tables.render import Document, Table, markdown
from dk_bench.tables.statistics import summarize

TOP1 = ("top1", "top1_held")
DIFFERENCES = ("table", "model", "cell", "kind", "target", "seeds", "difference", "half_interval", "p", "p_holm")
WRITTEN_BY = "a CSV of `dk-bench dynamics`"

NOTES = [
    "Accuracy in percent of the class, R2 of the numbers, both on held-out objects (five folds, the same for all rows; "
    "standardised ridge and logistic regression). Bend and rotation are in radians.",
    "± is half of the 95 % interval of the mean over seeds (Student's t); brackets, where there is one seed, a 95 % "
    "bootstrap interval over images. One model's differences are by seed.",
    "A random generator is a linear map of what the learned one reads, of the same shape, with random weights: what "
    "any readout of that size tells. Only what is above it was learnt by the generator, not by the layers before it.",
]


def document(of: ProbeResults) -> Document:
    """Makes all tables."""
    targets = tuple(dict.fromkeys(score.target for score in of.scores))
    whole = [score for score in of.scores if score.layer == ALL]
    components = next(score.features for score in whole if score.features.endswith("components"))
    compared = families(of.scores)
    headed = tuple("class (%)" if target == CLASS else f"{target} (R2)" for target in targets)
    columns = ("model", "dynamics", "numbers", "seeds", *headed)
    learned = [*_rows(whole, LEARNED, targets), *_alone(of.alone, targets), _chance(of.chance, targets)]
    controls = {
        "Random generators of the same shape": RANDOM,
        f"The first {components}, the same number for all": components,
        "Shuffled targets": SHUFFLED,
    }
    by_layer = _rows([score for score in of.scores if score.layer != ALL], LEARNED, targets, with_layer=True)
    tables = [
        Table("Dynamics of all layers", columns, learned),
        *(_difference_table(heading, members, targets, headed) for heading, members in compared.items()),
        *(Table(heading, columns, _rows(whole, features, targets)) for heading, features in controls.items()),
        Table("By layer", ("model", "dynamics", "layer", "numbers", *headed), by_layer),
        origin_table(of.origins),
    ]
    notes = [
        f"{heading}: {family_note([each.difference for each in members], 'all numbers of this table')}"
        for heading, members in compared.items()
    ]
    if of.held:
        table, note = _held_table(of.held)
        tables.insert(1 + len(compared), table)
        notes.append(note)
    return Document("probe", f"What learned dynamics tell: {of.objects}", [*NOTES, *notes], tables)


def _digits(target: str) -> int:
    return 1 if target == CLASS else 2


def _cells(scores: Iterable[ProbeScore], *names: str) -> dict[tuple, dict[str, list[ProbeScore]]]:
    """Groups scores by the values of these fields, then by target."""
    found: dict[tuple, dict[str, list[ProbeScore]]] = {}
    for score in scores:
        by_target = found.setdefault(tuple(getattr(score, name) for name in names), {})
        by_target.setdefault(score.target, []).append(score)
    return found


def _rows(
    scores: Iterable[ProbeScore], features: str, targets: tuple[str, ...], with_layer: bool = False
) -> list[list[str]]:
    kept = [score for score in scores if score.features == features]
    rows = []
    for (model, _, kind, layer, dims), by_target in _cells(kept, "model", "cell", "kind", "layer", "dims").items():
        seeds = str(len(by_target[targets[0]]))
        start = [model, kind, layer, str(dims)] if with_layer else [model, kind, str(dims), seeds]
        rows.append(start + [_text(by_target[target], _digits(target)) for target in targets])
    return rows


def _text(scores: list[ProbeScore], digits: int) -> str:
    if len(scores) == 1:
        (one,) = scores
        return f"{one.value:z.{digits}f} [{one.low:z.{digits}f}, {one.high:z.{digits}f}]"
    return interval_text(summarize([score.value for score in scores]), digits)


def _alone(alone: list[ProbeScore], targets: tuple[str, ...]) -> list[list[str]]:
    return [
        ["no model", kind, str(dims), "-"]
        + [_text(by_target[target], _digits(target)) if target in by_target else "-" for target in targets]
        for (kind, dims), by_target in _cells(alone, "kind", "dims").items()
    ]


def _chance(chance: float, targets: tuple[str, ...]) -> list[str]:
    return ["no model", "chance", "0", "-", *(f"{chance:.1f}" if target == CLASS else "0.00" for target in targets)]


def _difference_table(
    heading: str, members: list[Compared], targets: tuple[str, ...], headed: tuple[str, ...]
) -> Table:
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in members:
        row = rows.setdefault((each.model, each.cell, each.kind), {})
        row[each.target] = each.difference.text(_digits(each.target))
    cells = [[model, kind, *(row.get(target, "-") for target in targets)] for (model, _, kind), row in rows.items()]
    return Table(heading, ("model", "dynamics", *headed), cells)


def _held_table(held: list[HeldAccuracy]) -> tuple[Table, str]:
    """Returns top-1 as trained and with offsets held at their mean, a row a cell, and the note on its family."""
    of_cell: dict[str, list[HeldAccuracy]] = {}
    for each in held:
        of_cell.setdefault(each.cell, []).append(each)
    tests = corrected([Difference(summarize([e.top1_held - e.top1 for e in own])) for own in of_cell.values()])
    rows = [
        [
            own[0].model,
            str(len(own)),
            *(interval_text(summarize([getattr(each, name) for each in own]), 1) for name in TOP1),
            test.text(1),
        ]
        for own, test in zip(of_cell.values(), tests, strict=True)
    ]
    heading = "Top-1 with offsets held at their mean"
    words = f"{heading}, of {held[0].images} images, over which the mean is taken, and over all positions: "
    return (
        Table(heading, ("model", "seeds", "top-1 (%)", "held (%)", "held minus as trained"), rows),
        words + family_note(tests, "the differences of this table"),
    )


def write_tables(of: ProbeResults, folder: Path, name: str = "probe") -> list[Path]:
    """Writes NAME.csv (all scores), NAME_differences.csv (with p values), NAME_held.csv where there is any, NAME.md and
    NAME.json (of what: objects, chance, and of each checkpoint run, seed, configuration and commit).

    Raises UserError where it cannot.
    """
    of = replace(of, scores=list(map(_as_filed, of.scores)), alone=list(map(_as_filed, of.alone)))
    compared = (each for members in families(of.scores).values() for each in members)
    about = {"objects": of.objects, "chance": of.chance}
    columns = [field.name for field in fields(ProbeScore)]
    written = [
        write_csv(folder, name, map(asdict, of.scores + of.alone), columns),
        write_csv(folder, f"{name}_differences", map(_difference_row, compared), DIFFERENCES),
        write_text(folder / f"{name}.md", markdown(document(of))),
        write_about(folder / f"{name}.json", about, of.origins),
    ]
    return written + ([write_csv(folder, f"{name}_held", map(asdict, of.held))] if of.held else [])


def _as_filed(score: ProbeScore) -> ProbeScore:
    return replace(score, value=as_filed(score.value), low=as_filed(score.low), high=as_filed(score.high))


def _difference_row(each: Compared) -> dict[str, object]:
    known = {name: getattr(each, name) for name in DIFFERENCES[:5]}
    of = each.difference.of
    numbers = {"seeds": of.n, "difference": of.mean, "half_interval": of.half_width}
    return known | numbers | p_columns(each.difference)


def read_tables(path: Path) -> ProbeResults:
    """Reads a CSV of :func:`write_tables` and what lies beside it.

    Raises UserError for a file that cannot be read or is no such CSV.
    """
    about, origins = read_about(path.with_suffix(".json"), ("objects", "chance"))
    scores = read_dataclasses(path, ProbeScore, WRITTEN_BY)
    beside = path.with_name(f"{path.stem}_held.csv")
    held = read_dataclasses(beside, HeldAccuracy, WRITTEN_BY) if beside.exists() else []
    of_models, alone = ([score for score in scores if bool(score.cell) == wanted] for wanted in (True, False))
    return ProbeResults(of_models, alone, origins, about["objects"], about["chance"], held)


def write_dynamics(folder: Path, dynamics: Dynamics, objects: Objects) -> Path:
    """Writes a line an object: what is known of it, and its dynamics. Raises UserError where it cannot."""
    loaded = dynamics.loaded
    name = f"dynamics-{loaded.config.model.name}-{loaded.cell}-s{loaded.config.seed}"
    return write_csv(folder, name, _object_rows(dynamics, objects))


def _object_rows(dynamics: Dynamics, objects: Objects) -> Iterator[dict[str, object]]:
    parts = {f"{layer} {kind}": values for kind, layers in dynamics.learned.items() for layer, values in layers.items()}
    for index in range(len(objects)):
        y, x = map(float, objects.centre[index])
        row = {
            "object": index,
            "image": int(objects.image[index]),
            "class": objects.classes[objects.label[index]],
            "scale": float(objects.scale[index]),
            "centre y": y,
            "centre x": x,
        }
        row |= {name: float(values[index]) for name, values in objects.pose.items()}
        for part, values in parts.items():
            row |= {f"{part} {number}": float(value) for number, value in enumerate(values[index])}
        yield row
