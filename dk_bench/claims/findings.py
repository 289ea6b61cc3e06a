"""Judges the paper's claims: one family of contrasts for each base of each experiment or study."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dk_bench.claims.file import BACKBONES, FIGURES, Arm, Base, Claim, Claims, Experiment, Study, on_grid
from dk_bench.claims.studies import DYNAMICS, differences
from dk_bench.errors import UserError
from dk_bench.models import MODELS
from dk_bench.runs.identity import setting
from dk_bench.runs.record import EVALUATION, RunRecord
from dk_bench.tables.cells import OFFSET_MULTIPLIER, Cell, Data, gather
from dk_bench.tables.contrasts import Judgement, Verdict, decide, judge
from dk_bench.tables.pooling import Pair, count_dirty, mixture, pair_of
from dk_bench.tables.rows import spec_of


class Contrast(NamedTuple):
    """A claim's contrast at one of the paper's bases, by what its runs are paired by; on ``grid``, of the claim's."""

    claim: Claim
    backbone: str
    grid: str = ""
    differences: Mapping[Any, float] = MappingProxyType({})


@dataclass(frozen=True)
class Finding:
    """What is known of a claim at one of the paper's bases.

    ``paper``: the paper's difference, None where it prints none. ``grid``: of the claim's, the row's. ``taps``: where
    those of arms of scope 4 start, empty where no arm has that scope. ``judgement``: of the contrast by seed, in the
    claim's unit, over complete blocks.
    """

    claim: Claim
    backbone: str
    paper: float | None
    grid: str
    taps: str
    judgement: Judgement
    verdict: Verdict


@dataclass(frozen=True)
class Family:
    """The findings of one experiment or study and base, on the same data under the same settings: p values are
    corrected over them.

    ``name``: the family's own, where a place and base have several, empty otherwise. ``model``: the base that was
    trained. ``runs``: those the contrasts are of. ``whole``: the seeds that count, of which every arm that was begun
    has a run that the others may be paired with; ``missing``: by seed, the arms without a finished run; ``apart``: by
    seed, how its runs differ so that they are no pairs; ``pooled``: what of the runs is not alike, in words.
    """

    place: Experiment | Study
    backbone: str
    name: str
    model: str
    findings: list[Finding]
    runs: list[RunRecord] = field(default_factory=list)
    data: Data | None = None
    size: int | None = None
    whole: Sequence[int] = ()
    missing: Mapping[int, list[str]] = field(default_factory=dict)
    apart: Mapping[int, str] = field(default_factory=dict)
    pooled: Sequence[str] = ()


def families(claims: Claims, records: Iterable[RunRecord], folder: Path) -> list[Family]:
    """Returns every family, also those that nothing was run of, in the order of the file; files of studies are below
    ``folder``.

    Raises UserError where an arm has several cells under the same settings, so that it could not be told which of them
    a claim is about.
    """
    records = [record for record in records if record.task != EVALUATION]
    found = []
    for experiment in claims.experiments.values():
        cells = gather(record for record in records if record.name == experiment.runs)
        for backbone, base in experiment.bases.items():
            groups = _groups([cell for cell in cells if _base_of(cell) == base.model], base, claims)
            groups = [group for group in groups if _is_tested(group, experiment.metric)]
            for group in groups or [{}]:
                contrasts = _contrasts_of_cells(claims, experiment, backbone, group)
                found += [_of_cells(experiment, backbone, group, *family) for family in _families(claims, contrasts)]
    for study in claims.studies.values():
        for backbone, model in study.bases.items():
            contrasts = _contrasts_of_study(claims, study, backbone, folder)
            found += [Family(study, backbone, name, model, of) for name, of in _families(claims, contrasts)]
    return found


def untested(claims: Claims, found: Iterable[Family]) -> list[Finding]:
    """Returns the claims that no experiment is to test, at each base that the paper makes them of: not run."""
    tested = {(finding.claim.id, finding.backbone) for family in found for finding in family.findings}
    alone: list[Contrast] = []
    for claim in claims.claims.values():
        with_figures = [b for b in claim.bases if claims.paper_difference(claim, b) is not None]
        if not any((claim.id, backbone) in tested for backbone in BACKBONES):
            with_figures = with_figures or claim.bases[:1]
        alone += [Contrast(claim, backbone) for backbone in with_figures if (claim.id, backbone) not in tested]
    return [finding for each in alone for finding in _findings(claims, [each])]  # they are no family


