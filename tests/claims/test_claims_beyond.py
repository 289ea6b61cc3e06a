"""Claims beyond the paper: their experiments, families and verdicts, and where they stand in what is written."""

import copy
from pathlib import Path

import pytest
from claims_cases import CLAIMS, run_of, runs_of

from dk_bench.claims.document import claims_document, claims_summary, contrast_text, short_name
from dk_bench.claims.findings import families
from dk_bench.config import load_config, to_dict
from dk_bench.models import MODELS
from dk_bench.runs.identity import flatten
from dk_bench.sweep.grid import read_sweep
from dk_bench.tables.contrasts import MARGIN

ROOT = Path(__file__).parents[2]
BEYOND = {name: place for name, place in CLAIMS.experiments.items() if place.beyond}
RESNET, DEPTHWISE = "ResNet-50", "ResNet-50-DW"
DENSE = {
    "rigid": [80.0, 81.0, 79.0, 80.5],
    "dense_s3": [81.0, 82.1, 79.9, 81.6],
    "dense_s4": [80.1, 80.9, 79.1, 80.4],
    "dense_s4_spread": [82.0, 82.9, 81.2, 82.5],
    "dense_dcn": [84.0, 84.9, 83.0, 84.6],
    "dense_dcn_dk": [83.0, 84.1, 81.9, 83.5],
}


def family_of(records, place="dense", backbone=RESNET):
    (found,) = [f for f in families(CLAIMS, records, Path("none")) if (f.place.name, f.backbone) == (place, backbone)]
    return found


def test_experiments_train_their_arms():
    """Every sweep of an experiment has its runs' name, and the arms of its bases between them."""
    assert BEYOND.keys() == {"dense", "dense_short"}
    paths = [path for path in sorted((ROOT / "sweeps").glob("dense_cifar10*.yaml")) if "recipe" not in path.name]
    swept = {name: [] for name in BEYOND}
    for path in paths:
        sweep = read_sweep(path)
        config = load_config(ROOT / sweep.argv(sweep.points()[0])[2])
        (name,) = [name for name, place in BEYOND.items() if place.runs == config.name]
        assert len({point["seed"] for point in sweep.points()}) == BEYOND[name].seeds
        swept[name] += dict.fromkeys(point["model.name"] for point in sweep.points())
    for name, place in BEYOND.items():
        arms = [(base.model, arm) for base in place.bases.values() for arm in base.arms]
        trained = [(MODELS[model].base, arm) for model in swept[name] for arm in arms_of(MODELS[model], place)]
        assert sorted(trained) == sorted(arms) and len(swept[name]) == len(arms)


def arms_of(model, place):
    """The arms of an experiment that a model is."""
    arms = [arm for base in place.bases.values() if base.model == model.base for arm in base.arms]
    return [arm for arm in arms if CLAIMS.arms[arm].trains(model.spec)]


def test_the_short_protocol_is_the_other_with_less_training():
    whole, short = (
        dict(flatten(to_dict(load_config(ROOT / f"configs/{name}.yaml"))))
        for name in ("dense_cifar10", "dense_cifar10_short")
    )
    differing = {key for key in whole if whole[key] != short[key]}
    assert differing == {"name", "data.batch_size", "optim.epochs", "optim.warmup_epochs", "optim.lr"}


def test_verdicts_are_of_a_family_for_each_base():
    family = family_of(runs_of(DENSE, experiment="dense", backbone=RESNET))
    found = {(each.claim.id, each.grid): each for each in family.findings}
    words = {name: each.verdict.word for name, each in found.items()}
    assert words == {
        ("dense-local-over-rigid", "centred"): "equivalent",
        ("dense-local-over-rigid", "spread"): "supported",
        ("dense-local-at-scope-3", "centred"): "supported",
        ("dense-dcn-over-rigid", "centred"): "supported",
        ("dense-dk-with-dcn", "centred"): "contradicted",
    }
    assert {each.verdict.family for each in family.findings} == {5} and not family.blocks.missing
    assert {(each.paper, each.judgement.margin) for each in family.findings} == {(None, MARGIN)}
    spread = found["dense-local-over-rigid", "spread"]
    assert (contrast_text(spread), spread.taps) == ("dense_s4_spread - rigid", "spread")
    assert found["dense-local-at-scope-3", "centred"].taps == ""


def test_pointwise_kernels_are_beside_none_and_global_ones():
    figures = {"s4": [79.0, 79.4, 78.8], "dk_pw": [79.5, 79.8, 79.4], "dk_lpw": [80.1, 80.4, 79.8]}
    family = family_of(runs_of(figures, experiment="dense_short", backbone=DEPTHWISE), "dense_short", DEPTHWISE)
    means = {contrast_text(each): round(each.judgement.mean, 6) for each in family.findings}
    assert means == {"dk_lpw - s4": 1.033333, "dk_lpw - dk_pw": 0.533333}


def test_protocols_are_not_pooled():
    whole = runs_of({"rigid": [80.0], "dense_s4": [81.0]}, experiment="dense", backbone=RESNET)
    short = runs_of({"rigid": [50.0], "dense_s4": [53.0]}, experiment="dense_short", backbone=RESNET)
    for records in (whole + short, short + copy.deepcopy(whole)):
        means = {name: family_of(records, name).findings[0].judgement.mean for name in BEYOND}
        assert means == {"dense": 1.0, "dense_short": 3.0}


def test_they_stand_behind_the_papers_claims():
    records = runs_of({"rigid": [80.0, 81.0], "dense_s4": [81.0, 82.1]}, experiment="dense", backbone=RESNET)
    found = families(CLAIMS, [*records, run_of("rigid", 79.0), run_of("s4", 80.0)], Path("none"))
    untested = found[0].findings[:1]
    headings = [table.heading for table in claims_document(found, untested).tables]
    at = headings.index("Not tested: no experiment has these arms")
    assert len(headings) - at - 1 == sum(family.is_beyond for family in found) == 4
    assert all(", beyond the paper: " in heading for heading in headings[at + 1 :])
    assert not any("beyond" in heading for heading in headings[:at])
    rows = claims_summary(found, "claims").splitlines()[-2:]
    assert "E2, photographs" in rows[0] and "E4, beyond the paper: CIFAR-10, ResNet-50](claims.md) | 2 of 8" in rows[1]
    assert short_name(found[0]).startswith("E1")


@pytest.mark.parametrize("name", [claim.id for claim in CLAIMS.claims.values() if set(claim.tested) & BEYOND.keys()])
def test_no_claim_of_the_papers_is_among_them(name):
    claim = CLAIMS.claims[name]
    assert set(claim.tested) == BEYOND.keys() and claim.paper is None and claim.source.startswith("not in the paper")
    assert all(CLAIMS.paper_difference(claim, backbone) is None for backbone in claim.bases)
