"""``dk-bench bench ops`` on tiny shapes: the record's content, not its times."""

from __future__ import annotations

import json

import pytest
import torch

from dk_bench.analysis.bench import Timing, bench_operators, geometric_means
from dk_bench.analysis.bench_calls import BASE, COPY, FORWARD, OURS, REFERENCE, SLOW, TORCHVISION, TRAIN, Setting, Shape
from dk_bench.cli import main
<<<<<<< Updated upstream
from dk_bench.errors import UserError
from dk_bench.report.benches import read_bench

CPU = torch.device("cpu")
=======
>>>>>>> Stashed changes


def test_record(tmp_path, capsys):
    path = tmp_path / "new" / "ops.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        arguments = ["--threads", "1", "--repeats", "4", "--output", str(path), "--shapes", "8,6,2", "5,4,1"]
        assert main(["bench", "ops", *arguments]) == 0
        assert torch.get_num_threads() == 3  # given back
    finally:
        torch.set_num_threads(threads)
    record = json.loads(path.read_text())
    assert record["device"]["type"] == "cpu" and record["device"]["threads"] == 1
    assert torch.__version__.startswith(record["versions"]["torch"]) and {"commit", "dirty"} == set(record["git"])
    assert record["settings"]["shapes"] == [
        {"channels": 8, "size": 6, "batch": 2}, {"channels": 5, "size": 4, "batch": 1}]
<<<<<<< Updated upstream
    [part] = record["parts"]
    assert part["instruction_set"] == torch.ops.dk_bench.cpu_variant() in json.dumps(part["machine"])
    assert part["machine"]["threads"] == 1 and set(part["watched"]) == {"load_start", "load_end", "cpu_share"}
    _check_timings(part["timings"])
    assert set(part["host_overhead"]) == {f"{o} {m}" for o in (BASE, *OURS) for m in (FORWARD, TRAIN)}
    printed = " ".join(capsys.readouterr().out.split())
    means = part["geometric_means"]["float32 channels_last"]
    for mode, mean in ((m, means[m]["local DK"]) for m in (FORWARD, TRAIN)):
        assert f"local DK {mode}: {mean:.2f}x depthwise convolution, at most" in printed
    half = part["over_float32"]["bfloat16 channels_last"][FORWARD]["DK+DCN"]
    assert f"bfloat16 channels_last: DK+DCN {FORWARD}: {half:.2f}x its float32 time" in printed
    assert all(line in printed for line in part["warnings"])
    bench = read_bench(path)
    settings = ("float32 channels_last", "float32 contiguous", "bfloat16 channels_last", "float16 channels_last")
    assert [r.title for r in bench.ratios] == [f"Operators, {part['instruction_set']}, {s}" for s in settings]
    assert len(bench.table.rows) == len(part["timings"])


def _check_timings(timings):
    rows = {(t["shape"], t["setting"], t["operator"], t["variant"], t["mode"]): t for t in timings}
    assert len(rows) == len(timings)
    ways = [(BASE, way, mode) for way in WAYS["cpu"] for mode in (FORWARD, TRAIN)]
    ours = [(operator, "", mode) for operator in OURS for mode in (FORWARD, TRAIN)]
    slow = [(operator, "", FORWARD) for operator in SLOW]
    expected = {"float32 channels_last": [*ways, *ours, (COPY, "", FORWARD), *slow]}
    for setting in ("float32 contiguous", "bfloat16 channels_last", "float16 channels_last"):
        expected[setting] = [*ways, *ours, (COPY, "", FORWARD)]
    expected |= {"bfloat16 contiguous": ways, "float16 contiguous": ways}  # what the others are divided by
    assert set(rows) == {
        (shape, setting, *row) for shape in ("8 x 6 x 6", "5 x 4 x 4") for setting, r in expected.items() for row in r}
    for (shape, setting, operator, variant, mode), t in rows.items():
        assert 0 < t["seconds"] == t["quartiles"][0] <= t["median"] <= t["quartiles"][1]
        assert t["rounds"] <= 5 and (operator not in SLOW or t["rounds"] == LEAST_ROUNDS)
        assert (t["cold"] is not None) == (t["rounds"] > LEAST_ROUNDS)
        base = [rows[shape, f"{setting.split()[0]} {name}", BASE, way, mode]["seconds"]
                for name in MEMORY_FORMATS for way in WAYS["cpu"]]
        assert t["ratio"] == pytest.approx(t["seconds"] / min(base))
        float32 = rows.get((shape, "float32 channels_last", operator, variant, mode))
        if operator in OURS and "float32" not in setting:
            assert t["over_float32"] == pytest.approx(t["seconds"] / float32["seconds"])
        else:
            assert t["over_float32"] is None