def _base_of(cell: Cell) -> str:
    known = MODELS.get(cell.model)
    return known.base if known else cell.model


def _groups(cells: list[Cell], base: Base, claims: Claims) -> list[dict[str, Cell]]:
    """Returns the arms' cells, apart by what else differs: data and settings."""
    groups: dict[str, dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        for name in base.arms:
            if not _is_of(cell, claims.arms[name], [claims.arms[other] for other in base.arms]):
                continue
            group = groups[json.dumps([str(cell.data), cell.settings], sort_keys=True)]
            if name in group:
                labels = " and ".join(one.label or "no label" for one in (group[name], cell))
                raise UserError(f"arm {name} of {base.model}: two cells of runs {cell.runs[0].name}: {labels}")
            group[name] = cell
    return list(groups.values())


def _is_tested(cells: Mapping[str, Cell], metric: str) -> bool:
    """Tells whether there is something to compare: not of runs that chose the settings, which are of rigid models
    alone."""
    return len(cells) > 1 and any(_finished(cell, metric) for cell in cells.values())


def _is_of(cell: Cell, arm: Arm, arms: list[Arm]) -> bool:
    """Tells whether a cell is an arm's. An arm without a multiplier of its own has every cell of its spec, but for
    those that another arm has by its multiplier."""
    if not arm.trains(spec_of(cell.model, cell)):
        return False
    rate = cell.offset_rates.get(OFFSET_MULTIPLIER)
    own = {other.multiplier for other in arms if other.multiplier is not None and other.trains(arm.spec)}
    return rate == arm.multiplier if arm.multiplier is not None else rate not in own


def _contrasts_of_cells(
    claims: Claims, experiment: Experiment, backbone: str, cells: Mapping[str, Cell]
) -> list[Contrast]:
    arms, whole = set(experiment.bases[backbone].arms), _whole(cells, experiment.metric)
    tested = [claim for claim in claims.claims.values() if experiment.name in claim.tested]
    contrasts = []
    for claim, grid in ((each, grid) for each in tested for grid in each.grids):
        if set(claim.arms(grid)) <= arms:
            values = _by_seed(claim, grid, experiment.metric, cells)
            found = {pair: value for pair, value in values.items() if pair in whole}
            contrasts.append(Contrast(claim, backbone, grid, found))
    return contrasts


def _of_cells(
    experiment: Experiment, backbone: str, cells: Mapping[str, Cell], name: str, findings: list[Finding]
) -> Family:
    base = experiment.bases[backbone]
    first = next(iter(cells.values()), None)
    if first is None:
        return Family(experiment, backbone, name, base.model, findings)
    seeds = sorted({run.seed for cell in cells.values() for run in cell.runs})
    lacking = {s: [arm for arm in base.arms if s not in _finished(cells.get(arm), experiment.metric)] for s in seeds}
    missing = {seed: names for seed, names in lacking.items() if names}
    runs = [run for cell in cells.values() for run in cell.runs]
    size = (first.runs[0].model.get("input_size") or [setting(first.runs[0].config, "data.size")])[-1]
    whole = sorted({pair.seed for pair in _whole(cells, experiment.metric)})
    state = whole, missing, _apart(cells), _pooled(cells)
    return Family(experiment, backbone, name, base.model, findings, runs, first.data, size, *state)


def _contrasts_of_study(claims: Claims, study: Study, backbone: str, folder: Path) -> list[Contrast]:
    contrasts = []
    for claim in (claim for claim in claims.claims.values() if study.name in claim.tested):
        figure = FIGURES[claim.figure]
        file = study.dynamics if figure.study == DYNAMICS else study.erf
        there = file is not None and (folder / file).exists()
        values = differences(figure, folder / file, study.bases[backbone]) if there else {}
        contrasts.append(Contrast(claim, backbone, "", values))
    return contrasts


def _families(claims: Claims, contrasts: list[Contrast]) -> list[tuple[str, list[Finding]]]:
    """Returns the families of what one place tests, with their names, which are empty where there is one alone."""
    by_name: dict[str, list[Contrast]] = defaultdict(list)
    for contrast in contrasts:
        by_name[contrast.claim.family].append(contrast)
    several = len(by_name) > 1
    return [(name * several, _findings(claims, family)) for name, family in by_name.items()]


def _findings(claims: Claims, family: list[Contrast]) -> list[Finding]:
    """Returns what a family's contrasts say, judged together."""
    papers = [claims.paper_difference(each.claim, each.backbone) for each in family]
    judgements = []
    for (claim, backbone, _, values), paper in zip(family, papers, strict=True):
        sign, margin = 0 if claim.as_good else 1, claims.margin(claim, backbone)
        judgements.append(judge(values, margin=margin, expected_sign=sign, effect=paper))
    return [
        Finding(claim, backbone, paper, grid, _taps(claims, claim, grid), *said)
        for (claim, backbone, grid, _), paper, *said in zip(family, papers, judgements, decide(judgements), strict=True)
    ]


def _taps(claims: Claims, claim: Claim, grid: str) -> str:
    """Returns the grids that a row names: those of its arms of scope 4."""
    specs = [claims.arms[on_grid(term.arm, grid)].spec for term in claim.contrast]
    grids = [spec.grid for spec in specs if spec.depthwise and spec.scope == 4]
    return ", ".join(dict.fromkeys(grids))


def _by_seed(claim: Claim, grid: str, metric: str, cells: Mapping[str, Cell]) -> dict[Pair, float]:
    """Returns the contrast by seed, over those that all of its arms have finished on the same hardware."""
    terms = [(_figures(cells.get(on_grid(t.arm, grid)), t.metric or metric), t.weight) for t in claim.contrast]
    pairs = set.intersection(*(set(runs) for runs, _ in terms))
    return {pair: sum(weight * runs[pair] for runs, weight in terms) for pair in sorted(pairs, key=repr)}


def _whole(cells: Mapping[str, Cell], metric: str) -> set[Pair]:
    """Returns the blocks that count. One without an arm that was begun would be in some contrasts and not in others."""
    return set.intersection(*({*_figures(cell, metric)} for cell in cells.values())) if cells else set()


def _figures(cell: Cell | None, metric: str) -> dict[Pair, float]:
    return cell.figures(metric) if cell else {}


def _finished(cell: Cell | None, metric: str) -> set[int]:
    """Returns the seeds of a cell's finished runs that have a metric."""
    return {pair.seed for pair in _figures(cell, metric)}


def _pooled(cells: Mapping[str, Cell]) -> list[str]:
    """Tells what of the finished runs of all arms is not alike, and those that were run again, which change no
    figure."""
    runs = [run for cell in cells.values() for run in cell.runs if run.status == "finished"]
    again = [f"{arm}, seed {run.seed}" for arm, cell in cells.items() for run in cell.again]
    dirty = count_dirty(runs)
    words = mixture(runs) + [f"{dirty} of {len(runs)} runs of code that no commit holds"] * bool(dirty)
    return words + [f"run again without effect: {'; '.join(again)}"] * bool(again)


def _apart(cells: Mapping[str, Cell]) -> dict[int, str]:
    """Returns the seeds whose finished runs may not all be paired, and how these differ: hardware, or else images."""
    kinds: dict[int, set[Pair]] = defaultdict(set)
    for run in (run for cell in cells.values() for run in cell.runs if run.status == "finished"):
        kinds[run.seed].add(pair_of(run))
    return {seed: _unlike(pairs) for seed, pairs in sorted(kinds.items()) if len(pairs) > 1}


def _unlike(pairs: Iterable[Pair]) -> str:
    draws = {", then ".join(map(str, pair.draw)) for pair in pairs}
    return " and ".join(sorted(draws)) if len(draws) > 1 else "several states of the data"
