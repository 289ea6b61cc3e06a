"""The claims as a document: a table for each family, one for what is not tested, and what the words mean."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from urllib.parse import quote

from dk_bench.claims.file import Experiment, Study, on_grid
from dk_bench.claims.findings import Family, Finding
from dk_bench.tables.contrasts import ALPHA, CONTRADICTED, EQUIVALENT, POWER, SUPPORTED, UNDECIDED
from dk_bench.tables.entries import NOTHING, Chance, Markup, Number
from dk_bench.tables.render import markdown_table, markdown_text
from dk_bench.tables.statistics import summarize
from dk_bench.tables.table import Column, Document, make_table

DIGITS = {"points": 1, "R2": 2, "share": 3, "cosine": 3}  # after the point, by a claim's unit; 2 for others

NOTES = (
    "A row is a claim of the paper, in our words, and its contrast: figures of some arms minus those of others, of one "
    "seed. Paper: the same contrast of the paper's own figures, of its models on ImageNet or COCO, so of "
    "other data and sizes than ours; none where it prints none. Grid: where the taps of scope 4 start, centred as in "
    "the released code, or spread over the scope. Rows of experiments beyond the paper, at the end, are questions of "
    "ours, for which it has no figures: margins there are declared.",
    "Arms: s3, s4, s5, s9 are local DK at scope 3, 4, 5, 9, s4_spread with its taps spread, s4_unclipped without "
    "clipping, s4_slow with a multiplier of 0.01 on the learning rate of its offsets; dk_pw and gdk_pw have global DK "
    "on 1x1 convolutions too, beside local and global DK; scc and scc_dk are CondConv and CondConv with local DK, dcn "
    "and dcn_dk deformable convolution and that with local DK; full is ResNet-50. Beyond the paper dense_s3, dense_s4 "
    "and dense_s4_spread have local DK on ordinary 3x3 convolutions, dense_dcn deformable convolution, dense_dcn_dk "
    "both; dk_lpw has local DK on depthwise and on 1x1 convolutions.",
    "Ours: mean over n seeds ± half of its 95 % interval (Student's t, not corrected), in points unless a unit is "
    "named: what seeds do, on images that are the same for all. n counts complete blocks: seeds that every arm "
    "that was begun has finished, on the same kind of hardware and the same images, so that a seed at which an arm "
    "fails counts nowhere. With fewer seeds than planned a verdict is an interim one: looking again and again as seeds "
    "come in makes more errors than the test allows for, so that the last word is that of all planned seeds.",
    "p: Student's paired t test, two-sided, that the mean is zero; beside it the exact test by sign flips, which needs "
    "no normal distribution and decides nothing: of n seeds it is 2^(1-n) at least. p (Holm): Student's, corrected by "
    "Holm's method for all rows of the table, those that are not run too: they are its family, declared in "
    "dk_bench/claims/claims.yaml.",
    f"Verdict: supported or contradicted where the corrected p is {ALPHA} at most, by the sign; equivalent where two "
    "one-sided t tests, corrected likewise, find the mean within the margin; undecided otherwise, with the seeds with "
    f"which the paper's difference would be told and none be found within the margin, each at a power of {POWER:.0%}, "
    "if seeds differ as ours do. A claim to be as good as another is tested against minus the margin: supported where "
    "not worse by that much. Not run: no complete block. The margin is half of the paper's difference, at least 0.3 "
    "points, where the claim declares no other.",
)


def claims_document(
    families: Iterable[Family],
    untested: Iterable[Finding] = (),
    plan: tuple[str, Mapping[str, str]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> Document:
    """Returns tables and notes; what is beyond the paper comes last. ``plan``: its file, and its commit by experiment.
    ``folders``: by experiment, the folder of its records as seen from the document."""
    families, untested = sorted(families, key=attrgetter("is_beyond")), list(untested)
    tables = [make_table(_heading(f), COLUMNS, f.findings, _note(f, folders or {})) for f in families]
    if untested:
        base = Column("base", attrgetter("backbone"))
        table = make_table("Not tested: no experiment has these arms", (base, *COLUMNS), untested)
        tables.insert(len([f for f in families if not f.is_beyond]), table)
    notes = [*(_plan_notes(families, *plan) if plan else []), *NOTES]
    return Document("claims", "The paper's claims, decided.", notes, tables)


def claims_summary(families: Iterable[Family], link: str) -> str:
    """Returns the picture, and what was run in few columns, with the seeds that count of those planned, as Markdown;
    what is beyond the paper comes last.
    ``link``: the table as seen from the text, without its ending."""
    families = sorted(families, key=attrgetter("is_beyond"))
    planned = {f.place.title: _planned(f.place) for f in families}
    by_place: dict[tuple[str, str], list[Finding]] = {}
    for family in families:
        by_place.setdefault((family.place.title, family.backbone), []).extend(family.findings)
    rows = [(*about, found) for about, found in by_place.items() if any(each.judgement.n for each in found)]
    if not rows:
        return "No claim has been tested yet."
    columns = [
        Column("tested on", lambda row: Markup(f"[{markdown_text(', '.join(row[:2]))}]({quote(link)}.md)")),
        Column("n", lambda row: _seeds(row[2], planned[row[0]])),
        *(Column(word, partial(_names, word)) for word in (SUPPORTED, CONTRADICTED, EQUIVALENT, UNDECIDED)),
    ]
    picture = f"![Differences of the paper and ours, with intervals]({quote(link)}.svg)"
    return f"{picture}\n\n{markdown_table(make_table('', columns, rows))}"


def _planned(place: Experiment | Study) -> int:
    return (place.experiment if isinstance(place, Study) else place).seeds


def _seeds(findings: list[Finding], planned: int) -> str:
    """Returns how many seeds count, at least and at most, of those planned; verdicts of fewer are interim ones."""
    counts = sorted({finding.judgement.n for finding in findings} - {0})
    words = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"{words} of {planned}" + ", interim" * (counts[0] < planned)


def _names(word: str, row: tuple[str, str, list[Finding]]) -> str:
    """Returns what has a verdict, by the correction of its family, and what of it that is told is within the margin."""
    found, told = [finding for finding in row[-1] if finding.verdict.word == word], word in (SUPPORTED, CONTRADICTED)
    return ", ".join(contrast_name(f) + " (within the margin)" * (told and f.verdict.within_margin) for f in found)


def contrast_name(finding: Finding) -> str:
    """Returns the claim's name, and the grid where it has rows of both: ``local-over-rigid (spread)``."""
    return finding.claim.id + f" ({finding.grid})" * (len(finding.claim.grids) > 1)


