"""Judges the paper's claims: one family of contrasts for each base of each experiment or study."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dk_bench.claims.arms import Blocks
from dk_bench.claims.file import BACKBONES, FIGURES, Arm, Base, Claim, Claims, Experiment, Study, on_grid
from dk_bench.claims.studies import DYNAMICS, differences
from dk_bench.errors import UserError
from dk_bench.models import MODELS
from dk_bench.runs.record import EVALUATION, RunRecord
from dk_bench.tables.cells import OFFSET_MULTIPLIER, Cell, gather
from dk_bench.tables.contrasts import Judgement, Verdict, decide, judge
from dk_bench.tables.rows import spec_of


class Contrast(NamedTuple):
    """A claim's contrast at one of the paper's bases, by what its runs are paired by; on ``grid``, of the claim's."""

    claim: Claim
    backbone: str
    grid: str = ""
    differences: Mapping[Any, float] | tuple[()] = ()


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

    ``model``: the base that was trained. ``blocks``: the runs that the contrasts are of, none of a study. ``name``: the
    family's own, where a place and base have several, empty otherwise.
    """

    place: Experiment | Study
    backbone: str
    model: str
    blocks: Blocks
    name: str
    findings: list[Finding]


def families(claims: Claims, records: Iterable[RunRecord], folder: Path) -> list[Family]:
    """Returns every family, even one that nothing was run of, as the file has them; ``folder`` has files of studies.

    Raises UserError where an arm has several cells under the same settings: which of them would a claim be about?
    """
    records = [record for record in records if record.task != EVALUATION]
    found = []
    for experiment in claims.experiments.values():
        cells = gather(record for record in records if record.name == experiment.runs)
        for backbone, base in experiment.bases.items():
            groups = _groups([cell for cell in cells if _base_of(cell) == base.model], base, claims)
            tested = [blocks for group in groups if (blocks := Blocks(experiment.metric, base.arms, group)).is_tested]
            for blocks in tested or [Blocks(experiment.metric, base.arms)]:
                contrasts = _contrasts_of_runs(claims, experiment, backbone, blocks)
                of_runs = experiment, backbone, base.model, blocks
                found += [Family(*of_runs, *each) for each in _families(claims, contrasts)]
    for study in claims.studies.values():
        for backbone, model in study.bases.items():
            contrasts = _contrasts_of_study(claims, study, backbone, folder)
            found += [Family(study, backbone, model, Blocks(), *each) for each in _families(claims, contrasts)]
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


def _is_of(cell: Cell, arm: Arm, arms: list[Arm]) -> bool:
    """Tells whether a cell is an arm's. An arm without a multiplier of its own has every cell of its spec, but for
    those that another arm has by its multiplier."""
    if not arm.trains(spec_of(cell.model, cell)):
        return False
    rate = cell.offset_rates.get(OFFSET_MULTIPLIER)
    own = {other.multiplier for other in arms if other.multiplier is not None and other.trains(arm.spec)}
    return rate == arm.multiplier if arm.multiplier is not None else rate not in own


def _contrasts_of_runs(claims: Claims, experiment: Experiment, backbone: str, blocks: Blocks) -> list[Contrast]:
    arms = set(experiment.bases[backbone].arms)
    tested = [claim for claim in claims.claims.values() if experiment.name in claim.tested]
    rows = [(claim, grid) for claim in tested for grid in claim.grids if set(claim.arms(grid)) <= arms]
    return [Contrast(claim, backbone, grid, blocks.contrast(claim, grid)) for claim, grid in rows]


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
    judgements = []
    for claim, backbone, _, values in family:
        margin, paper = claims.margin(claim, backbone), claims.paper_difference(claim, backbone)
        judgements.append(judge(values, margin=margin, expected_sign=0 if claim.as_good else 1, effect=paper))
    return [
        Finding(claim, backbone, said.effect, grid, _taps(claims, claim, grid), said, verdict)
        for (claim, backbone, grid, _), said, verdict in zip(family, judgements, decide(judgements), strict=True)
    ]


def _taps(claims: Claims, claim: Claim, grid: str) -> str:
    """Returns the grids that a row names: those of its arms of scope 4."""
    specs = [claims.arms[on_grid(term.arm, grid)].spec for term in claim.contrast]
    grids = [spec.grid for spec in specs if spec.depthwise and spec.scope == 4]
    return ", ".join(dict.fromkeys(grids))
