"""Probes' scores as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dk_bench.analysis.dynamics import ALL, LEARNED, RANDOM, SHUFFLED, Key, Line, difference, summary
from dk_bench.analysis.learned import EXPERTS, Loaded
from dk_bench.analysis.probe import CLASS
from dk_bench.results.record import read_record
from dk_bench.results.render import Document, Table
from dk_bench.results.statistics import summarize

NOTES = [
    "Accuracy in percent of the class, R2 of the numbers, both on held-out objects (five folds, the same for all rows; "
    "standardised ridge and logistic regression). Bend and rotation are in radians.",
    "± is half of the 95 % interval of the mean over seeds (Student's t); brackets, where there is one seed, a 95 % "
    "bootstrap interval over images. One model's differences are by seed.",
    "A random generator is a linear map of what the learned one reads, of the same shape, with random weights: what "
    "any readout of that size tells. Only what is above it was learnt by the generator, not by the layers before it.",
]


def document(lines: list[Line], alone: list[Line], loaded: list[Loaded], source: str, chance: float) -> Document:
    """All tables. ``chance`` is the share of the most frequent class, in percent."""
    targets = tuple(dict.fromkeys(line.target for line in lines))
    whole = [line for line in lines if line.layer == ALL]
    components = next(line.features for line in whole if line.features.endswith("components"))
    tables = [
        Table("Dynamics of all layers", ("model", "dynamics", "numbers", "seeds", *_headed(targets)),
              [*_rows(whole, LEARNED, targets), *_alone(alone, targets), _chance(chance, targets)]),
        Table("Learned minus random generator", ("model", "dynamics", *_headed(targets)),
              _differences(whole, targets, lambda key: key[3] == LEARNED, lambda key: (*key[:3], RANDOM, key[4]))),
        *(Table(heading, ("model", "dynamics", "numbers", "seeds", *_headed(targets)), _rows(whole, features, targets))
          for heading, features in (("Random generators of the same shape", RANDOM),
                                    (f"The first {components}, the same number for all", components),
                                    ("Shuffled targets", SHUFFLED))),
    ]
    if versus := _versus_experts(whole, targets):
        tables.insert(1, versus)
    by_layer = [line for line in lines if line.layer != ALL]
    tables += [
        Table("By layer", ("model", "dynamics", "layer", "numbers", *_headed(targets)),
              _rows(by_layer, LEARNED, targets, with_layer=True)),
        Table("Checkpoints", ("model", "run", "configuration", "seed", "top-1 (%)", "trained at commit"),
              [_checkpoint(each) for each in loaded]),
    ]
    return Document("probe", f"What learned dynamics tell: {source}", NOTES, tables)


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


def _differences(
    lines: list[Line], targets: tuple[str, ...], of: Callable[[Key], bool], over: Callable[[Key], Key]
) -> list[list[str]]:
    """Rows of the differences of some cells' values to those of others, by seed."""
    values, names = summary(lines), {line.cell: line.model for line in lines}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for key in filter(of, values):
        found = difference(values[key], values.get(over(key), {}))
        if found is not None:
            mean, half_width, _ = found
            digits = _digits(key[4])
            spread = "" if half_width is None else f" ± {half_width:.{digits}f}"
            rows.setdefault(key[:2], {})[key[4]] = f"{mean:+z.{digits}f}{spread}"
    return [[names[cell], kind, *(row.get(target, "-") for target in targets)] for (cell, kind), row in rows.items()]


def _versus_experts(lines: list[Line], targets: tuple[str, ...]) -> Table | None:
    """The paper's claim as numbers: offsets know scale, experts' scores know the class."""
    experts = next((line for line in lines if line.kind == EXPERTS), None)
    if experts is None:
        return None
    rows = _differences(lines, targets, lambda key: key[3] == LEARNED and key[1] != EXPERTS,
                        lambda key: (experts.cell, EXPERTS, *key[2:]))
    heading = f"Offsets minus expert scores of {experts.model}"
    return Table(heading, ("model", "dynamics", *_headed(targets)), rows) if rows else None


def _checkpoint(loaded: Loaded) -> list[str]:
    """What is known of a checkpoint; accuracy and commit stand in the record beside it, if there is one."""
    path = loaded.path.with_name("record.json")
    record = read_record(path) if path.exists() else None
    top1 = record.metrics["final"].get("val/top1") if record else None
    commit = (record.git.get("commit") or "-")[:12] if record else "-"
    known = "-" if top1 is None else f"{top1:.1f}"
    return [loaded.name, loaded.run_id or "-", loaded.cell, str(loaded.config.seed), known, commit]
