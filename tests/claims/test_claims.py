"""The claims: their file, the contrasts that records give, and verdicts."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from claims_cases import CLAIMS, run_of, runs_of

from dk_bench.claims.document import claims_document, contrast_text, figure_text, short_name
from dk_bench.claims.file import CLAIMS_FILE, load_claims
from dk_bench.claims.findings import families, untested
from dk_bench.claims.studies import CLAIMS as FIGURE_CLAIMS
from dk_bench.claims.studies import HELD
from dk_bench.errors import UserError
from dk_bench.models import MODELS

RESNET, MOBILENET = "ResNet-50-DW", "MobileNet-V2"


def findings_of(records, place="photographs", backbone=RESNET, folder=Path("none")):
    """The first family of a place and base, and the findings of all by claim and grid."""
    found = families(CLAIMS, records, folder)
    here = [family for family in found if (family.place.name, family.backbone) == (place, backbone)]
    return here[0], {(finding.claim.id, finding.grid): finding for family in here for finding in family.findings}


def note_of(family):
    return claims_document([family]).tables[0].note


# The file


@pytest.mark.parametrize(
    ("claim", "resnet", "mobilenet"),
    [
        ("local-over-rigid", 1.8, 2.2),
        ("local-at-scope-3", 1.1, None),
        ("scope-4-over-3", 0.7, None),
        ("scope-4-over-5", 0.3, None),
        ("scope-4-over-9", 0.7, None),
        ("global-over-rigid", 1.3, 1.7),
        ("local-over-global", 0.5, 0.5),
        ("pointwise-over-global", 0.3, 0.9),
        ("pointwise-over-local", 0.4, 0.7),
        ("local-over-dcn", 0.1, 0.9),
        ("dk-with-scc", 1.3, 1.2),
        ("dk-with-dcn", 1.0, 1.2),
        ("local-as-good-as-scc", 0.5, -0.2),
        ("depthwise-base", -0.4, None),
        ("detection-local-over-rigid", 1.2, 1.6),
        ("detection-pointwise-over-rigid", 1.8, 2.4),
        ("detection-dcn-over-local", 2.1, 1.5),
        ("detection-dk-with-dcn", 0.7, 1.2),
        ("detection-dk-with-scc", 1.7, 1.1),
        ("clipping", None, None),
    ],
)
def test_differences_are_those_the_paper_states(claim, resnet, mobilenet):
    claim = CLAIMS.claims[claim]
    assert CLAIMS.paper_difference(claim, RESNET) == resnet
    assert CLAIMS.paper_difference(claim, MOBILENET) == mobilenet


def test_margins():
    margins = {name: CLAIMS.margin(CLAIMS.claims[name], RESNET) for name in ("local-over-rigid", "local-over-dcn")}
    assert margins == {"local-over-rigid": 0.9, "local-over-dcn": 0.3}
    assert CLAIMS.margin(CLAIMS.claims["clipping"], RESNET) == CLAIMS.claims["clipping"].margin


def test_every_claim_of_a_figure_is_there_and_every_base_is_a_model():
    named = {claim.figure: claim for claim in CLAIMS.claims.values() if claim.figure}
    assert named.keys() == {claim.id for claim in FIGURE_CLAIMS}
    for claim in FIGURE_CLAIMS:
        is_control = claim.of["model"] == claim.over["model"].removesuffix(HELD)  # of one model, so not of the paper
        assert ("controls" in named[claim.id].tested) == is_control
    bases = [base.model for experiment in CLAIMS.experiments.values() for base in experiment.bases.values()]
    assert all(MODELS[base].base == base for base in bases)


def edit(path, value):
    """Changes a value of the file's content by its path; None takes it away."""

    def change(content):
        *way, last = path
        for key in way:
            content = content[key]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(["claims", 0, "colour"], "red"), "claim local-over-rigid: unknown colour, expected some of id, claim"),
        (edit(["claims", 0, "source"], None), "claim local-over-rigid: missing source"),
        (edit(["claims", 0, "id"], "clipping"), "claim clipping: there twice"),
        (edit(["claims", 0, "id"], 7), "claim 7: id is 7, expected text"),
        (edit(["claims", 0], "text"), "claim 1: expected a mapping, got 'text'"),
        (
            edit(["claims", 0, "contrast"], {"s4": 1, "s7": -1}),
            "claim local-over-rigid: unknown arm 's7', expected one of",
        ),
        (
            edit(["claims", 0, "contrast"], {"s4": 1, "rigid": -2}),
            "contrast: weights sum to -1, expected zero over two",
        ),
        (edit(["claims", 0, "contrast"], {"s4": 1, "rigid": "-1"}), "weight of rigid is '-1', expected a number other"),
        (
            edit(["claims", 0, "contrast"], {"s4": 1, "rigid": -1, "dcn": 0}),
            "weight of dcn is 0, expected a number other",
        ),
        (edit(["claims", 0, "contrast"], {}), "weights sum to 0, expected zero over two terms or more"),
        (edit(["claims", 0, "contrast"], None), "expected a contrast, or a figure of the paper"),
        (edit(["claims", 0, "figure"], "fig3_scale"), "expected a contrast, or a figure of the paper"),
        (edit(["claims", 0, "paper"], "top5"), "unknown paper 'top5', expected one of top1, map"),
        (edit(["claims", 0, "paper"], None), "margin is missing, and the paper has no figures"),
        (edit(["claims", 0, "margin"], -0.5), "margin is -0.5, expected a number above zero"),
        (edit(["claims", 0, "margin"], True), "margin is True, expected a number"),
        (edit(["claims", 0, "grids"], ["diagonal"]), "unknown grid 'diagonal', expected one of centred, spread"),
        (edit(["claims", 0, "margin"], math.inf), "margin is inf, expected a number above zero"),
        (edit(["claims", 0, "contrast"], {"s4": {3: 1}, "rigid": -1}), "contrast: metric 3 of s4, expected text"),
        (edit(["claims", 0, "grids"], []), "grids: expected one, or several that have other arms each, got none"),
        (edit(["claims", 3, "grids"], ["centred", "spread"]), "local-at-scope-3: grids: .*, got centred, spread"),
        (edit(["experiments", "photographs", "seeds"], 1), "experiment photographs: seeds is 1, expected 2 at least"),
        (edit(["experiments", "photographs", "bases", MOBILENET, "arms"], ["s4", "s4"]), "arm s4 is there twice"),
        (edit(["claims", 0, "bases"], ["VGG"]), "unknown base 'VGG', expected one of ResNet-50-DW, MobileNet-V2"),
        (edit(["claims", 0, "tested"], ["dreams"]), "unknown experiment 'dreams', expected one of deformation, p"),
        (edit(["claims", 0, "tested"], ["figures"]), "unknown experiment 'figures'"),
        (
            edit(["experiments", "photographs", "bases", RESNET, "arms"], ["rigid"]),
            r"claim local-over-rigid-spread: tested: no base of experiment photographs has all of its arms \(s4_spread",
        ),
        (edit(["experiments", "photographs", "bases", RESNET, "arms"], ["s7"]), f"base {RESNET}: unknown arm 's7'"),
        (edit(["experiments", "photographs", "metric"], None), "experiment photographs: missing metric"),
        (edit(["experiments", "dense", "beyond"], "yes"), "experiment dense: beyond is 'yes', expected true or false"),
        (edit(["experiments", "photographs", "seeds"], "8"), "experiment photographs: seeds is '8', expected a number"),
        (
            edit(["studies", "figures", "bases"], {RESNET: "resnet50dw"}),
            "study figures: base ResNet-50-DW is resnet50dw, expected that of experiment deformation: small_resnetdw",
        ),
        (
            edit(["studies", "figures", "experiment"], "detection"),
            "study figures: base ResNet-50-DW is small_resnetdw, expected that of experiment detection: test_resnetdw",
        ),
        (edit(["studies", "figures", "experiment"], "dreams"), "study figures: unknown experiment 'dreams'"),
        (edit(["studies", "figures", "bases"], {"VGG": "vgg"}), "study figures: unknown base 'VGG'"),
        (edit(["arms", "s3", "scoop"], 3), "arm s3: unknown scoop, expected some of"),
        (edit(["arms", "s3", "scope"], 2), "arm s3: scope: expected at least kernel_size = 3"),
        (edit(["arms", "s3"], 3), "arm s3: expected what its kernel spec changes, got 3"),
        (edit(["arms"], None), "missing arms"),
    ],
)
def test_bad_file_is_named(tmp_path, change, message):
    content = yaml.safe_load(CLAIMS_FILE.read_text())
    change(content)
    path = tmp_path / "my_claims.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=rf"my_claims\.yaml: .*{message}"):
        load_claims(path)


