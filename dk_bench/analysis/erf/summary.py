"""Numbers of effective receptive fields: over pictures, over checkpoints, and differences by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from dk_bench.analysis.erf.study import KINDS, Observation
from dk_bench.analysis.family import Difference, corrected
from dk_bench.claims.studies import HELD
from dk_bench.tables.statistics import Summary, summarize

NUMBERS = ("sigma", "radius", "area", "inside", "lift", "agreement_rotated", "agreement_scaled")
PICTURES, CHECKPOINTS, SEEDS = "pictures", "checkpoints", "seeds"


@dataclass(frozen=True)
class FieldSummary:
    """Means of `NUMBERS` with half of their 95 % intervals, over ``count`` pictures of one model; over ``count``
    checkpoints of one kind, each of which counts by its mean over pictures; or how far one kind is above another, over
    ``count`` seeds that both have. Those have ``tests``, p values corrected over all of a summary.

    ``dead`` of the ``units`` on pictures as they are, rotated and scaled have no field and are left out."""

    model: str
    over: str
    count: int
    numbers: dict[str, Summary]
    dead: int = 0
    units: int = 0
    tests: dict[str, Difference] = field(default_factory=dict)


def summary(observations: Sequence[Observation]) -> list[FieldSummary]:
    """Summarizes every model over pictures; every kind of model that has several checkpoints over those; its
    differences to the first kind over the seeds that both have; and its differences to itself with offsets held at
    their mean, where that was observed too.

    Sigma, radius, area and what lies on the object are of the pictures as they are. ``lift`` is the share of the
    energy on the object over the object's share of the pixels; what no picture has is left out.
    """
    lines, observed, means, units = [], {}, {}, {}
    for seen in observations:
        observed.setdefault((seen.kind_of_model, seen.model), []).append(seen)
    for (kind, model), own in observed.items():
        values = _values(own)
        units.setdefault(kind, []).extend(seen.dead for seen in own)
        lines.append(_line(model, PICTURES, len(values.get("sigma", ())), values, [seen.dead for seen in own]))
        # What stands in a checkpoint's name behind its kind is its seed.
        mean = {name: fmean(of_name) for name, of_name in values.items()}
        means.setdefault(kind, {}).update({model.removeprefix(kind): mean} if mean else {})
    for kind, seeds in means.items():
        if len(seeds) > 1:
            lines.append(_line(kind, CHECKPOINTS, len(seeds), _shared(seeds.values()), units[kind]))
    return lines + tested(_differences(means))


def _values(own: Sequence[Observation]) -> dict[str, list[float]]:
    """Returns the values of each of `NUMBERS` of one model."""
    plain = [seen for seen in own if seen.kind == "original" and not seen.dead]
    on_object = [seen for seen in plain if seen.inside is not None]
    values = {name: [getattr(seen.measures, name) for seen in plain] for name in ("sigma", "radius", "area")}
    values["inside"] = [seen.inside for seen in on_object]
    values["lift"] = [seen.inside / seen.covered for seen in on_object]
    for kind in KINDS[1:]:
        agreements = (seen.agreement for seen in own if seen.kind == kind)
        values[f"agreement_{kind}"] = [agreement for agreement in agreements if agreement is not None]
    return {name: of_name for name, of_name in values.items() if of_name}


def _shared(members: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    """Returns the numbers that all members have."""
    members = list(members)
    return {name: [own[name] for own in members] for name in NUMBERS if all(name in own for own in members)}


def _line(model: str, over: str, count: int, values: dict[str, list[float]], dead: Sequence[bool] = ()) -> FieldSummary:
    numbers = {name: summarize(of_name) for name, of_name in values.items()}
    return FieldSummary(model, over, count, numbers, sum(dead), len(dead))


def _differences(means: dict[str, dict[str, dict[str, float]]]) -> list[FieldSummary]:
    """Returns the differences of every kind to the first, and to itself held at the mean: those of several seeds."""
    first, *others = means
    pairs = [(kind, first) for kind in others if not kind.endswith(HELD)]
    pairs += [(kind, kind + HELD) for kind in means if kind + HELD in means]
    lines = []
    for kind, base in pairs:
        common = [(means[kind][seed], means[base][seed]) for seed in means[kind] if seed in means[base]]
        if len(common) > 1:
            above = [{name: own[name] - other[name] for name in own if name in other} for own, other in common]
            lines.append(_line(f"{kind} - {base}", SEEDS, len(common), _shared(above)))
    return lines


def tested(differences: Sequence[FieldSummary]) -> list[FieldSummary]:
    """Gives differences their tests, all of them one family."""
    places = [(line.model, name) for line in differences for name in line.numbers]
    tests = iter(corrected([Difference(each) for line in differences for each in line.numbers.values()]))
    found = dict(zip(places, tests, strict=True))
    return [replace(line, tests={name: found[line.model, name] for name in line.numbers}) for line in differences]
