"""``dk-bench bench ops`` on tiny shapes: the record's content and how calls are timed, not their times."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import torch

from dk_bench.analysis.bench import clock as bench_clock
from dk_bench.analysis.bench import recording as bench_held
from dk_bench.analysis.bench.calls import (
    BASE,
    COPY,
    FORWARD,
    MEMORY_FORMATS,
    OURS,
    REFERENCE,
    TORCHVISION,
    TRAIN,
    WAYS,
    Call,
    Setting,
    Shape,
)
from dk_bench.analysis.bench.clock import LEAST_ROUNDS, cold_times, in_rounds, make_series, spread
from dk_bench.analysis.bench.recording import default_instruction_sets, join, measure_held
from dk_bench.analysis.bench.study import bench_operators
from dk_bench.analysis.bench.timings import geometric_means, sentences, uneven
from dk_bench.cli import main
from dk_bench.cli.bench import _arguments as arguments_of
from dk_bench.cli.bench import add_arguments
from dk_bench.errors import UserError
from dk_bench.report.benches import read_bench

CPU = torch.device("cpu")
SLOW = (TORCHVISION, REFERENCE)


class FakeClock:
    """A clock that only calls move; it keeps what was called, in order."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float, operator: str = "local DK", dtype: str = "float32") -> Call:
        def function():
            self.called.append(name)
            self.now += seconds

        return Call(operator, FORWARD, name, function, 1, Setting(dtype), slow=operator in SLOW)


@pytest.fixture
def hurried(monkeypatch):
    """Short series, and caches that count as emptied."""
    monkeypatch.setattr(bench_clock, "SERIES_CALLS", (2, 3))
    monkeypatch.setattr(bench_clock, "_make_empty", lambda: int)


def test_record(tmp_path, capsys, hurried):
    path = tmp_path / "new" / "ops.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        arguments = ["--threads", "1", "--repeats", "5", "--output", str(path), "--shapes", "8,6,2", "5,4,1"]
        assert main(["bench", "ops", "--isa", "native", *arguments]) == 0
        assert torch.get_num_threads() == 3  # given back
    finally:
        torch.set_num_threads(threads)
    record = json.loads(path.read_text())
    assert record["schema_version"] == 4 and record["kind"] == "operator times"
    assert record["device"]["type"] == "cpu" and record["device"]["threads"] == 1
    assert torch.__version__.startswith(record["versions"]["torch"]) and {"commit", "dirty"} == set(record["git"])
    assert record["settings"]["shapes"] == [
        {"channels": 8, "size": 6, "batch": 2, "out_channels": None},
        {"channels": 5, "size": 4, "batch": 1, "out_channels": None},
    ]
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
        (shape, setting, *row) for shape in ("8 x 6 x 6", "5 x 4 x 4") for setting, r in expected.items() for row in r
    }
    for (shape, setting, operator, variant, mode), t in rows.items():
        assert 0 < t["seconds"] == t["quartiles"][0] <= t["median"] <= t["quartiles"][1]
        assert t["rounds"] <= 5 and (operator not in SLOW or t["rounds"] == LEAST_ROUNDS)
        assert (t["cold"] is not None) == (t["rounds"] > LEAST_ROUNDS)
        base = [
            rows[shape, f"{setting.split()[0]} {name}", BASE, way, mode]["seconds"]
            for name in MEMORY_FORMATS
            for way in WAYS["cpu"]
        ]
        assert t["ratio"] == pytest.approx(t["seconds"] / min(base))
        copied = [
            t["gigabytes_per_second"]
            for (s, stored, o, *_), t in rows.items()
            if (s, o) == (shape, COPY) and stored.split()[0] == setting.split()[0]
        ]
        assert t["copy_share"] == pytest.approx(t["gigabytes_per_second"] / max(copied))
        float32 = rows.get((shape, "float32 channels_last", operator, variant, mode))
        if operator in OURS and "float32" not in setting:
            assert t["over_float32"] == pytest.approx(t["seconds"] / float32["seconds"])
        else:
            assert t["over_float32"] is None
    # 2 x 8 x 6 x 6 in and out, 2 x 18 x 6 x 6 offsets, 8 x 4 x 4 weights, 4 bytes each
    local = rows["8 x 6 x 6", "float32 channels_last", "local DK", "", FORWARD]
    moved = 4 * (2 * 2 * 8 * 36 + 2 * 18 * 36 + 8 * 16)
    assert local["gigabytes_per_second"] == pytest.approx(moved / local["seconds"] / 1e9)