=======
    rows = {(t["shape"], t["operator"], t["mode"]): t for t in record["timings"]}
    expected = {(o, FORWARD) for o in (BASE, COPY, *OURS, *SLOW)} | {(o, TRAIN) for o in (BASE, *OURS)}
    assert set(rows) == {(shape, *e) for shape in ("8 x 6 x 6", "5 x 4 x 4") for e in expected}
    for (_, operator, _), t in rows.items():
        assert 0 < t["quartiles"][0] <= t["median"] <= t["quartiles"][1]
        assert t["repeats"] == (3 if operator in SLOW else 4)
        assert operator != BASE or t["ratio"] == 1
        assert operator != COPY or t["copy_share"] == pytest.approx(1)
        assert t["gigabytes_per_second"] > 0
>>>>>>> Stashed changes
    # 2 x 8 x 6 x 6 in and out, 2 x 18 x 6 x 6 offsets, 8 x 4 x 4 weights, 4 bytes each
    local = rows["8 x 6 x 6", "local DK", FORWARD]
    moved = 4 * (2 * 2 * 8 * 36 + 2 * 18 * 36 + 8 * 16)
    assert local["gigabytes_per_second"] == pytest.approx(moved / local["median"] / 1e9)
    assert set(record["host_overhead"]) == {f"{o} {m}" for o in (BASE, *OURS) for m in (FORWARD, TRAIN)}
    printed = capsys.readouterr().out
    means = record["geometric_means"]["float32 channels_last"]
    for mode, mean in ((m, means[m]["local DK"]) for m in (FORWARD, TRAIN)):
        assert f"local DK {mode}: {mean:.2f}x depthwise convolution" in printed


def test_what_torchvision_lacks_is_left_out():
    """Its deformable convolution has no bfloat16 on the CPU, and a benchmark on a GPU begins with bfloat16."""
    record = bench_operators([Shape(4, 5, 1)], [Setting("bfloat16")], torch.device("cpu"), 2)
    assert {t["operator"] for t in record["timings"]} == {BASE, COPY, *OURS, REFERENCE}
    left_out = {(left["operator"], left["mode"]) for left in record["left_out"]}
    assert left_out == {(TORCHVISION, FORWARD)}
    assert all(left["reason"].startswith("NotImplementedError: ") for left in record["left_out"])
    assert any("local DK forward" in line for line in record["conclusions"])
    assert any(f"{TORCHVISION} {FORWARD} is left out" in line for line in record["conclusions"])


def test_geometric_means():
    timings = [
        Timing(shape, "float32", operator, "", FORWARD, 1, 1.0, (1.0, 1.0), ratio, 1.0, 1.0, None)
        for shape, ratio in (("a", 2.0), ("b", 8.0)) for operator in (BASE, "local DK")
    ]
    assert geometric_means(timings)["float32"][FORWARD] == {"local DK": pytest.approx(4)}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
    (["--threads", "-1"], "--threads: expected at least 1, got -1"),
    pytest.param(["--device", "cuda"], "--device cuda: this machine or this torch has no CUDA device",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
])
def test_bad_arguments_are_named(arguments, message, capsys):
    assert main(["bench", "ops", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["128", "0,56", "128,x", "1,2,3,4"])
def test_bad_shape_is_named(shape, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "ops", "--shapes", shape])
    assert f"expected C,H or C,H,N, such as 128,56, got '{shape}'" in capsys.readouterr().err
