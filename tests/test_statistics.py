"""Statistics over seeds against scipy and statsmodels, and what of them the tables show."""

from __future__ import annotations

import csv
import dataclasses
import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from table_cases import IMAGENET, lines_of, make_record

from dk_bench.results.attempts import attempt_of
from dk_bench.results.cells import Figure
from dk_bench.results.render import Chance, csv_text, latex, markdown, text
from dk_bench.results.rows import verdict
from dk_bench.results.statistics import holm, p_value, summarize
from dk_bench.results.tables import build_documents

SAMPLES = [np.random.default_rng(seed).normal(70, 3, (2, n)) for seed, n in product(range(4), (2, 3, 5, 30))]


# Of samples


def test_summary_by_hand():
    # Values 70, 71, 72: standard deviation 1; Student's t at 97.5 % with 2 degrees of freedom is 4.302653.
    summary = summarize([70.0, 71.0, 72.0])
    assert (summary.n, summary.mean, summary.std) == (3, 71.0, 1.0)
    assert summary.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert summarize([5.0] * 4).half_width == 0.0


@pytest.mark.parametrize("ours, base", SAMPLES)
def test_interval_and_paired_test_are_scipys(ours, base):
    expected = scipy.stats.ttest_rel(ours, base)
    differences = summarize(list(ours - base))
    low, high = expected.confidence_interval(0.95)
    shown = (differences.mean - differences.half_width, differences.mean + differences.half_width)
    assert shown == pytest.approx((low, high), rel=1e-9)
    assert p_value(differences) == pytest.approx(expected.pvalue, rel=1e-9)


def test_one_value_has_no_spread_and_no_p():
    assert dataclasses.astuple(summarize([3.5])) == (1, 3.5, None, None)
    assert p_value(summarize([3.5])) is None


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_figure_from_nothing_or_nan(values):
    with pytest.raises(ValueError):
        summarize(values)


@pytest.mark.parametrize("base", [(59.0, 61.0, 64.2), (74.1, 75.1, 33.3)])
@pytest.mark.parametrize("gain", [0.0, 4.0])
def test_equal_differences_have_no_p(base, gain):
    """Metrics are float32: images right of all images, as training logs them."""
    ours = [float(np.float32(value + gain)) for value in base]
    differences = [a - float(np.float32(b)) for a, b in zip(ours, base, strict=True)]
    assert p_value(summarize(differences)) is None
    almost = [*differences[:-1], differences[-1] + 100 / 50_000]  # one image of ImageNet's
    assert p_value(summarize(almost)) is not None


@pytest.mark.parametrize("seed", range(6))
def test_holm_is_statsmodels(seed):
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(seed).beta(0.4, 2, size=1 + 3 * seed)
    p_values[::4] = p_values[0]  # ties
    expected = multipletests(p_values, method="holm")[1]
    assert holm(list(p_values)) == pytest.approx(list(expected), rel=1e-12)


