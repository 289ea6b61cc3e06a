"""Probes' scores as files: CSV, and tables in Markdown; and read again."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dk_bench.analysis.dynamics.differences import Compared, families
from dk_bench.analysis.dynamics.linear_probe import CLASS
from dk_bench.analysis.dynamics.study import ALL, LEARNED, RANDOM, SHUFFLED, Dynamics, ProbeResults, ProbeScore
from dk_bench.analysis.family import Difference, as_filed, corrected, family_note, interval_text, p_columns
from dk_bench.analysis.held import HeldAccuracy
from dk_bench.analysis.objects import Objects
from dk_bench.analysis.origin import origin_table, read_about, write_about
from dk_bench.analysis.outputs import read_dataclasses, write_csv, write_text
from dk_bench.tables.entries import NOTHING
from dk_bench.tables.render import markdown
from dk_bench.tables.statistics import summarize
from dk_bench.tables.table import Column, Document, Table, make_table

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


@dataclass(frozen=True)
class _Row:
    """A row of numbers as texts, by target."""

    model: str
    kind: str
    texts: dict[str, str]
    layer: str = ""
    dims: int = 0
    seeds: str = NOTHING


def document(of: ProbeResults) -> Document:
    """Makes all tables."""
    targets = dict.fromkeys(score.target for score in of.scores)
    whole = [score for score in of.scores if score.layer == ALL]
    components = next(score.features for score in whole if score.features.endswith("components"))
    model, kind = Column("model", lambda row: row.model), Column("dynamics", lambda row: row.kind)
    dims = Column("numbers", lambda row: str(row.dims))
    heads = {target: "class (%)" if target == CLASS else f"{target} (R2)" for target in targets}
    numbers = [Column(head, lambda row, of=target: row.texts.get(of, NOTHING)) for target, head in heads.items()]
    columns = [model, kind, dims, Column("seeds", lambda row: row.seeds), *numbers]
    chance = {target: f"{of.chance:.1f}" if target == CLASS else "0.00" for target in targets}
    learned = [*_rows(whole, LEARNED), *_rows(of.alone, LEARNED), _Row("no model", "chance", chance)]
    compared = families(of.scores)
    tables, notes = [make_table("Dynamics of all layers", columns, learned)], list(NOTES)
    for heading, members in compared.items():
        tables.append(make_table(heading, [model, kind, *numbers], _difference_rows(members)))
        tests = [each.difference for each in members]
        notes.append(f"{heading}: {family_note(tests, 'all numbers of this table')}")
    if of.held:
        table, note = _held_table(of.held)
        tables.append(table)
        notes.append(note)
    tables += [
        make_table("Random generators of the same shape", columns, _rows(whole, RANDOM)),
        make_table(f"The first {components}, the same number for all", columns, _rows(whole, components)),
        make_table("Shuffled targets", columns, _rows(whole, SHUFFLED)),
    ]
    by_layer = _rows([score for score in of.scores if score.layer != ALL], LEARNED)
    columns = [model, kind, Column("layer", lambda row: row.layer), dims, *numbers]
    tables += [make_table("By layer", columns, by_layer), origin_table(of.origins)]
    return Document("probe", f"What learned dynamics tell: {of.objects}", notes, tables)


def _digits(target: str) -> int:
    return 1 if target == CLASS else 2


def _rows(scores: Iterable[ProbeScore], features: str) -> list[_Row]:
    """Returns the scores of some features, a row a cell, kind, layer and size of dynamics."""
    found: dict[tuple, dict[str, list[ProbeScore]]] = {}
    for score in scores:
        if score.features == features:
            by_target = found.setdefault((score.model, score.cell, score.kind, score.layer, score.dims), {})
            by_target.setdefault(score.target, []).append(score)
    rows = []
    for (model, cell, kind, layer, dims), by_target in found.items():
        texts = {target: _text(of_target, _digits(target)) for target, of_target in by_target.items()}
        seeds = str(len(next(iter(by_target.values()))))
        name, count = (model, seeds) if cell else ("no model", NOTHING)
        rows.append(_Row(name, kind, texts, layer, dims, count))
    return rows


def _text(scores: list[ProbeScore], digits: int) -> str:
    if len(scores) == 1:
        (one,) = scores
        return f"{one.value:z.{digits}f} [{one.low:z.{digits}f}, {one.high:z.{digits}f}]"
    return interval_text(summarize([score.value for score in scores]), digits)


def _difference_rows(members: list[Compared]) -> list[_Row]:
    rows: dict[tuple[str, str], _Row] = {}
    for each in members:
        row = rows.setdefault((each.cell, each.kind), _Row(each.model, each.kind, {}))
        row.texts[each.target] = each.difference.text(_digits(each.target))
    return list(rows.values())


def _held_table(held: list[HeldAccuracy]) -> tuple[Table, str]:
    """Returns top-1 as trained and with offsets held at their mean, a row a cell, and the note on its family."""
    of_cell: dict[str, list[HeldAccuracy]] = {}
    for each in held:
        of_cell.setdefault(each.cell, []).append(each)
    tests = corrected([Difference(summarize([e.top1_held - e.top1 for e in own])) for own in of_cell.values()])
    columns = [
        Column("model", lambda row: row[0][0].model),
        Column("seeds", lambda row: str(len(row[0]))),
        Column("top-1 (%)", lambda row: interval_text(summarize([each.top1 for each in row[0]]), 1)),
        Column("held (%)", lambda row: interval_text(summarize([each.top1_held for each in row[0]]), 1)),
        Column("held minus as trained", lambda row: row[1].text(1)),
    ]
    heading = "Top-1 with offsets held at their mean"
    words = f"{heading}, of {held[0].images} images, over which the mean is taken, and over all positions: "
    table = make_table(heading, columns, zip(of_cell.values(), tests, strict=True))
    return table, words + family_note(tests, "the differences of this table")


def write_tables(of: ProbeResults, folder: Path, name: str = "probe") -> list[Path]:
    """Writes NAME.csv (all scores), NAME_differences.csv (with p values), NAME_held.csv where there is any, NAME.md and
    NAME.json (objects, chance, and of each checkpoint run, seed, configuration, commit). Raises UserError."""
    of = replace(of, scores=list(map(_as_filed, of.scores)), alone=list(map(_as_filed, of.alone)))
    about = {"objects": of.objects, "chance": of.chance}
    written = [
        write_csv(folder, name, map(asdict, of.scores + of.alone)),
        write_csv(folder, f"{name}_differences", _filed_differences(of.scores), DIFFERENCES),
        write_text(folder / f"{name}.md", markdown(document(of))),
        write_about(folder / f"{name}.json", about, of.origins),
    ]
    return written + ([write_csv(folder, f"{name}_held", map(asdict, of.held))] if of.held else [])


def _as_filed(score: ProbeScore) -> ProbeScore:
    return replace(score, value=as_filed(score.value), low=as_filed(score.low), high=as_filed(score.high))


def _filed_differences(scores: list[ProbeScore]) -> Iterator[dict[str, object]]:
    for heading, members in families(scores).items():
        for each in members:
            known = {"table": heading} | {name: getattr(each, name) for name in DIFFERENCES[1:5]}
            of = each.difference.of
            numbers = {"seeds": of.n, "difference": of.mean, "half_interval": of.half_width}
            yield known | numbers | p_columns(each.difference)


def read_tables(path: Path) -> ProbeResults:
    """Reads a CSV of `write_tables` and what lies beside it. Raises UserError for a file that is none."""
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
