"""The committed results: tables are those that the records give, and the README's figures are the records'."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

from dk_bench.claims.file import load_claims
from dk_bench.claims.findings import families
from dk_bench.claims.plan import kept_plan, plan_commits
from dk_bench.cli import main
from dk_bench.report.readme import BEGIN, CLAIMS_BEGIN, CLAIMS_END, END, SPEED_BEGIN, SPEED_END
from dk_bench.runs.record import find_records, read_record
from dk_bench.tables.documents import NAMES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def test_tables_are_those_of_the_records(tmp_path):
    copy = shutil.copytree(RESULTS, tmp_path / "results")
    texts = {
        copy / "README.md": ((BEGIN, END), (SPEED_BEGIN, SPEED_END)),
        tmp_path / "README.md": ((CLAIMS_BEGIN, CLAIMS_END),),
    }
    for path, parts in texts.items():
        without = (ROOT / path.relative_to(tmp_path)).read_text()
        for begin, end in parts:
            without = without.partition(begin)[0] + begin + "old" + end + without.partition(end)[2]
        path.write_text(without)
    for table in [*copy.glob("*.md"), *copy.glob("*.csv"), *copy.glob("*.tex")]:
        if table.stem in (*NAMES, "claims"):
            table.unlink()
    assert main(["tables", str(copy), "--readme", str(copy / "README.md")]) == 0
    assert main(["claims", str(copy), "--readme", str(tmp_path / "README.md")]) == 0
    for table in sorted(RESULTS.glob("*.*")):
        assert (copy / table.name).read_bytes() == table.read_bytes(), f"{table.name}: run `make tables`"
    for path in texts:
        assert path.read_text() == (ROOT / path.relative_to(tmp_path)).read_text(), f"{path}: run `make tables`"
    assert "tables results --readme results/README.md" in (ROOT / "Makefile").read_text()


def test_readme_says_what_holds_in_few_lines():
    section = (ROOT / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]
    assert 5 < len(section.strip().splitlines()) <= 25 and "](results/claims.md)" in section


def test_readme_says_in_words_what_the_verdicts_are():
    records = [read_record(path) for path in find_records([RESULTS])]
    every = families(load_claims(), records, RESULTS)
    found = [family for family in every if family.backbone == "ResNet-50-DW" and not family.is_beyond]
    told = {
        (family.place.name, each.claim.id, each.grid): each.verdict.word
        for family in found
        for each in family.findings
        if each.verdict.word in ("supported", "contradicted")
    }
    below = {
        ("local-over-rigid", "centred"),
        ("local-over-rigid-spread", "centred"),
        ("local-at-scope-3", "centred"),
        ("local-over-global", "centred"),
        ("dk-with-scc", "centred"),
        ("local-over-dcn", "centred"),
        ("local-as-good-as-scc", "centred"),
    }
    above = {("spread-over-centred", "centred"), ("scope-4-over-5", "spread")}
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = [
        "local DK is below its rigid base at scopes 3 and 4 (on both grids), below global DK, below deformable "
        "convolution (DCN) and CondConv, and CondConv with it is below CondConv alone. At scope 4 spread taps beat "
        "centred ones and scope 5; on deformed shapes, with three seeds, clipping matters and fields turn less with "
        "objects; all else of it is undecided",
        "with six of the eight planned seeds,",
        "one epoch on, local DK on dense convolutions (scope 4), alone and with DCN, and on 1x1 ones is below what it "
        "was added to",
    ]
    assert all(phrase in readme for phrase in said)
    expected = dict.fromkeys(below, "contradicted") | dict.fromkeys(above, "supported")
    deformed = {
        ("deformation", "clipping", "centred"): "supported",
        ("figures", "fields-follow-rotation", ""): "contradicted",
    }
    assert told == {("photographs", *which): word for which, word in expected.items()} | deformed
    mathematics = " ".join((ROOT / "docs" / "mathematics.md").read_text().split())
    assert "On photographs of 32 pixels [spread taps are better than centred ones]" in mathematics  # as told above
    assert not any(each.verdict.within_margin for family in found for each in family.findings)
    counted = {"photographs": (6, 8), "deformation": (3, 8)}
    planned = {
        (family.place.name, len(family.blocks.seeds), family.place.seeds) for family in found if family.blocks.runs
    }
    assert {(name, *seeds) for name, seeds in counted.items()} <= planned
    assert {each.judgement.n for family in found if family.place.name == "figures" for each in family.findings} == {3}
    beyond = [finding for family in every if family.is_beyond for finding in family.findings]
    assert {(f.claim.id, f.grid) for f in beyond if f.verdict.word == "contradicted"} >= {
        ("dense-local-over-rigid", "centred"),
        ("dense-local-over-rigid", "spread"),
        ("dense-dk-with-dcn", "centred"),
        ("pointwise-local-over-rigid", "centred"),
    }


def test_plan_precedes_the_runs_of_its_experiments():
    records = [read_record(path) for path in find_records([RESULTS])]
    found = families(load_claims(), records, RESULTS)
    plan, kept = kept_plan(RESULTS)
    experiments = {family.place.name for family in found if family.blocks.runs}
    assert kept.keys() == experiments, "run `dk-bench claims results --plan docs/experiments.md`"
    assert not experiments or (ROOT / plan).exists()
    if git("rev-parse", "--is-shallow-repository") == "false":  # no archive of the sources
        assert plan_commits(found, ROOT / plan) == kept
        names = {experiment.name: experiment.runs for experiment in load_claims().experiments.values()}
        for name, commit in kept.items():
            paths = [path for path in find_records([RESULTS]) if read_record(path).name == names[name]]
            added = git("log", "--diff-filter=A", "--format=%H", "--", *paths).split()
            assert all(git("merge-base", "--is-ancestor", commit, of) is not None for of in added)


def git(*words):
    """What git prints in this checkout, None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def test_records_are_of_committed_code():
    records = [read_record(path) for path in find_records([RESULTS])]
    assert len(records) >= 6
    commits = [record.git for record in records]
    commits += [json.loads(path.read_text(encoding="utf-8"))["git"] for path in RESULTS.glob("bench/*.json")]
    assert all(git["commit"] and git["dirty"] is False for git in commits)


EARLIER = ("photos_det", "photos10", "procedural")  # what ran before the experiments that claims.md judges


def test_readme_says_whether_anything_is_told_from_zero():
    readme = (RESULTS / "README.md").read_text()
    table = readme.partition(BEGIN)[2].partition(END)[0]
    blocks = re.split(r"^\| \[(\w+)\]", table, flags=re.MULTILINE)[1:]  # data, its rows, data, its rows, ...
    rows = "\n".join(rows for data, rows in zip(blocks[::2], blocks[1::2], strict=True) if data in EARLIER)
    verdicts = re.findall(r"\| <?\d\.\d+ \| ([a-z]+)[^|]* \|$", rows, re.MULTILINE)
    for name in ("demo", "detection"):
        with open(RESULTS / f"{name}.csv", encoding="utf-8") as file:
            found = [row for row in csv.DictReader(file) if row["table"].partition(" ")[0] in EARLIER]
        verdicts += [row["Δ DK, verdict"].partition(" ")[0] for row in found if row["Δ DK"]]
    assert len(verdicts) >= 10
    said = "every verdict is open: no difference is told from zero" in readme
    assert (set(verdicts) == {"undecided"}) == said
