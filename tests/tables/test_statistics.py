"""Means over seeds against scipy, and what of differences and verdicts the tables show."""

from __future__ import annotations

import csv
import dataclasses
import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from table_cases import IMAGENET, lines_of, make_record

from dk_bench.runs.attempts import attempt_of
from dk_bench.tables.documents import build_documents
from dk_bench.tables.entries import Chance
from dk_bench.tables.render import csv_text, latex, markdown
from dk_bench.tables.statistics import summarize

SAMPLES = [np.random.default_rng(seed).normal(70, 3, (2, n)) for seed, n in product(range(4), (2, 3, 5, 30))]


# Of samples


def test_summary_by_hand():
    # Values 70, 71, 72: standard deviation 1; Student's t at 97.5 % with 2 degrees of freedom is 4.302653.
    summary = summarize([70.0, 71.0, 72.0])
    assert (summary.n, summary.mean, summary.std) == (3, 71.0, 1.0)
    assert summary.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert summarize([5.0] * 4).half_width == 0.0


@pytest.mark.parametrize("ours, base", SAMPLES)
def test_interval_is_scipys(ours, base):
    low, high = scipy.stats.ttest_rel(ours, base).confidence_interval(0.95)
    differences = summarize(list(ours - base))
    shown = (differences.mean - differences.half_width, differences.mean + differences.half_width)
    assert shown == pytest.approx((low, high), rel=1e-9)