def test_what_torchvision_lacks_is_left_out():
    """Its deformable convolution has no bfloat16 on the CPU, and a benchmark on a GPU begins with bfloat16."""
    record = bench_operators([Shape(4, 5, 1)], [Setting("bfloat16")], CPU, 2)
    [part] = record["parts"]
    assert {t["operator"] for t in part["timings"]} == {BASE, COPY, *OURS, REFERENCE}
    left_out = {(left["operator"], left["mode"]) for left in part["left_out"]}
    assert left_out == {(TORCHVISION, FORWARD)}
    assert all(left["reason"].startswith("NotImplementedError: ") for left in part["left_out"])
    conclusions = sentences(record, "conclusions")
    assert any("local DK forward" in line for line in conclusions)
    assert any(f"{TORCHVISION} {FORWARD} is left out" in line for line in conclusions)


def test_onednn_is_off_in_pytorchs_own_way_alone():
    for way, context in WAYS["cpu"].items():
        with context():
            assert torch.backends.mkldnn.enabled == (way == "oneDNN")
        assert torch.backends.mkldnn.enabled


def test_a_warm_series_is_of_one_call_alone_after_one_that_is_not_timed():
    clock = FakeClock()
    [series] = make_series([clock.call("a", 0.001)], CPU, 25, clock)
    assert (series.calls, series.rounds) == (8, 25)  # 8 ms
    clock.called.clear()
    assert series.seconds() == pytest.approx(0.001)
    assert clock.called == ["a"] * 9


@pytest.mark.parametrize(
    ("seconds", "calls", "rounds"),
    [(1e-5, 50, 25), (0.004, 2, 25), (0.013, 2, 25), (0.05, 1, 10), (4.0, 1, LEAST_ROUNDS)],
)
def test_long_calls_have_short_series_and_few_rounds(seconds, calls, rounds):
    clock = FakeClock()
    [series] = make_series([clock.call("a", seconds)], CPU, 25, clock)
    assert (series.calls, series.rounds) == (calls, rounds)


def test_ways_that_are_beaten_have_one_round():
    clock = FakeClock()
    calls = [
        clock.call(name, seconds, BASE, dtype)
        for name, seconds, dtype in (
            ("fastest", 0.001, "float32"),
            ("near", 0.0019, "float32"),
            ("lost", 0.0021, "float32"),
            ("of another dtype", 0.08, "float16"),
        )
    ]
    series = make_series([*calls, clock.call("slow", 0.001, TORCHVISION)], CPU, 25, clock)
    assert [s.rounds for s in series] == [25, 25, 1, 6, LEAST_ROUNDS]


def test_a_round_has_an_order_of_its_own():
    def orders() -> list[list[int]]:
        asked: list[int] = []
        measures = [lambda n=n: asked.append(n) or float(n) for n in range(4)]
        results = in_rounds(measures, [6, 6, 6, 2])
        assert results == [[0.0] * 6, [1.0] * 6, [2.0] * 6, [3.0] * 2]
        return [asked[:4], asked[4:8], *(asked[n : n + 3] for n in range(8, 20, 3))]

    rounds = orders()
    assert [sorted(order) for order in rounds] == [[0, 1, 2, 3]] * 2 + [[0, 1, 2]] * 4
    assert len(set(map(tuple, rounds))) > 3 and {order[0] for order in rounds} > {0}
    assert orders() == rounds


def test_cold_calls_follow_an_emptying_and_are_not_the_warm_ones():
    """The fake caches make a call after an emptying take ten times as long."""
    clock = FakeClock()
    warm, few = make_series([clock.call("a", 0.001), clock.call("b", 4.0)], CPU, 25, clock)
    clock.called.clear()

    def empty():
        clock.called.append("empty")
        clock.now += 5.0  # is not timed

    assert cold_times([warm, few], clock, empty) == [pytest.approx(0.001), None]
    assert clock.called == ["empty", "a"] * 5


def test_quartiles():
    assert (spread([5.0, 1.0, 2.0, 4.0, 3.0]).low, spread([1.0, 2.0, 3.0, 4.0, 5.0]).median) == (2.0, 3.0)
    one = spread([7.0])
    assert (one.low, one.median, one.high) == (7.0, 7.0, 7.0)


def _timing(shape, operator, ratio, over) -> dict:
    about = {"shape": shape, "setting": "float32", "operator": operator, "mode": FORWARD}
    return about | {"ratio": ratio, "over_float32": over}


