"""``dk-bench bench ops`` on tiny shapes: the record's content, not its times."""

from __future__ import annotations

import json

import pytest
import torch

from dk_bench.analysis.bench import Timing, bench_operators, geometric_means
from dk_bench.analysis.bench_calls import BASE, COPY, FORWARD, OURS, REFERENCE, SLOW, TORCHVISION, TRAIN, Setting, Shape
from dk_bench.cli import main


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
    rows = {(t["shape"], t["operator"], t["mode"]): t for t in record["timings"]}
    expected = {(o, FORWARD) for o in (BASE, COPY, *OURS, *SLOW)} | {(o, TRAIN) for o in (BASE, *OURS)}
    assert set(rows) == {(shape, *e) for shape in ("8 x 6 x 6", "5 x 4 x 4") for e in expected}
    for (_, operator, _), t in rows.items():
        assert 0 < t["quartiles"][0] <= t["median"] <= t["quartiles"][1]
        assert t["repeats"] == (3 if operator in SLOW else 4)
        assert operator != BASE or t["ratio"] == 1
        assert operator != COPY or t["copy_share"] == pytest.approx(1)
        assert t["gigabytes_per_second"] > 0
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


def test_model_speeds(tmp_path, capsys):
    path = tmp_path / "train.json"
    arguments = ["--models", "test_resnetdw_dk*", "--size", "32", "--batch", "2", "--repeats", "3", "--bfloat16"]
    assert main(["bench", "train", *arguments, "--output", str(path)]) == 0
    assert "test_resnetdw_dk_s9" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert [s["model"] for s in record["speeds"]] == [
        "test_resnetdw_dk_s3", "test_resnetdw_dk", "test_resnetdw_dk_s5", "test_resnetdw_dk_s9", "test_resnetdw_dk_pw"]
    assert record["settings"]["precision"] == "bfloat16 autocast" and record["kind"] == "model speeds"
    for s in record["speeds"]:
        assert s["base"] == "test_resnetdw" and s["train_images_per_second"] > 0
        assert s["train_ratio"] > 0 and s["eval_ratio"] > 0
    assert main(["bench", "train", "--models", "resnet49*"]) == 2
    assert "--models: no model matches 'resnet49*'" in capsys.readouterr().err