def test_holm_by_hand():
    # The smallest of four times 4, then times 3, ..., never below one before, never above 1.
    assert holm([0.04, 0.01, None, 0.03, 0.5]) == pytest.approx([0.09, 0.04, None, 0.09, 0.5])
    assert holm([0.4, 0.7]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([None, None]) == [None, None] and holm([]) == []


# In tables

RIGID = dict(enumerate((60.0, 61.0, 59.5)))


def grid(**gains):
    """Records of the tiny models: the rigid base, and each other by what it is above that, seed by seed."""
    records = [make_record("test_resnetdw", top1, seed=seed) for seed, top1 in RIGID.items()]
    for suffix, above in gains.items():
        model = f"test_resnetdw_{suffix}"
        records += [make_record(model, RIGID[seed] + value, seed=seed) for seed, value in enumerate(above)]
    return records


def test_correction_is_over_the_differences_of_a_table():
    gains = {"dk": (1.0, 2.0, 3.0), "gdk": (0.1, 0.4, -0.2), "dcn": (9.0, 9.3, 9.1), "dk_s5": (5.0,),
             "dk_s3": (2.0, 2.0, 2.0)}  # fmt: skip
    other = {"name": "photos", "classes": 2, "train_images": 10, "val_images": 10}
    elsewhere = [dataclasses.replace(record, data=other) for record in grid(dk=gains["dk"])]
    document = build_documents([*grid(**gains), *elsewhere])["demo"]
    alone, rows = lines_of(document, 0), lines_of(document, 1)
    p = {suffix: scipy.stats.ttest_1samp(gains[suffix], 0).pvalue for suffix in ("dk", "gdk", "dcn")}
    assert alone["test_resnetdw_dk"][5:7] == ["+2.0 ± 2.5 (n=3)", f"{p['dk']:.3f}"]
    assert rows["test_resnetdw_dcn"][6] == "<0.001" and 3 * p["dcn"] < 0.0005
    assert rows["test_resnetdw_dk"][5:7] == ["+2.0 ± 2.5 (n=3)", f"{2 * p['dk']:.3f}"]
    assert rows["test_resnetdw_gdk"][6] == f"{p['gdk']:.3f}"
    assert rows["test_resnetdw_dk_s3"][5:7] == ["+2.0 ± 0.0 (n=3)", "-"]
    assert rows["test_resnetdw_dk_s5"][5:7] == ["+5.0 (n=1)", "-"]
    assert rows["test_resnetdw"][5:7] == rows["test_resnetdw_dcn_dk"][5:7] == ["-", "-"]
    exact = {row["model"]: row for row in csv.DictReader(csv_text(document).splitlines()) if "photos" in row["table"]}
    assert float(exact["test_resnetdw_dk"]["Δ rigid, p (Holm)"]) == pytest.approx(p["dk"], rel=1e-7)
    assert exact["test_resnetdw"]["Δ rigid, p (Holm)"] == ""
    assert r"& $<$0.001 &" in latex(document)


def test_what_dk_adds_to_a_rival_in_tables_of_other_models():
    document = build_documents(grid(dk=(1, 2, 3), dcn=(2, 3, 4), dcn_dk=(3, 5, 7), scc_dk=(1, 1, 2)))["demo"]
    rows = lines_of(document)
    p = scipy.stats.ttest_1samp([1, 2, 3], 0).pvalue
    assert document.tables[0].columns[7:9] == ("Δ DK", "Δ DK, p (Holm)")
    assert rows["test_resnetdw_dcn_dk"][7:9] == ["+2.0 ± 2.5 (n=3)", f"{p:.3f}"]
    for other in ("test_resnetdw", "test_resnetdw_dk", "test_resnetdw_dcn", "test_resnetdw_scc_dk"):
        assert rows[other][7:9] == ["-", "-"], other


def test_one_seed_shows_neither_interval_nor_p_anywhere():
    records = [make_record(model, 70.0, data=data) for model in ("resnet50dw", "resnet50dw_dk", "resnet50dw_dcn_dk",
               "test_resnetdw", "test_resnetdw_dk", "my_net") for data in (IMAGENET, IMAGENET | {"name": "mine"})]
    for document in build_documents(records).values():
        for table in document.tables:
            shown = " ".join(text(value) for row in table.rows for value in row)
            assert "±" not in shown and "differs" not in shown and "reproduced" not in shown
            assert not any(isinstance(value, Chance) and value.value is not None for row in table.rows for value in row)
    assert "| 78.1 | 70.0 (n=1) | one seed | +0.0 (n=1) | - |" in markdown(build_documents(records)["table1"])


def test_nan_enters_no_mean_and_no_difference():
    records = [*grid(dk=(1.0, 2.0, math.nan)), make_record("test_resnetdw_dk", math.inf, seed=3)]
    row = lines_of(build_documents(records)["demo"])["test_resnetdw_dk"]
    expected = scipy.stats.ttest_1samp([1.0, 2.0], 0)
    assert row[4].endswith("(n=2), 2 without figure")
    assert row[5] == "+1.5 ± 6.4 (n=2)" and row[6] == f"{expected.pvalue:.3f}"
    assert "nan" not in markdown(build_documents(records)["demo"]).lower()


def test_tables_1_and_2_have_differences_on_every_data_set():
    mine = {"name": "mine", "classes": 10, "train_images": 100, "val_images": 100}
    tops = {"resnet50dw": (60, 61, 62), "resnet50dw_scc": (61, 63, 65), "resnet50dw_scc_dk": (63, 64, 68)}
    records = [make_record(m, float(top), seed=s, data=mine) for m, v in tops.items() for s, top in enumerate(v)]
    records.append(make_record("resnet50dw", 10.0, data=mine | {"val_images": 50}))  # the same settings, other images
    _, table = build_documents(records)["table2"].tables
    shown = {(row[1], row[2]): [text(value) for value in row[3:8]] for row in table.rows if row[0] == "ResNet-50-DW"}
    assert table.columns[3:8] == ("top-1", "Δ rigid", "Δ rigid, p (Holm)", "Δ DK", "Δ DK, p (Holm)")
    p = [scipy.stats.ttest_1samp(gains, 0).pvalue for gains in ((1, 2, 3), (3, 3, 6), (2, 1, 3))]
    rigid, dk, over_scc = (f"{value:.3f}" for value in (2 * min(p[:2]), 2 * min(p[:2]), p[2]))
    assert shown["SCC", "rigid"][1:] == ["+2.0 ± 2.5 (n=3)", rigid, "-", "-"]
    assert shown["SCC", "local 4x4"][1:] == ["+4.0 ± 4.3 (n=3)", dk, "+2.0 ± 2.5 (n=3)", over_scc]


@pytest.mark.parametrize(
    ("values", "paper", "words"),
    [
        ((77.0, 78.0), 71.2, "reproduced"),  # 77.5 ± 6.35
        ((77.0, 78.0), 71.0, "differs"),
        ((77.88, 78.0, 78.12), 78.3, "reproduced"),  # 78.0 ± 0.298, and the paper's is one from 78.25 to 78.35
        ((77.88, 78.0, 78.12), 77.6, "differs"),
        ((78.1, 78.1), 78.1, "reproduced"),
        ((78.1,), 78.1, "one seed"),
    ],
)
def test_verdict(values, paper, words):
    assert verdict(Figure(summarize(values)), paper) == words


def test_verdict_without_a_figure():
    states = [verdict(Figure(None, **counts), 78.1) for counts in ({"failed": 2}, {"running": 1}, {"run": False})]
    assert states == ["no figure", "no figure", "not run"]


def test_dirty_runs_are_marked_in_every_format():
    records = grid(dk=(1.0, 2.0, 3.0))
    clean, dirty = {"commit": "c" * 40, "dirty": False}, {"commit": "c" * 40, "dirty": True}
    for record in records:
        record.git = clean
    records[0].git = dirty
    # Resumed with clean code, but begun with changes.
    first, last = ({**attempt_of(vars(records[-1])), "git": git} for git in (dirty, clean))
    records[-1].attempts = [first | {"status": "failed"}, last]
    records.append(dataclasses.replace(make_record("test_resnetdw_dcn", status="failed"), git=dirty))
    document = build_documents(records)["demo"]
    rows = lines_of(document)
    assert rows["test_resnetdw"][4] == "60.2 ± 1.9 (n=3), 1 dirty"
    assert rows["test_resnetdw_dk"][4].endswith("(n=3), 1 dirty") and rows["test_resnetdw_dk"][5] == "+2.0 ± 2.5 (n=3)"
    assert rows["test_resnetdw_dcn"][4] == "failed, 1 dirty" and rows["test_resnetdw_dcn_dk"][4] == "not run"
    states = {row["model"]: row["top-1 state"] for row in csv.DictReader(csv_text(document).splitlines())}
    assert states["test_resnetdw"] == "1 dirty"
    assert any(note.startswith("Dirty: ") for note in document.notes)