def test_geometric_means():
    timings = [_timing(shape, o, r, r / 2) for shape, r in (("a", 2.0), ("b", 8.0)) for o in (BASE, "local DK")]
    timings.append(_timing("a", "DK+DCN", 3.0, None))
    means = {"local DK": pytest.approx(4), "DK+DCN": pytest.approx(3)}
    assert geometric_means(timings, "ratio")["float32"][FORWARD] == means
    assert geometric_means(timings, "over_float32")["float32"][FORWARD] == {"local DK": pytest.approx(2)}


def test_uneven_calls_are_said():
    assert uneven([(1.0, 1.1)] * 10) == [] == uneven([(1.0, 2.0)] + [(1.0, 1.0)] * 9)
    said = uneven([(1.0, 2.0)] * 3 + [(1.0, 1.0)] * 7)
    assert said == ["of 3 of 10 calls the median is more than 15% above the lower quartile"]


def test_both_instruction_sets_where_nothing_is_held(monkeypatch):
    for name in bench_held.HOLDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(bench_held, "instruction_sets_here", lambda: ["avx512", "avx2"])
    assert default_instruction_sets() == ["avx512", "avx2"]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert default_instruction_sets() == ["native"]
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    monkeypatch.setattr(bench_held, "instruction_sets_here", lambda: ["avx2"])
    assert default_instruction_sets() == ["native"]


def test_parts_of_several_processes_are_one_record():
    def record(name, ended):
        part = {"instruction_set": name, "conclusions": ["it is fast"], "warnings": []}
        return {"started": "0", "ended": ended, "parts": [part]}

    joined = join([record("avx512", "1"), record("avx2", "2")])
    assert (joined["started"], joined["ended"], len(joined["parts"])) == ("0", "2", 2)
    assert sentences(joined, "conclusions") == ["avx512, it is fast", "avx2, it is fast"]
    assert sentences(record("avx2", "2"), "conclusions") == ["it is fast"] and sentences(joined, "warnings") == []


@pytest.mark.skipif("avx2" not in bench_held.instruction_sets_here(), reason="a processor without AVX2")
def test_a_process_is_held_to_its_instruction_set(tmp_path, capsys):
    path = tmp_path / "ops.json"
    assert main(["bench", "ops", "--isa", "avx2", "--shapes", "3,4,1", "--repeats", "2", "--output", str(path)]) == 0
    [part] = json.loads(path.read_text())["parts"]
    sets = part["machine"]["instruction_sets"]
    assert (part["instruction_set"], sets["dk_bench"], sets["torch"]) == ("avx2", "avx2", "AVX2")
    assert sets["oneDNN"] is None or sets["oneDNN"].endswith("AVX2")
    assert part["machine"]["held_by"] == bench_held.HELD["avx2"] | part["machine"]["held_by"]
    assert "DK_BENCH_CPU" not in os.environ
    assert "avx2" in capsys.readouterr().out


def test_a_process_that_fails_is_said(monkeypatch):
    monkeypatch.setattr(bench_held.sys, "executable", "false")
    with pytest.raises(UserError, match="--isa avx2: the process that measures ended with status 1"):
        measure_held(["avx2"], ["bench", "ops"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--threads", "-1"], "--threads: expected at least 1, got -1"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: this machine or this torch has no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    assert main(["bench", "ops", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_instruction_set_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr(bench_held, "instruction_sets_here", lambda: ["avx2"])
    assert main(["bench", "ops", "--isa", "avx512"]) == 2
    assert "--isa avx512: this processor has not what it needs, expected one of native, avx2" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["128", "0,56", "128,x", "1,2,3,4"])
def test_bad_shape_is_named(shape, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "ops", "--shapes", shape])
    assert f"expected C,H or C,H,N, such as 128,56, got '{shape}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ops", "--shapes", "8,6", "5,4,1", "--threads", "2", "--repeats", "3"],
        ["train", "--models", "test_*", "--batch", "2", "--size", "32", "--bfloat16"],
        ["data", "--sizes", "32", "64", "--sources", "tar", "procedural", "--images", "9"],
        ["train"],
    ],
)
def test_a_process_gets_the_arguments_that_were_given(arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args([*arguments, "--isa", "avx512", "avx2"])
    command, *passed = arguments_of(given)
    assert command == "bench" and vars(parser.parse_args(passed)) == vars(given) | {"isa": None}
