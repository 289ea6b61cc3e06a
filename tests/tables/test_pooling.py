"""What tables pool is marked, and differences pair what may be paired: one seed, one draw, the same images."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from table_cases import PROCEDURAL, lines_of, make_record

from dk_bench.tables.cells import gather, pair_marks
from dk_bench.tables.columns import POOLED
from dk_bench.tables.contrasts import paired_differences
from dk_bench.tables.documents import build_documents
from dk_bench.tables.pooling import draw_of, pair_of

COMMIT = {"commit": "a" * 40, "dirty": False}
AVX2, AVX512 = (
    {"type": "cpu", "name": "AMD EPYC", "devices": 1, "instruction_sets": {"torch": name.upper(), "dk_bench": name}}
    for name in ("avx2", "avx512")
)
CUDA = {"runtime": "13.0", "cudnn": 91900, "capability": "9.0", "driver": "580", "float32_products": "float32"}
GPU = {"type": "cuda", "name": "NVIDIA H100", "devices": 1, "instruction_sets": AVX2["instruction_sets"], "cuda": CUDA}
BASE, ARM = "test_resnetdw", "test_resnetdw_dk"


def run(
    model, top1, seed=0, device=AVX512, *, started="2026-01-01", git=COMMIT, torch="2.11.0", data=PROCEDURAL, **more
):
    record = make_record(model, top1, seed=seed, data=data, **more)
    record.run_id = f"{model}-{seed}-{started}-{device}"
    record.device, record.git, record.versions, record.started = device, git, {"torch": torch}, started
    return record


def attempt(record, device, **more):
    fields = ("started", "ended", "git", "versions", "status", "error")
    return {name: getattr(record, name) for name in fields} | {"device": device} | more


def shown(records, model=ARM):
    """The row of a model in the demo's table, by column."""
    table = build_documents(records)["demo"].tables[0]
    (row,) = [row for row in table.rows if row[0] == model]
    return dict(zip(table.columns, row, strict=True))


def cells_of(records, *models):
    cells = {cell.model: cell for cell in gather(records)}
    return [cells[model] for model in models]


# Draws


def test_draws_are_of_device_and_instruction_sets():
    draws = [draw_of(run("a", 1.0, device=device)) for device in (AVX2, AVX512, GPU)]
    assert len(set(draws)) == 3
    other = [GPU | {"name": "NVIDIA H200"}, GPU | {"cuda": CUDA | {"float32_products": "tf32"}}, AVX2 | {"devices": 2}]
    assert len({*draws, *(draw_of(run("a", 1.0, device=device)) for device in other)}) == 6
    same = [GPU | {"cuda": CUDA | {"driver": "575"}}, GPU | {"threads": 9, "instruction_sets": {}}]
    assert {draw_of(run("a", 1.0, device=device)) for device in same} == {draws[2]}
    older = [run("a", 1.0, device={"type": "cpu", "name": name}) for name in ("Intel", "AMD")]
    assert draw_of(older[0]) == draw_of(older[1]) != draws[0]
    compiled = run("a", 1.0)
    compiled.config["trainer"] = {"compile": True}
    assert draw_of(compiled) != draws[1]


def test_draw_of_a_resumed_run_is_of_all_its_hardware():
    record, plain = run("a", 1.0, device=AVX2), run("a", 1.0, device=AVX2)
    record.attempts = [attempt(record, AVX2), attempt(record, AVX2)]
    assert draw_of(record) == draw_of(plain)
    record.attempts = [attempt(record, AVX512), attempt(record, AVX2)]
    assert draw_of(record) == draw_of(run("a", 1.0)) + draw_of(plain)
    record.attempts[0]["steps"] = 0  # failed before its first
    assert draw_of(record) == draw_of(plain)
    record.attempts[1]["steps"] = 0  # and the other evaluated alone
    assert draw_of(record) == draw_of(plain)


# Pairs


def test_differences_pair_one_draw():
    records = [run(BASE, 60.0, seed, AVX2 if seed == 2 else AVX512) for seed in range(4)]
    records += [run(ARM, 61.0 + seed, seed, GPU if seed == 3 else AVX512) for seed in range(4)]
    arm, base = cells_of(records, ARM, BASE)
    found = paired_differences((arm, base), (1, -1), "val/top1")
    assert {pair.seed: value for pair, value in found.items()} == {0: 1.0, 1: 2.0}
    assert pair_marks((arm, base), "val/top1") == ["2 of several draws"]
    row = shown(records)
    assert row["pooled"] == "CPU with GPU" and row["Δ rigid"].state == "2 of several draws"
    assert row["Δ rigid"].summary.n == 2
    assert shown(records, BASE)["pooled"] == "2 instruction sets"


def test_a_seed_on_two_draws_is_two_runs_and_two_pairs():
    records = [
        run(model, top1 + (device is AVX2), 0, device)
        for model, top1 in ((BASE, 60.0), (ARM, 62.0))
        for device in (AVX2, AVX512)
    ]
    records += [run(BASE, 50.0, 1)]
    arm, base = cells_of(records, ARM, BASE)
    assert arm.final("val/top1").summary.n == 2 and base.final("val/top1").summary.n == 3
    assert sorted(paired_differences((arm, base), (1, -1), "val/top1").values()) == [2.0, 2.0]
    assert pair_marks((arm, base), "val/top1") == ["2 instruction sets"]
    assert shown(records)["Δ rigid"].state == ""  # the row says so already