def test_one_value_has_no_spread():
    assert dataclasses.astuple(summarize([3.5])) == (1, 3.5, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_figure_from_nothing_or_nan(values):
    with pytest.raises(ValueError):
        summarize(values)


# In tables

RIGID = dict(enumerate((60.0, 61.0, 59.5)))


def grid(**gains):
    """Records of the tiny models: the rigid base, and each other by what it is above that, seed by seed."""
    records = [make_record("test_resnetdw", top1, seed=seed) for seed, top1 in RIGID.items()]
    for suffix, above in gains.items():
        model = f"test_resnetdw_{suffix}"
        records += [make_record(model, RIGID[seed] + value, seed=seed) for seed, value in enumerate(above)]
    return records


def test_correction_is_over_all_differences_of_a_table():
    gains = {
        "dk": (1.0, 2.0, 3.0),
        "gdk": (0.1, 0.4, -0.2),
        "dcn": (9.0, 9.3, 9.1),
        "dk_s5": (5.0,),
        "dk_s3": (2.0, 2.0, 2.0),
        "scc": (-6.0, -6.3, -6.1),
    }
    other = {"name": "photos", "classes": 2, "train_images": 10, "val_images": 10}
    elsewhere = [dataclasses.replace(record, data=other) for record in grid(dk=gains["dk"])]
    document = build_documents([*grid(**gains), *elsewhere])["demo"]
    alone, rows = lines_of(document, 0), lines_of(document, 1)
    p = {suffix: scipy.stats.ttest_1samp(gains[suffix], 0).pvalue for suffix in ("dk", "dcn", "scc")}
    # Six rows of the demo's and DK with DCN over DCN, run or not; and CondConv, which the demo has not.
    assert [table.note for table in document.tables] == [
        "Family: 7 differences (6 Δ rigid, 1 Δ DK), 1 of them run.",
        "Family: 8 differences (7 Δ rigid, 1 Δ DK), 6 of them run.",
    ]
    assert alone["test_resnetdw_dk"][5:7] == ["+2.0 ± 2.5 (n=3)", f"{7 * p['dk']:.3f}"]
    assert rows["test_resnetdw_dcn"][6:8] == [f"{8 * p['dcn']:.3f}", "supported"]
    assert rows["test_resnetdw_scc"][6:8] == [f"{7 * p['scc']:.3f}", "contradicted"]
    assert rows["test_resnetdw_dk"][5:7] == ["+2.0 ± 2.5 (n=3)", f"{6 * p['dk']:.3f}"]
    assert rows["test_resnetdw_gdk"][6] == "1.000"
    assert rows["test_resnetdw_dk_s3"][5:8] == ["+2.0 ± 0.0 (n=3)", "-", "undecided"]
    assert rows["test_resnetdw_dk_s5"][5:8] == ["+5.0 (n=1)", "-", "undecided"]
    assert rows["test_resnetdw_dcn_dk"][5:11] == ["-", "-", "not run"] * 2
    assert rows["test_resnetdw"][5:11] == ["-", "-", ""] * 2
    exact = {row["model"]: row for row in csv.DictReader(csv_text(document).splitlines()) if "photos" in row["table"]}
    assert float(exact["test_resnetdw_dk"]["Δ rigid, p (Holm)"]) == pytest.approx(7 * p["dk"], rel=1e-7)
    assert exact["test_resnetdw"]["Δ rigid, p (Holm)"] == ""
    assert "Family: 8 differences" in markdown(document)
    tiny = build_documents(grid(dcn=(9.0, 9.01, 9.02)))["demo"]
    assert r"& $<$0.001 & supported &" in latex(tiny)


def test_differences_are_judged_by_the_margin_too():
    rows = lines_of(build_documents(grid(dk=(0.02, -0.02, 0.01), gdk=(0.2, 0.21, 0.22)))["demo"])
    assert rows["test_resnetdw_dk"][7] == "equivalent"
    assert rows["test_resnetdw_gdk"][7] == "supported, within the margin"


def test_what_dk_adds_to_a_rival_in_tables_of_other_models():
    document = build_documents(grid(dk=(1, 2, 3), dcn=(2, 3, 4), dcn_dk=(3, 5, 7), scc_dk=(1, 1, 2)))["demo"]
    rows = lines_of(document)
    assert document.tables[0].columns[8:11] == ("Δ DK", "Δ DK, p (Holm)", "Δ DK, verdict")
    # Three of the table's 9 have a lower p than 0.0742, which counts 6 times.
    assert rows["test_resnetdw_dcn_dk"][8:11] == ["+2.0 ± 2.5 (n=3)", "0.445", "undecided (62 seeds)"]
    for other in ("test_resnetdw", "test_resnetdw_dk", "test_resnetdw_dcn"):
        assert rows[other][8:11] == ["-", "-", ""], other
    assert rows["test_resnetdw_scc_dk"][8:11] == ["-", "-", "not run"]  # no CondConv alone to compare with


def test_one_seed_shows_neither_interval_nor_p_anywhere():
    records = [
        make_record(model, 70.0, data=data)
        for model in ("resnet50dw", "resnet50dw_dk", "resnet50dw_dcn_dk", "test_resnetdw", "test_resnetdw_dk", "my_net")
        for data in (IMAGENET, IMAGENET | {"name": "mine"})
    ]
    for document in build_documents(records).values():
        for table in document.tables:
            shown = " ".join(str(value) for row in table.rows for value in row)
            assert "±" not in shown and "supported" not in shown and "equivalent" not in shown
            assert not any(isinstance(value, Chance) and value.value is not None for row in table.rows for value in row)
    assert "| 78.1 | 70.0 (n=1) | +1.8 | +0.0 (n=1) | - | undecided |" in markdown(build_documents(records)["table1"])


def test_nan_enters_no_mean_and_no_difference():
    records = [*grid(dk=(1.0, 2.0, math.nan)), make_record("test_resnetdw_dk", math.inf, seed=3)]
    row = lines_of(build_documents(records)["demo"])["test_resnetdw_dk"]
    expected = scipy.stats.ttest_1samp([1.0, 2.0], 0)
    assert row[4].endswith("(n=2), 2 without figure")
    assert row[5] == "+1.5 ± 6.4 (n=2)" and row[6] == f"{min(1, 7 * expected.pvalue):.3f}"
    assert "nan" not in markdown(build_documents(records)["demo"]).lower()


def test_tables_1_and_2_have_differences_on_every_data_set():
    mine = {"name": "mine", "classes": 10, "train_images": 100, "val_images": 100}
    tops = {"resnet50dw": (60, 61, 62), "resnet50dw_scc": (61, 63, 65), "resnet50dw_scc_dk": (63, 64, 68)}
    records = [make_record(m, float(top), seed=s, data=mine) for m, v in tops.items() for s, top in enumerate(v)]
    records.append(make_record("resnet50dw", 10.0, data=mine | {"val_images": 50}))  # the same settings, other images
    _, table = build_documents(records)["table2"].tables
    shown = {(row[1], row[2]): [str(value) for value in row[3:8]] for row in table.rows if row[0] == "ResNet-50-DW"}
    assert table.columns[3:8] == ("top-1", "Δ rigid", "Δ DK", "Δ DK, p (Holm)", "Δ DK, verdict")
    p = scipy.stats.ttest_1samp((2, 1, 3), 0).pvalue
    assert shown["SCC", "rigid"][1:] == ["+2.0 ± 2.5 (n=3)", "-", "-", ""]
    over_scc = ["+2.0 ± 2.5 (n=3)", f"{4 * p:.3f}"]
    assert shown["SCC", "local 4x4, centred"][1:4] == ["+4.0 ± 4.3 (n=3)", *over_scc]
    assert table.note == "Family: 4 differences (4 Δ DK), 1 of them run."


def test_verdicts_stand_beside_the_papers_differences():
    gains = {
        "resnet50dw": (0, 0, 0),
        "resnet50dw_dk": (1.81, 1.8, 1.79),
        "resnet50dw_dk_s3": (0.1, -0.1, 0.0),
        "resnet50dw_gdk": (-1.0, -1.02, -0.98),
        "resnet50dw_dk_s9": (1.0, -1.0, 3.0),
    }
    records = [
        make_record(model, 76.0 + gain, seed=seed, data=IMAGENET)
        for model, all_gains in gains.items()
        for seed, gain in enumerate(all_gains)
    ]
    table, _ = build_documents(records)["table1"].tables
    shown = {(row[0], row[1], row[2]): [str(value) for value in row[5:9]] for row in table.rows}
    assert table.columns[5:9] == ("Δ rigid, paper", "Δ rigid", "Δ rigid, p (Holm)", "Δ rigid, verdict")
    assert shown["ResNet-50-DW", "rigid", "rigid"] == ["-", "-", "-", ""]
    assert shown["ResNet-50-DW", "rigid", "local 4x4, centred"] == ["+1.8", "+1.8 ± 0.0 (n=3)", "<0.001", "supported"]
    words = {row[2]: shown[row][3] for row in shown if row[0] == "ResNet-50-DW" and row[1] == "rigid"}
    assert words == {
        "rigid": "",
        "local 3x3": "undecided (4 seeds)",
        "local 4x4, centred": "supported",
        "local 5x5, centred": "not run",
        "local 9x9, centred": "undecided (246 seeds)",
        "global 4x4, centred": "contradicted",
    }
    assert shown["MobileNet-V2", "global 2x2", "local 4x4, centred"] == ["+2.9", "-", "-", "not run"]
    assert table.note == "Family: 11 differences (11 Δ rigid), 4 of them run."


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
    assert rows["test_resnetdw_dk"][4].endswith("(n=3), 1 dirty")
    assert rows["test_resnetdw_dk"][5].endswith("(n=3), 2 dirty")  # of the six that it pairs
    assert rows["test_resnetdw_dcn"][4] == "failed, 1 dirty" and rows["test_resnetdw_dcn_dk"][4] == "not run"
    states = {row["model"]: row["top-1 state"] for row in csv.DictReader(csv_text(document).splitlines())}
    assert states["test_resnetdw"] == "1 dirty"
    assert any(note.startswith("Dirty: ") for note in document.notes)
