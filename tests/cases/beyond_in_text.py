"""Phrases on local kernels on dense and 1x1 convolutions, from the records of E4 in short and from an estimate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from dk_bench.claims.file import load_claims
from dk_bench.claims.findings import Finding, families
from dk_bench.runs.record import find_records, read_record
from dk_bench.tables.statistics import summarize

RESULTS = Path(__file__).parents[2] / "results"
AGAINST = {  # contrasts that are told from zero, and have the other sign than claimed
    ("dense-local-over-rigid", "centred"),
    ("dense-local-over-rigid", "spread"),
    ("dense-dk-with-dcn", "centred"),
    ("pointwise-local-over-rigid", "centred"),
    ("pointwise-local-over-global", "centred"),
}
UNTOLD = {("dense-local-at-scope-3", "centred"), ("dense-dcn-over-rigid", "centred")}


def beyond() -> list[str]:
    """What results/README.md says of E4 in short; README.md has its verdicts in words."""
    records = [read_record(path) for path in find_records([RESULTS / "e4_short"])]
    top1: dict[str, list[float]] = {}
    for record in records:
        top1.setdefault(record.model["name"], []).append(record.metrics["final"]["test/top1"])
    assert len(top1) == 9 and {len(seeds) for seeds in top1.values()} == {6}
    mean = {model: f"{summarize(seeds).mean:.1f} %" for model, seeds in top1.items()}
    (steps,) = {math.ceil(record.data["train_images"] / record.config["data"]["batch_size"]) for record in records}

    off = {(f.claim.id, f.grid): f for f in findings_of("e4_short") if f.verdict.n}
    assert {f.verdict.n for f in off.values()} == {6} and off.keys() == AGAINST | UNTOLD
    assert all(off[name].verdict.word == "contradicted" for name in AGAINST)
    assert all(off[name].verdict.word == "undecided" for name in UNTOLD)
    (p,) = {f"{off[name].verdict.p:.3f}" for name in UNTOLD}
    centred, spread = (off["dense-local-over-rigid", grid].judgement.mean for grid in ("centred", "spread"))
    (in_e2,) = (f.judgement.mean for f in findings_of("e2") if f.claim.id == "spread-over-centred" and f.verdict.n > 1)
    assert 0 < in_e2 < spread - centred
    points = {name: f"{f.judgement.mean:+.1f} ± {f.judgement.half:.1f}" for name, f in off.items()}
    return [
        f"top-1 of the test images is {mean['small_resnet']} rigid",
        f"local DK changes it by {points['dense-local-over-rigid', 'centred']} points at scope 4 with centred taps",
        f"by {points['dense-local-over-rigid', 'spread']} with spread ones",
        f"by {points['dense-local-at-scope-3', 'centred']} at scope 3",
        f"DCN by {points['dense-dcn-over-rigid', 'centred']}",
        f"local DK added to DCN by {points['dense-dk-with-dcn', 'centred']}",
        f"whose top-1 is {mean['small_resnetdw_dk']}",
        f"local kernels change it by {points['pointwise-local-over-rigid', 'centred']} points",
        f"are {points['pointwise-local-over-global', 'centred']} points from global ones",
        f"all of these are told from zero but scope 3 and DCN alone (corrected p {p} for both)",
        f"the first {steps} steps",
    ]


def findings_of(folder: str) -> list[Finding]:
    """What the claims say of the records in a folder of results."""
    records = [read_record(path) for path in find_records([RESULTS / folder])]
    return [finding for family in families(load_claims(), records, RESULTS) for finding in family.findings]


def fused() -> list[str]:
    """What results/gpu/README.md says that a fused kernel would promise."""
    rows = json.loads((RESULTS / "gpu" / "fused-estimate.json").read_text(encoding="utf-8"))["rows"]
    best, apart, lossless = (name for name in rows[0] if name.startswith("promise"))
    lines, everywhere = [], []
    for mode, kind in dict.fromkeys((row["mode"], row["products in"]) for row in rows):
        some = [row for row in rows if (row["mode"], row["products in"]) == (mode, kind)]
        ranges = " | ".join(span(row[name] for row in some) for name in (best, apart, lossless))
        lines.append(f"| {mode} | {'float32, TF32' if kind == 'tf32' else kind} | {ranges} |")
        everywhere += [(mode, kind)] if min(row[best] for row in some) >= 1.5 else []
        assert [row[apart] for row in some] == sorted((row[apart] for row in some), reverse=True)  # narrow: the most
    assert everywhere == [("forward+backward", "bfloat16"), ("forward+backward", "tf32")]
    assert {row["channels"] for row in rows if row[apart] >= 1.5} == {64, 128}
    assert max(row[lossless] for row in rows) < 1.5
    more = [row["offsets, us"] / row["unfold, us"] for row in rows]
    assert sum(ratio > 1 for ratio in more) > len(more) / 2
    return [
        *lines,
        "with 64 images",
        "So 1.5 times is promised",
        "forward + backward of 16 bits and TF32",
        f"up to {max(more):.2f} times as many",
        f"Pieces of 25 MiB, whose columns stay in the level-2 cache, take "
        f"{span(row['pieces of 25 MiB, us'] / row['pieces of 64 MiB, us'] for row in rows)} "
        "times as long as those of 64 MiB",
    ]


def span(values: Iterable[float]) -> str:
    """``0.97 to 1.13``: from the least to the most."""
    least, *_, most = sorted(values)
    return f"{least:.2f} to {most:.2f}"