# Contrasts and verdicts


def test_contrasts_are_of_complete_blocks():
    rigid, s4 = [80.0, 81.0, 79.0, 80.5], [82.0, 82.9, 81.2, 82.5]
    records = runs_of({"rigid": rigid, "s4": s4, "dcn": [83.0, 83.9, 82.1, 83.6]})
    # Of a block that dcn was not run in, and one of two that failed, no contrast takes a pair.
    records += [run_of("rigid", 80.0, 4), run_of("s4", 99.0, 4), run_of("rigid", 80.0, 5)]
    records += [run_of("s4", None, 5, status="failed"), run_of("dcn", 82.0, 5)]
    family, found = findings_of(records)
    local = found["local-over-rigid", "centred"]
    assert (local.judgement.n, local.paper, local.verdict.word) == (4, 1.8, "supported")
    assert local.judgement.mean == pytest.approx(2.025)
    assert figure_text(local) == "+2.0 ± 0.2 (n=4)"  # 2, 1.9, 2.2, 2.0: deviation 0.126, half 3.182 * 0.126 / 2
    assert found["local-over-dcn", "centred"].judgement.n == 4
    assert found["scope-4-over-5", "centred"].verdict.word == "not run"
    absent = ["s3", "s4_spread", "s5", "global", "dcn_dk", "scc", "scc_dk"]
    places = [arm for arm in family.place.bases[RESNET].arms]
    assert family.blocks.missing[0] == [arm for arm in places if arm in absent]
    assert family.blocks.missing[4] == [arm for arm in places if arm in (*absent, "dcn")]
    assert family.blocks.missing[5] == [arm for arm in places if arm in (*absent, "s4")]
    assert local.verdict.family == len(family.findings) == 6 and family.name == "main"


