"""Judges the paper's claims: one family of contrasts for each base of each experiment or study."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.claims.arms import Blocks
from dk_bench.claims.file import BACKBONES, FIGURES, Arm, Base, Claim, Claims, Experiment, Study, on_grid
from dk_bench.claims.studies import DYNAMICS, differences, measured_runs
from dk_bench.errors import UserError
from dk_bench.models import MODELS
from dk_bench.runs.identity import setting
from dk_bench.runs.record import EVALUATION, RunRecord
from dk_bench.tables.cells import OFFSET_MULTIPLIER, Cell, gather
from dk_bench.tables.contrasts import Judgement, Verdict, decide, judge
from dk_bench.tables.rows import spec_of


@dataclass(frozen=True)
class Finding:
    """Holds what is known of a claim at one of the paper's bases.

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
    """The findings of a place and base, on the same data under the same settings: p values are corrected over them.

    ``model``: the base that was trained. ``blocks``: the runs that the contrasts are of, none of a study. ``name``: the
    family's own, where a place and base have several, empty otherwise.
    """

    place: Experiment | Study
    backbone: str
    model: str
    blocks: Blocks
    name: str
    findings: list[Finding]

    @property
    def is_beyond(self) -> bool:
        """Tells whether the paper has neither these claims nor figures of them."""
        return isinstance(self.place, Experiment) and self.place.beyond


def families(claims: Claims, records: Iterable[RunRecord], folder: Path) -> list[Family]:
    """Returns every family, even one that nothing was run of, as the file has them; ``folder`` has files of studies.
    Raises UserError where an arm has several cells under the same settings: which of them would a claim be about?"""
    records = [record for record in records if record.task != EVALUATION]
    found, blocks_of = [], {}
    for experiment in claims.experiments.values():
        cells = gather(record for record in records if record.name == experiment.runs and _counts(record, experiment))
        for backbone, base in experiment.bases.items():
            groups = _groups([cell for cell in cells if _base_of(cell) == base.model], base, claims)
            tested = [blocks for group in groups if (blocks := Blocks(experiment.metric, base.arms, group)).is_tested]
            blocks_of[experiment.name, base.model] = tested
            for blocks in tested or [Blocks(experiment.metric, base.arms)]:
                contrasts = _contrasts_of_runs(claims, experiment, base, blocks)
                found += _families(claims, experiment, backbone, base.model, blocks, contrasts)
    for study in claims.studies.values():
        for backbone, model in study.bases.items():
            blocks = blocks_of.get((study.experiment.name, model), [])
            contrasts = _contrasts_of_study(claims, study, model, blocks, folder)
            found += _families(claims, study, backbone, model, Blocks(), contrasts)
    return found


def untested(claims: Claims, families: Iterable[Family]) -> list[Finding]:
    """Returns the claims that no experiment is to test, at each base that the paper makes them of: not run."""
    tested = {(finding.claim.id, finding.backbone) for family in families for finding in family.findings}
    found = []
    for claim in claims.claims.values():
        bases = [b for b in claim.bases if claims.paper_difference(claim, b) is not None]
        if not any((claim.id, backbone) in tested for backbone in BACKBONES):
            bases = bases or claim.bases[:1]
        for backbone in bases:
            if (claim.id, backbone) not in tested:
                found += _findings(claims, backbone, [(claim, "", {})])  # they are no family
    return found


def _counts(record: RunRecord, experiment: Experiment) -> bool:
    """Tells whether a run is one of an experiment's: not one that was to read no test images where those are what
    counts, as those that chose the settings, since a later run of its cell and seed would count as run again."""
    key = "data.procedural.test_images" if setting(record.config, "data.source") == "procedural" else "data.test"
    reads = setting(record.config, key) or not experiment.metric.startswith("test/")
    return experiment.metric in record.metrics["final"] or bool(reads)


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


Contrast = tuple[Claim, str, Mapping[Any, float]]  # a claim, the grid it is on, differences by what runs are paired by


def _contrasts_of_runs(claims: Claims, experiment: Experiment, base: Base, blocks: Blocks) -> list[Contrast]:
    tested = [claim for claim in claims.claims.values() if experiment.name in claim.tested]
    rows = [(claim, grid) for claim in tested for grid in claim.grids if set(claim.arms(grid)) <= set(base.arms)]
    return [(claim, grid, blocks.contrast(claim, grid)) for claim, grid in rows]


def _contrasts_of_study(claims: Claims, study: Study, model: str, tested: list[Blocks], folder: Path) -> list[Contrast]:
    """Returns a study's contrasts over seeds whose checkpoints are of the arms, in blocks that count."""
    contrasts = []
    for claim in (claim for claim in claims.claims.values() if study.name in claim.tested):
        figure = FIGURES[claim.figure]
        file = study.dynamics if figure.study == DYNAMICS else study.erf
        found: dict[int, float] = {}
        if file is not None and (folder / file).exists():
            measured, values = measured_runs(folder / file), differences(figure, folder / file, model)
            wanted = [[blocks.run_ids(arm) for arm in figure.arms] for blocks in tested]
            for seed in values:
                if any(all(seed in ids and ids[seed] in measured.get(seed, ()) for ids in arms) for arms in wanted):
                    found[seed] = values[seed]
        contrasts.append((claim, "", found))
    return contrasts


def _families(
    claims: Claims, place: Experiment | Study, backbone: str, model: str, blocks: Blocks, contrasts: list[Contrast]
) -> list[Family]:
    """Returns the families of what one place tests, with their names, which are empty where there is one alone."""
    by_name: dict[str, list[Contrast]] = defaultdict(list)
    for contrast in contrasts:
        by_name[contrast[0].family].append(contrast)
    return [
        Family(place, backbone, model, blocks, name * (len(by_name) > 1), _findings(claims, backbone, family))
        for name, family in by_name.items()
    ]


def _findings(claims: Claims, backbone: str, family: list[Contrast]) -> list[Finding]:
    """Returns what a family's contrasts say at one of the paper's bases, judged together."""
    judgements = []
    for claim, _, values in family:
        margin, paper = claims.margin(claim, backbone), claims.paper_difference(claim, backbone)
        judgements.append(judge(values.values(), margin=margin, expected_sign=0 if claim.as_good else 1, effect=paper))
    found = []
    for (claim, grid, _), judged, verdict in zip(family, judgements, decide(judgements), strict=True):
        specs = [claims.arms[on_grid(term.arm, grid)].spec for term in claim.contrast]
        taps = dict.fromkeys(spec.grid for spec in specs if (spec.depthwise or spec.dense) and spec.scope == 4)
        found.append(Finding(claim, backbone, judged.effect, grid, ", ".join(taps), judged, verdict))
    return found