def short_name(family: Family) -> str:
    """Returns experiment or study, base, and which family of several: ``E2, photographs: CIFAR-10, ResNet-50-DW``."""
    return ", ".join(word for word in (family.place.title, family.backbone, family.name) if word)


def figure_text(finding: Finding) -> str:
    """Returns our figure as tables print it: ``+1.3 ± 0.5 (n=6)``."""
    judged, digits = finding.judgement, DIGITS.get(finding.claim.unit, 2)
    if judged.mean is None:
        return ""
    half = "" if judged.half is None else f" ± {judged.half:.{digits}f}"
    unit = "" if finding.claim.unit == "points" else f" {finding.claim.unit}"
    return f"{judged.mean:+z.{digits}f}{half}{unit} (n={judged.n})"


def contrast_text(finding: Finding) -> str:
    """Returns the contrast in the names of its arms, ``s4 - rigid``, and of metrics where it has some of its own."""
    claim = finding.claim
    if not claim.contrast:
        return claim.figure
    by_arm: dict[str, dict[str | None, float]] = {}
    for term in claim.contrast:
        by_arm.setdefault(on_grid(term.arm, finding.grid), {})[term.metric] = term.weight
    first, *others = by_arm.values()
    if None in first:
        return _sum({arm: weights[None] for arm, weights in by_arm.items()})
    if all(weights == {metric: -weight for metric, weight in first.items()} for weights in others):
        return f"({_sum(dict(zip(by_arm, (1, *[-1] * len(others)), strict=True)))}) of ({_sum(first)})"
    return _sum({f"{arm} {metric}": weight for arm, weights in by_arm.items() for metric, weight in weights.items()})


def _sum(weights: Mapping[str, float]) -> str:
    """Returns ``a + 0.5 b - c``, what is added first."""
    words = ""
    for name, weight in sorted(weights.items(), key=lambda item: item[1] < 0):
        factor = "" if abs(weight) == 1 else f"{abs(weight):g} "
        words += (" - " if weight < 0 else " + " if words else "") + factor + name
    return words


def _heading(family: Family) -> str:
    words = short_name(family)
    if isinstance(family.place, Study):
        return f"{words} as {family.model}"
    if family.blocks.data is None:
        return f"{words} as {family.model}: no records yet"
    images = family.blocks.runs[0].data.get("test_images") if family.place.metric.startswith("test/") else None
    tests = f", {images:,} test images" if isinstance(images, int) else ""
    length = f", {family.blocks.length}" * bool(family.blocks.length)
    return f"{words} as {family.model} on {family.blocks.data}{tests}, {family.blocks.size} pixels{length}"