def test_arms_are_told_by_their_spec_whatever_the_model_is_called():
    rigid, named = run_of("rigid", 80.0), run_of("rigid", 83.0)
    named.model |= {"name": "small_resnetdw_dk_s3", "spec": CLAIMS.arms["s3"].spec.to_dict()}
    named.config["model"] = {"name": "small_resnetdw_dk_s3"}
    _, found = findings_of([rigid, named])
    assert found["local-at-scope-3", "centred"].judgement.mean == pytest.approx(3.0)
    assert found["local-over-rigid", "centred"].judgement.n == 0


def test_grids_are_apart():
    _, found = findings_of(runs_of({"rigid": [80.0], "s3": [80.5], "s4": [81.0], "s4_spread": [83.0]}))
    means = {grid: found["scope-4-over-3", grid].judgement.mean for grid in ("centred", "spread")}
    assert means == {"centred": 0.5, "spread": 2.5}
    assert contrast_text(found["scope-4-over-3", "spread"]) == "s4_spread - s3"
    shown = {name: found[name, "centred"].taps for name in ("local-over-rigid-spread", "local-at-scope-3")}
    assert shown == {"local-over-rigid-spread": "spread", "local-at-scope-3": ""}
    assert found["spread-over-centred", "centred"].taps == "spread, centred"
    assert contrast_text(found["spread-over-centred", "centred"]) == "s4_spread - s4"


def test_an_arm_with_its_own_multiplier_is_another():
    figures = {"rigid": [70.0], "s4": [72.0], "s4_slow": [71.0]}
    _, found = findings_of(runs_of(figures, experiment="deformation"), "deformation")
    assert found["local-over-rigid", "centred"].judgement.mean == 2.0
    assert found["slow-offsets", "centred"].judgement.mean == -1.0


def test_robustness_is_a_difference_of_differences():
    turned = {"rigid": (80.0, 60.0), "s4": (82.0, 65.0)}
    records = [
        run_of(arm, top1, experiment="deformation", **{"test/rotation/top1": shifted})
        for arm, (top1, shifted) in turned.items()
    ]
    family, found = findings_of(records, "deformation")
    finding = found["robust-rotation", "centred"]
    assert finding.judgement.mean == pytest.approx(3.0)
    assert contrast_text(finding) == "(s4 - rigid) of (test/rotation/top1 - test/top1)"
    assert found["robust-scale", "centred"].verdict.word == "not run"
    rest = next(f for f in families(CLAIMS, records, Path("none")) if finding.claim in [g.claim for g in f.findings])
    levels = "Not planned and not corrected: s4 - rigid is +5.0 of test/rotation/top1, +2.0 of test/top1"
    assert levels in note_of(rest) and "Not planned" not in note_of(family)


def test_as_good_is_not_below_by_the_margin():
    figures = {"s4": [80.1, 80.9, 80.0, 81.0], "scc": [80.0, 81.0, 80.0, 81.0]}
    _, found = findings_of(runs_of(figures))
    assert found["local-as-good-as-scc", "centred"].judgement.null == -0.3


