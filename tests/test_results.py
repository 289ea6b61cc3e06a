"""The committed results: tables are those that the records give, and the README's figures are the records'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dk_bench.cli import main
from dk_bench.results.record import find_records, read_record

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def test_tables_are_those_of_the_records(tmp_path):
    copy = shutil.copytree(RESULTS, tmp_path / "results")
    for table in [*copy.glob("*.md"), *copy.glob("*.csv"), *copy.glob("*.tex")]:
        if table.name != "README.md":
            table.unlink()
    assert main(["tables", str(copy)]) == 0
    for table in sorted(RESULTS.glob("*.*")):
        assert (copy / table.name).read_bytes() == table.read_bytes(), f"{table.name}: run `dk-bench tables results`"


def test_records_are_of_committed_code():
    records = [read_record(path) for path in find_records([RESULTS])]
    assert len(records) >= 6
    assert all(record.git["commit"] and record.git["dirty"] is False for record in records)


def test_readme_figures_are_the_records():
    readme = (ROOT / "README.md").read_text()
    means = json.loads((RESULTS / "bench" / "cpu.json").read_text())["geometric_means"]["float32 channels_last"]
    local = f"local DK {means['forward']['local DK']:.2f}x forward, {means['forward+backward']['local DK']:.2f}x with"
    faster = means["forward"]["torchvision deform_conv2d"] / means["forward"]["depthwise DCN"]
    assert local in readme and f"depthwise DCN {faster:.1f}x as fast" in readme
    table = (RESULTS / "demo.md").read_text()
    photos, procedural = (table[table.index(f"## {name} "):].split("\n## ")[0] for name in ("photos10", "procedural"))

    def cells(text: str, model: str) -> list[str]:
        """Top-1 and the difference to the rigid base, of three seeds each."""
        row = next(line for line in text.splitlines() if line.startswith(f"| {model} |")).split(" | ")
        assert row[4].endswith(" (n=3)")
        return [cell.removesuffix(" (n=3)") for cell in row[4:6]]

    (rigid, _), (local, gain) = cells(photos, "test_resnetdw"), cells(photos, "test_resnetdw_dk")
    assert f"rigid {rigid}, local DK (scope 4) {local}; difference by seed {gain}, n = 3" in readme
    for shown, suffix in (("DCN", "dcn"), ("DK+DCN", "dcn_dk"), ("global DK", "gdk")):
        for text in (photos, procedural):
            assert f"{shown} {cells(text, f'test_resnetdw_{suffix}')[1]}" in readme
    assert f"local DK (scope 4) {cells(procedural, 'test_resnetdw_dk')[1]}" in readme
