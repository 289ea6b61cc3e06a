"""``dk-bench bench ops --of dense`` and ``pointwise`` on tiny shapes: what is timed beside what, targets, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dk_bench.analysis.bench import clock, memory
from dk_bench.analysis.bench.calls import COPY, FORWARD, MEMORY_FORMATS, TRAIN, WAYS, Setting, Shape
from dk_bench.analysis.bench.operator_sets import OPERATOR_SETS
from dk_bench.analysis.bench.speeds import speeds
from dk_bench.analysis.bench.tables import document
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.models.workload import DENSE, DEPTHWISE, PLAIN, Operation, Workload
from dk_bench.plan.devices import CPU, DEVICES, SINGLE
from dk_bench.plan.measured import read_speeds
from dk_bench.plan.roofline import fit_efficiency, seconds_an_image
from dk_bench.report.benches import read_bench

ROOT = Path(__file__).parents[2]
SHAPE = "4 x 5 x 5"
RESULTS = {"results": 4 * 4 * 25}  # bytes of an image's output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of both sets as the commands in results/README.md leave them, of a tiny shape."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "SERIES_CALLS", (2, 3))
        patch.setattr(clock, "_make_empty", lambda: int)
        patch.setattr(memory, "MANY", 3)
        for of in ("dense", "pointwise"):
            arguments = ["--isa", "native", "--shapes", "4,5,1", "--repeats", "3"]
            assert main(["bench", "ops", "--of", of, *arguments, "--output", str(folder / f"{of}-cpu.json")]) == 0
    return folder


def read(folder, of):
    return json.loads((folder / f"{of}-cpu.json").read_text())


@pytest.mark.parametrize(
    ("of", "kind", "unfoldings"), [("dense", "dense", ("F.unfold", "scope unfolding")), ("pointwise", "1x1", ())]
)
def test_record(folder, of, kind, unfoldings):
    record = read(folder, of)
    settings, (part,) = record["settings"], record["parts"]
    assert (settings["of"], settings["memory_bound"]) == (of, 64 << 20)
    assert (settings["kernel_size"], settings["scope"]) == {"dense": (3, 4), "pointwise": (1, 2)}[of]
    rows = {(t["setting"], t["operator"], t["variant"], t["mode"]): t for t in part["timings"]}
    base, local, both = f"{kind} convolution", f"{kind} local DK", f"{kind} DK+DCN"
    names = [local, both, f"{local} in plain PyTorch", f"{kind} DCN", f"torchvision {kind} deform_conv2d", *unfoldings]
    bases = [(base, way) for way in WAYS["cpu"]] + [(name, "") for name in unfoldings[:1]]
    expected = {("float32 channels_last", COPY, "", FORWARD)}
    for mode in (FORWARD, TRAIN):
        expected |= {(f"float32 {stored}", *way, mode) for stored in MEMORY_FORMATS for way in bases}
        expected |= {("float32 channels_last", name, "", mode) for name in names}
    assert set(rows) == expected
    for (_, operator, _, mode), t in rows.items():
        assert t["base"] == (unfoldings[0] if operator in unfoldings else base)
        fastest = min(r["seconds"] for (_, o, _, m), r in rows.items() if (o, m) == (t["base"], mode))
        assert t["ratio"] == pytest.approx(t["seconds"] / fastest)
        taps = (
            {local: 16, both: 16, f"{local} in plain PyTorch": 16} if kind == "dense" else dict.fromkeys(names[:3], 4)
        )
        macs = 25 * 4 * 4 * taps.get(operator, 9 if kind == "dense" else 1) * (3 if mode == TRAIN else 1)
        if operator in (COPY, *unfoldings):
            assert t["gigaflops_per_second"] is None
        else:
            assert t["gigaflops_per_second"] == pytest.approx(2 * macs / t["seconds"] / 1e9)


def test_operators_compute_the_same(folder):
    """What is timed beside each other has the same operands: ours and the reference, and rigid ones where taps rest."""
    for of, kind in (("dense", "dense"), ("pointwise", "1x1")):
        calls = OPERATOR_SETS[of].make_calls(Shape(3, 6, 2, 5), Setting(), torch.device("cpu"))
        given = {(call.operator, call.mode): call.function() for call in calls if not call.variant}
        for mode in (FORWARD, TRAIN):
            plain = given[f"{kind} local DK in plain PyTorch", mode]
            torch.testing.assert_close(given[f"{kind} local DK", mode], plain)
        assert given[f"{kind} local DK", FORWARD].shape == (2, 5, 6, 6)
        results = {(call.operator, call.mode): call.results for call in calls}
        offsets = 2 * 2 * OPERATOR_SETS[of].about["kernel_size"] ** 2 * 36
        kernel = 5 * 3 * OPERATOR_SETS[of].about["scope"] ** 2
        assert results[f"{kind} local DK", FORWARD] == 4 * 2 * 5 * 36
        deformed = given[f"torchvision {kind} deform_conv2d", FORWARD]
        torch.testing.assert_close(given[f"{kind} DCN", FORWARD], deformed, rtol=1e-4, atol=1e-4)
        assert results[f"{kind} DK+DCN", TRAIN] == 4 * (2 * 5 * 36 + 2 * 3 * 36 + 2 * offsets + kernel)


def test_shapes_are_resnet50s():
    shapes = [str(shape) for shape in OPERATOR_SETS["dense"].shapes_on("cpu")]
    assert shapes == ["64 x 56 x 56", "128 x 28 x 28", "256 x 14 x 14", "512 x 7 x 7"]
    pointwise = [str(shape) for shape in OPERATOR_SETS["pointwise"].shapes_on("cuda")]
    assert pointwise[:2] == ["256 to 64 x 56 x 56", "64 to 256 x 56 x 56"] and len(pointwise) == 8
    assert {shape.batch for shape in OPERATOR_SETS["pointwise"].shapes_on("cuda")} == {64}


def test_memory_is_of_few_and_of_many_images(folder):
    [part] = read(folder, "dense")["parts"]
    assert [(m["batch"], m["operator"], m["mode"]) for m in part["memory"]] == [
        (batch, operator, mode)
        for batch in (1, 3)
        for operator in ("dense local DK", "dense DCN", "dense DK+DCN")
        for mode in (FORWARD, TRAIN)
    ]
    assert part["memory"][0]["results"] == RESULTS["results"] and part["memory"][6]["results"] == 3 * RESULTS["results"]


def test_the_readme_says_which_targets_are_met(folder, tmp_path):
    """Planted ratios and bytes on both sides of what is aimed at."""
    planted = {("dense local DK", FORWARD): 3.0, ("dense local DK", TRAIN): 3.51, ("dense DK+DCN", FORWARD): 9.0}
    record = read(folder, "dense")
    [part] = record["parts"]
    for t in part["timings"]:
        t["ratio"] = planted.get((t["operator"], t["mode"]), 1.5)
    bound = record["settings"]["memory_bound"]
    for m, over in zip(part["memory"], 6 * (0, 1), strict=True):
        m["peak"] = bound + m["results"] + over
    (tmp_path / "dense-cpu.json").write_text(json.dumps(record))
    text = speeds(tmp_path, "results")
    assert f"| {SHAPE} | dense local DK | 3.00, met (at most 3.0) | 3.51, not met (at most 3.5) |" in text
    assert f"| {SHAPE} | dense DK+DCN | 9.00 | 1.50 |" in text and "| scope unfolding | 1.50 | 1.50 |" in text
    assert f"| {SHAPE} | 3 | dense local DK | 67.1, met (at most 67.1) | 67.1, not met (at most 67.1) |" in text
    assert f"| {SHAPE} | 1 |" not in text
    assert "3x3 taps in a scope of 4x4: time over PyTorch's fastest convolution, of an unfolding over F.unfold;" in text
    assert "at most the bound, 67.1, and the results" in text
    assert "again by `dk-bench bench ops --of dense --output FILE`" in text
    assert "`dk-bench bench ops --of pointwise --output FILE` makes one" in text
    assert "2x2: time over PyTorch's fastest convolution; batches of 1," in speeds(folder, "results")
    (tmp_path / "dense-cpu.json").write_text(json.dumps(record | {"settings": {}}))
    with pytest.raises(UserError, match="no record of `dk-bench bench ops --of dense`: KeyError"):
        speeds(tmp_path, "results")


def test_tables_on_a_terminal_say_what_they_are_of(folder):
    headings = [table.heading for table in document(read(folder, "pointwise")).tables]
    assert headings[:2] == ["times over PyTorch's", "memory beyond operands, MB"] and len(headings) > 2


def test_targets_stand_in_the_record_and_its_conclusions(folder):
    for of, kind, targets in (("dense", "dense", (3, 3.5)), ("pointwise", "1x1", (5, 5))):
        record = read(folder, of)
        [part] = record["parts"]
        assert record["settings"]["targets"] == {f"{kind} local DK": dict(zip((FORWARD, TRAIN), targets, strict=True))}
        said = [line for line in part["conclusions"] if f": {kind} local DK f" in line]
        assert len(said) == 2
        for line, most in zip(said, targets, strict=True):
            ratio = next(t["ratio"] for t in part["timings"] if f" {t['operator']} {t['mode']}:" in line)
            assert line.endswith(f"{'met' if ratio <= most else 'not met'} (at most {most:.1f})")


def test_plans_know_what_dense_operators_reach(folder):
    """Of the peak where they are nearer to it than to the bandwidth; depthwise ones of the bandwidth alone."""
    device, shares = DEVICES[CPU], {}
    for of in ("dense", "pointwise"):
        for t in read(folder, of)["parts"][0]["timings"]:
            of_peak = (t["gigaflops_per_second"] or 0) / 1e3 / device.teraflops[SINGLE]
            shares[t["operator"], t["mode"]] = max(t["gigabytes_per_second"] / device.bandwidth, of_peak)
    models = ROOT / "results/bench/train-cpu.json"
    one = Workload(1, 1, 0, 1, 0, 1, 0, (Operation(PLAIN, 1, 1),))
    fitted = fit_efficiency([folder, models], {(speed.model, speed.size): one for speed in read_speeds([models])})
    found = fitted["CPU"][SINGLE]
    assert set(found) == {PLAIN, *DENSE} and not set(DENSE) & set(DEPTHWISE)
    for operator in DENSE:
        assert found[operator]["train"] == pytest.approx(shares[operator, TRAIN], abs=1e-4)
        assert found[operator]["evaluate"] == pytest.approx(shares[operator, FORWARD], abs=1e-4)


def seconds(kind: str, macs: float, moved: float) -> float:
    """Returns the guess for one operation, at an efficiency of one half where operators are deformable."""
    work = Workload(1, 1, 0, 1, 0, 1, 0, (Operation(kind, macs, moved),))
    reached = {name: {"evaluate": 0.5} for name in (*DENSE, *DEPTHWISE)} | {PLAIN: {"evaluate": 1.0}}
    return seconds_an_image(work, DEVICES[CPU], SINGLE, "evaluate", reached)


def test_products_of_dense_operators_take_time():
    by_memory, by_products = (seconds(PLAIN, *given) for given in ((0, 1e9), (1e12, 0)))
    assert by_products > by_memory
    for kind in DENSE:
        assert seconds(kind, 1e12, 1e9) == pytest.approx(2 * by_products)
        assert seconds(kind, 0, 1e9) == pytest.approx(2 * by_memory)
    assert seconds(DEPTHWISE[0], 1e12, 1e9) == pytest.approx(2 * by_memory)


def test_report_draws_ratios_to_each_base(folder):
    bench = read_bench(folder / "dense-cpu.json")
    axes = {ratios.axis: set(ratios.rows) for ratios in bench.ratios}
    assert axes["time over PyTorch's F.unfold"] == {"scope unfolding"}
    assert {"dense local DK", "dense DK+DCN"} < axes["time over PyTorch's dense convolution"]


def test_the_set_goes_with_operators_alone(capsys):
    assert main(["bench", "train", "--of", "dense"]) == 2
    assert "--of: does not go with train" in capsys.readouterr().err