def test_older_records_pair_with_each_other_alone():
    old = {"type": "cpu", "name": "AMD EPYC"}
    records = [run(BASE, 60.0, 0, old), run(ARM, 61.0, 0, old), run(BASE, 60.0, 1, old), run(ARM, 63.0, 1)]
    arm, base = cells_of(records, ARM, BASE)
    assert [*paired_differences((arm, base), (1, -1), "val/top1").values()] == [1.0]
    assert "2 instruction sets" in shown(records)["pooled"]


def test_a_difference_across_commits_is_marked():
    """The first cells of random augmentation: what came after another commit may have drawn other numbers."""
    later = COMMIT | {"commit": "b" * 40}
    records = [run(BASE, 60.0 + seed, seed) for seed in range(2)]
    records += [run(ARM, 62.0, seed, git=later) for seed in range(2)]
    row = shown(records)
    assert "pooled" not in row and row["Δ rigid"].state == "2 commits"
    document = build_documents(records)["demo"]
    assert POOLED in document.notes
    assert "(n=2), 2 commits" in lines_of(document)[ARM][5]
    records[0].git = COMMIT | {"dirty": True}
    assert shown(records)["Δ rigid"].state == "2 commits, 1 dirty"
    alike = [run(model, 60.0, seed) for model in (BASE, ARM) for seed in range(2)]
    assert POOLED not in build_documents(alike)["demo"].notes and shown(alike)["Δ rigid"].state == ""


# Pooled


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": GPU}, "CPU with GPU"),
        ({"device": AVX2}, "2 instruction sets"),
        ({"device": {"type": "cpu"}}, "2 instruction sets"),
        ({"git": {"commit": "b" * 40, "dirty": False}}, "2 commits"),
        ({"torch": "2.12.0"}, "2 versions of torch"),
        ({}, None),
        ({"status": "failed", "device": GPU}, None),
    ],
)
def test_what_a_cell_pools_is_marked(change, words):
    assert shown([run(ARM, 61.0, 0), run(ARM, 62.0, 1, **change)]).get("pooled") == words


def test_a_run_that_was_resumed_elsewhere_is_marked():
    resumed = run(ARM, 62.0, 1)
    resumed.attempts = [attempt(resumed, AVX2, git=COMMIT | {"commit": "b" * 40}), attempt(resumed, AVX512)]
    words = shown([run(ARM, 61.0, 0), resumed])["pooled"]
    assert words == "2 instruction sets; 1 resumed on other hardware; 2 commits"


def test_a_rerun_changes_no_figure():
    records = [
        run(ARM, 61.0),
        run(ARM, 64.0, started="2026-02-01"),
        run(ARM, 65.0, 1, started="2026-02-01"),
        run(ARM, None, started="2026-03-01"),
    ]
    for order in (records, records[::-1]):
        row = shown(order)
        assert (row["top-1"].summary.n, row["top-1"].summary.mean) == (2, 63.0)
        assert row["pooled"] == "seed 0 again: 64.0; seed 0 again: no figure"
    (cell,) = gather(records)
    assert [pair_of(again).seed for again in cell.again] == [0, 0] and len(cell.figures("val/top1")) == 2


def test_a_run_found_twice_is_no_rerun():
    record = run(ARM, 61.0)
    early = dataclasses.replace(copy.deepcopy(record), status="running", ended=None)
    assert shown([record, early, copy.deepcopy(record)]).get("pooled") is None


def test_a_seed_that_failed_before_counts_by_what_came_after():
    failed = [run(ARM, None, status="failed"), run(ARM, None, 1, status="failed")]
    again = {"started": "2026-02-01"}
    row = shown([*failed, run(ARM, 61.0, **again), run(ARM, None, 1, **again, status="running")])
    assert row["top-1"].state == "1 running" and row["top-1"].summary.n == 1


# Identity


def images(checksum):
    return PROCEDURAL | {"checksum": {"train": checksum, "val": "v"}}


def test_runs_on_other_images_are_other_cells():
    records = [run(ARM, 61.0, seed, data=images(name)) for seed, name in enumerate(("one", "two"))]
    first, second = gather(records)
    assert (first.label, second.label) == ("images=one/v", "images=two/v")
    assert not paired_differences((first, second), (1, -1), "val/top1")
    older = run(ARM, 61.0, 2)
    assert len(gather([*records, older])) == 3
    (cell,) = gather([records[0], older])
    assert cell.mixture("val/top1") == ["2 states of the data"]
    tested = run(ARM, 61.0, 3, data=PROCEDURAL | {"checksum": {"train": "one", "val": "v", "test": "t"}})
    assert len(gather([records[0], tested])) == 1  # tests come after training


def test_devices_that_normalise_by_themselves_make_another_cell():
    one, two = run(ARM, 61.0), run(ARM, 62.0, 1, AVX512 | {"devices": 2})
    cells = gather([one, two])
    assert [cell.label for cell in cells] == ["devices=1", "devices=2"]
    assert cells[0].settings != cells[1].settings
    for record in (one, two):
        record.config["trainer"] = {"sync_batchnorm": True}
    (cell,) = gather([one, two])
    assert cell.mixture("val/top1") == ["2 numbers of devices"]