COLUMNS = (
    Column("claim", attrgetter("claim.text")),
    Column("contrast", contrast_text),
    Column("grid", attrgetter("taps")),
    Column("paper", lambda finding: Number(finding.paper, 1, signed=True)),
    Column("ours", lambda finding: figure_text(finding) or NOTHING),
    Column("margin", lambda finding: Number(finding.judgement.margin, max(DIGITS.get(finding.claim.unit, 2), 2))),
    Column("p, sign flips", lambda finding: Chance(finding.judgement.p_sign_flip)),
    Column("p", lambda finding: Chance(finding.judgement.p)),
    Column("p (Holm)", lambda finding: Chance(finding.verdict.p)),
    Column("verdict", lambda finding: str(finding.verdict)),
)


def _plan_notes(families: Iterable[Family], plan: str, commits: Mapping[str, str]) -> list[str]:
    """Returns the commit that fixed what was to be run, for each experiment that has runs."""
    titles = {family.place.name: family.place.title for family in families if family.blocks.runs}
    if not titles:
        return []
    commits = {title: commits.get(name, "")[:12] or "none is written down" for name, title in titles.items()}
    words = "; ".join(f"{markdown_text(title)}: {commit}" for title, commit in commits.items())
    return [f"Plan: {plan}, fixed before the first run by commit. {words}."]


def _note(family: Family, folders: Mapping[str, str]) -> str:
    """Tells what stands below a table: its family, where its figures come from, and which blocks are not whole."""
    members = ", ".join(dict.fromkeys(finding.claim.id for finding in family.findings))
    note = f"Family of {len(family.findings)} contrast{'s' * (len(family.findings) != 1)}: {members}."
    if isinstance(family.place, Study):
        files = [file for file in (family.place.dynamics, family.place.erf) if file]
        counted = f"checkpoints of blocks that count there, of {_planned(family.place)} planned"
        return f"{note} From {' and '.join(files)}: {counted}."
    if folder := folders.get(family.place.name):
        note += f" Records: [{markdown_text(folder)}]({quote(folder)})."
    if family.blocks.runs:
        seeds = ", ".join(map(str, family.blocks.seeds)) or "none"
        note += f" Blocks that count, of {family.place.seeds} planned: seeds {seeds}."
    note += "".join(f" Seed {seed} lacks {', '.join(arms)}." for seed, arms in family.blocks.missing.items())
    for seed, why in family.blocks.apart.items():
        note += f" Seed {seed} is of {why}: {'one of them counts' if seed in family.blocks.seeds else 'no block'}."
    note += f" Pooled: {', '.join(family.blocks.pooled)}." if family.blocks.pooled else ""
    return note + _levels(family)


def _levels(family: Family) -> str:
    """Tells how far the arms of contrasts of several metrics are apart in each of them, since a difference of two falls
    does not tell which arm began lower; nothing where no contrast is so."""
    levels: dict[str, dict[str, str]] = {}
    for finding in family.findings:
        by_metric: dict[str | None, dict[str, float]] = {}
        for term in finding.claim.contrast:
            by_metric.setdefault(term.metric, {})[on_grid(term.arm, finding.grid)] = term.weight
        for metric, weights in by_metric.items():
            first = next(iter(weights.values()))
            weights = {arm: weight / first for arm, weight in weights.items()}
            values = family.blocks.difference(weights, metric) if metric and len(by_metric) > 1 else []
            if values and abs(sum(weights.values())) < 1e-9:
                levels.setdefault(_sum(weights), {})[metric] = _mean(values)
    words = [
        f"{arms} is " + ", ".join(f"{mean} of {metric}" for metric, mean in means.items())
        for arms, means in levels.items()
    ]
    why = "an arm that is lower without a shift has less to fall, and none near chance falls much"
    return f" Not planned and not corrected: {'; '.join(words)}: {why}." if words else ""


def _mean(values: list[float]) -> str:
    summary = summarize(values)
    half = "" if summary.half_width is None else f" ± {summary.half_width:.1f}"
    return f"{summary.mean:+.1f}{half}"


def record_folders(families: Iterable[Family], paths: Mapping[str, Path], start: Path) -> dict[str, str]:
    """Returns each experiment's folder of records, seen from ``start``. ``paths``: a record's folder by its run_id."""
    found: dict[str, list[Path]] = {}
    for family in families:
        for run in family.blocks.runs:
            if run.run_id in paths:
                found.setdefault(family.place.name, []).append(paths[run.run_id].parent)
    return {name: Path(os.path.relpath(os.path.commonpath(of), start)).as_posix() for name, of in found.items()}