def test_runs_of_another_device_are_no_pair():
    records = runs_of({"rigid": [80.0, 81.0], "s4": [81.0, 82.0]})
    records[3].device = {"type": "cuda"}
    family, found = findings_of(records)
    assert found["local-over-rigid", "centred"].judgement.n == 1
    assert (
        family.blocks.pooled == ["CPU with GPU"] and family.blocks.seeds == [0] and "s4" not in family.blocks.missing[1]
    )
    assert family.blocks.apart == {1: "CPU (instruction sets unknown) and GPU (settings unknown)"}
    assert "of 8 planned: seeds 0." in note_of(family)
    assert "Seed 1 is of CPU (instruction sets unknown) and GPU (settings unknown): no block." in note_of(family)
    again = run_of("s4", 82.0, 1)  # on the CPU too
    again.run_id += "-cpu"
    family, _ = findings_of([*records, again])
    assert family.blocks.seeds == [0, 1] and "GPU (settings unknown): one of them counts." in note_of(family)


def test_a_seed_counts_once_whatever_it_ran_on():
    """Two kinds of hardware are two draws of rounding, but one of images and of their order."""
    records = runs_of({"rigid": [80.0, 81.0], "s4": [81.0, 83.0]})
    elsewhere = runs_of({"rigid": [70.0, 70.0], "s4": [70.0, 70.0]})
    for record in elsewhere:
        record.run_id, record.device, record.started = record.run_id + "-gpu", {"type": "cuda"}, "2026-01-09"
    judged = findings_of(records + elsewhere)[1]["local-over-rigid", "centred"].judgement
    assert (judged.n, judged.mean) == (2, 1.5)


def test_a_run_without_test_images_takes_no_place():
    """As runs have that choose the settings, one of them perhaps in the cell and seed of a run of the experiment."""
    records = runs_of({"rigid": [80.0], "s4": [81.0]})
    chose = run_of("rigid", None)
    chose.run_id, chose.started = chose.run_id + "-chose", "2020-01-01T00:00:00+00:00"
    family, found = findings_of([chose, *records])
    assert found["local-over-rigid", "centred"].judgement.mean == 1.0
    assert chose.run_id not in [run.run_id for run in family.blocks.runs] and not family.blocks.pooled


def test_runs_tested_on_other_images_are_no_block():
    records = runs_of({"rigid": [80.0, 81.0], "s4": [81.0, 82.0]})
    for record in records:
        record.data = record.data | {"checksum": {"train": "t", "val": "v", "test": "w"}}
    records[3].data = records[3].data | {"checksum": {"train": "t", "val": "v", "test": "other"}}
    family, found = findings_of(records)
    assert family.blocks.seeds == [0] and found["local-over-rigid", "centred"].judgement.n == 1
    assert "Seed 1 is of other test images than the first run: no block." in note_of(family)
    records[1].data = records[3].data  # both of seed 1, which is not to be averaged with seed 0 either
    family, _ = findings_of(records)
    assert family.blocks.seeds == [0] and "Seed 1 is of other test images" in note_of(family)
    for record in records:  # another set's images are another matter
        record.data = record.data | {"checksum": {"test": "w", "test/bend": str(record.seed)}}
    assert findings_of(records)[0].blocks.seeds == [0, 1]


def test_runs_on_other_images_of_one_name_are_no_pair():
    records = runs_of({"rigid": [80.0, 81.0], "s4": [81.0, 82.0]})
    for record in records:
        record.data = record.data | {"checksum": {"train": record.model["spec"]["depthwise"] or "none", "val": "v"}}
    family, found = findings_of(records)
    assert found["local-over-rigid", "centred"].verdict.word == "not run" and family.blocks.seeds == []
    assert "Seed 0 is of several states of the data: no block." in note_of(family)
    records[3].data = records[0].data
    with pytest.raises(UserError, match="arm s4 of small_resnetdw: two cells of runs cifar10: images="):
        findings_of(records)


def test_a_seed_without_a_figure_is_no_block_and_code_that_no_commit_holds_is_named():
    records = runs_of({"rigid": [80.0, 81.0, 80.5], "s4": [81.0, math.nan, 81.6]})
    records[0].git = {"commit": "abc", "dirty": True}
    family, found = findings_of(records)
    assert (found["local-over-rigid", "centred"].judgement.n, family.blocks.seeds) == (2, [0, 2])
    assert "s4" in family.blocks.missing[1] and "1 of 6 runs of code that no commit holds" in family.blocks.pooled
    assert "Pooled: 2 commits, 1 of 6 runs of code that no commit holds." in note_of(family)


def test_differences_of_one_size_decide_nothing():
    _, found = findings_of(runs_of({"rigid": [80.0, 81.0, 79.0, 80.5], "s4": [82.0, 83.0, 81.0, 82.5]}))
    finding = found["local-over-rigid", "centred"]
    assert finding.judgement.p is None and str(finding.verdict) == "undecided"


