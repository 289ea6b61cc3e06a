"""Numbers of effective receptive fields: over pictures, over checkpoints, differences by seed; and by distance."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np

from dk_bench.analysis.erf.field import Measures
from dk_bench.analysis.erf.study import KINDS, Observation
from dk_bench.analysis.family import Difference, corrected
from dk_bench.claims.studies import HELD
from dk_bench.tables.statistics import Summary, summarize

NUMBERS = (*Measures._fields, "inside", "lift", "agreement_rotated", "agreement_scaled")
PARTS = ("absolute", "signed")  # of a profile
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
    values = {name: [getattr(seen.measures, name) for seen in plain] for name in Measures._fields}
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
    tests = iter(corrected([Difference(each) for line in differences for each in line.numbers.values()]))
    return [replace(line, tests={name: next(tests) for name in line.numbers}) for line in differences]


@dataclass(frozen=True)
class Profile:
    """The mean field of a kind of model, over ``count`` pictures of its one checkpoint or ``count`` checkpoints: by
    distance in whole pixels the mean over the ring's pixels, each field divided by the sum of its magnitudes."""

    model: str
    over: str
    count: int
    parts: dict[str, list[Summary]]

    def rows(self) -> Iterator[dict[str, object]]:
        """Gives the lines of profile.csv, one a distance."""
        for distance, means in enumerate(zip(*self.parts.values(), strict=True)):
            row = {"model": self.model, "over": self.over, "count": self.count, "distance": distance}
            for name, mean in zip(self.parts, means, strict=True):
                row |= {name: mean.mean, f"{name}_half_interval": mean.half_width}
            yield row


def profiles(observations: Sequence[Observation]) -> list[Profile]:
    """Returns one a kind of model, of the pictures as they are, dead units left out; to half the image's side."""
    members: dict[str, dict[str, list[Observation]]] = {}
    for seen in observations:
        if seen.kind == "original" and not seen.dead:
            members.setdefault(seen.kind_of_model, {}).setdefault(seen.model, []).append(seen)
    found = []
    for kind, checkpoints in members.items():
        of_each = [np.stack([_rings(seen) for seen in own]) for own in checkpoints.values()]  # (pictures, 2, distances)
        several = len(of_each) > 1
        samples = np.stack([each.mean(0) for each in of_each]) if several else of_each[0]
        parts = {name: list(map(summarize, samples[:, index].T.tolist())) for index, name in enumerate(PARTS)}
        found.append(Profile(kind, CHECKPOINTS if several else PICTURES, len(samples), parts))
    return found


def _rings(seen: Observation) -> np.ndarray:
    """Returns the absolute and the signed field, averaged over rings a pixel wide about the unit: (2, distances)."""
    side = seen.absolute.shape[0]
    y, x = np.ogrid[:side, :side]
    distance = np.rint(np.hypot(y - seen.centre[0], x - seen.centre[1])).astype(int).ravel()
    count = np.bincount(distance, minlength=side)
    total = seen.absolute.sum()
    sums = [np.bincount(distance, each.ravel(), minlength=side) / total for each in (seen.absolute, seen.signed)]
    return (np.stack(sums) / np.maximum(count, 1))[:, : side // 2 + 1]