def test_seeds_are_those_of_the_plan():
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| seeds((?: \| 0 to \d+)+) \|$", text, re.MULTILINE)
    planned = [int(last) + 1 for row in rows for last in re.findall(r"0 to (\d+)", row)]
    assert planned == [place.seeds for place in CLAIMS.experiments.values()]


def test_other_settings_are_another_family():
    records = runs_of({"rigid": [80.0], "s4": [81.0]})
    longer = copy.deepcopy(records)
    for record in longer:
        record.config["optim"]["epochs"] = 99
        record.run_id += "-long"
    found = [f for f in families(CLAIMS, records + longer, Path("none")) if f.blocks.runs]
    assert [(f.name, f.findings[0].judgement.n) for f in found] == [("main", 1), ("rest", 0)] * 2
    choosing = run_of("rigid", 70.0)  # a run that chose the settings is compared with nothing
    choosing.config["optim"]["lr"] = 3.0
    assert len([f for f in families(CLAIMS, [*records, choosing], Path("none")) if f.blocks.runs]) == 2


def test_families_of_one_place_are_corrected_apart():
    found = families(CLAIMS, [], Path("none"))
    here = {f.name: f for f in found if (f.place.name, f.backbone) == ("photographs", RESNET)}
    assert {name: len(family.findings) for name, family in here.items()} == {"main": 6, "rest": 8}
    assert {finding.verdict.family for finding in here["rest"].findings} == {8}
    assert short_name(here["rest"]).endswith("ResNet-50-DW, rest")
    assert [f.name for f in found if f.place.name == "figures"] == [""]


def test_two_cells_of_an_arm_are_refused():
    records = runs_of({"rigid": [80.0], "s4": [81.0]})
    other = run_of("s4", 82.0)
    other.config["optim"]["offset_lr_multiplier"] = 0.5
    with pytest.raises(UserError, match=r"arm s4 of small_resnetdw: two cells of runs cifar10: .*multiplier=0\.5"):
        families(CLAIMS, [*records, other], Path("none"))


def test_claims_of_figures_are_of_the_studies_files(tmp_path):
    folder = tmp_path / "erf" / "e1"
    folder.mkdir(parents=True)
    lines = [
        f"small_resnetdw{arm} (seed {seed}),{0.5 + gain + seed / 100}"
        for arm, gain in (("", 0), ("_dk", 0.1))
        for seed in range(3)
    ]
    head = "model,inside,agreement_rotated,agreement_scaled"
    (folder / "summary.csv").write_text("\n".join([head, *(f"{line},0,0" for line in lines)]) + "\n")
    records = runs_of({"rigid": [80.0] * 3, "s4": [81.0] * 3}, experiment="deformation")
    about = {"checkpoints": [{"seed": record.seed, "run": record.run_id} for record in records]}
    (folder / "summary.json").write_text(json.dumps(about))
    family, found = findings_of(records, "figures", folder=tmp_path)
    assert found["fields-adapt", ""].judgement.mean == pytest.approx(0.1)
    assert found["offsets-tell-scale", ""].verdict.word == "not run"
    assert note_of(family).endswith("erf/e1/summary.csv: checkpoints of blocks that count there, of 8 planned.")
    # A seed that another arm lacks does not count, nor does another arm's checkpoint under the same name.
    rival = runs_of({"scc": [50.0, 50.0]}, experiment="deformation")
    _, found = findings_of([*records, *rival], "figures", folder=tmp_path)
    assert found["fields-adapt", ""].judgement.n == 2
    about["checkpoints"][-1]["run"] = "deformation-small_resnetdw-s4_slow-s2"
    (folder / "summary.json").write_text(json.dumps(about))
    _, found = findings_of(records, "figures", folder=tmp_path)
    assert found["fields-adapt", ""].judgement.n == 2
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match="summary.json: cannot be read: .*expected what the study's command left there"):
        families(CLAIMS, records, tmp_path)


def test_what_no_experiment_has_is_a_row():
    rows = {(f.claim.id, f.backbone): f for f in untested(CLAIMS, families(CLAIMS, [], Path("none")))}
    assert {"depthwise-base", "detection-dk-with-scc", "pointwise-over-global"} <= {claim for claim, _ in rows}
    assert rows["detection-local-over-rigid", MOBILENET].paper == 1.6
    assert ("local-over-rigid", MOBILENET) not in rows and ("clipping", RESNET) not in rows
    assert all(finding.verdict.word == "not run" for finding in rows.values())
