"""The README's figures of speed, from records of benches."""

from __future__ import annotations

import json

import pytest
from report_cases import make_record

from dk_bench.analysis.bench.calls import FORWARD, OURS, TORCHVISION, TRAIN
from dk_bench.analysis.bench.speeds import speeds
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.report.readme import BEGIN, END, SPEED_BEGIN, SPEED_END
from dk_bench.runs.record import write_record

STORED, HALF = "float32 channels_last", "bfloat16 channels_last"
COMMON = {"device": {"name": "A <processor>", "threads": 1}, "git": {"commit": "0123456789abcdef", "dirty": False}}


def operator_part(name, factor, warnings=()) -> dict:
    """Means of 2, 3 and 4 times a factor, each with a shape that is half as much again."""
    means = {operator: (2 + number) * factor for number, operator in enumerate(OURS)}
    timings = [
        {"setting": STORED, "operator": operator, "mode": mode, "shape": shape, "ratio": scale * mean}
        for operator, mean in means.items()
        for mode in (FORWARD, TRAIN)
        for shape, scale in (("a", 1.5), ("b", 0.6))
    ]
    return {
        "instruction_set": name,
        "timings": timings,
        "warnings": list(warnings),
        "geometric_means": {STORED: {FORWARD: means | {TORCHVISION: 120.0}, TRAIN: means}},
        "over_float32": {HALF: {mode: dict.fromkeys(OURS, 1.25) for mode in (FORWARD, TRAIN)}},
    }


def operators(*parts) -> dict:
    shapes = [{"channels": 128, "size": 56, "batch": 4}, {"channels": 256, "size": 28, "batch": 4}]
    return COMMON | {"kind": "operator times", "parts": list(parts), "settings": {"shapes": shapes}}


def models() -> dict:
    def speed(model, ratio):
        figures = {
            "train_images_per_second": 1100 * ratio,
            "train_ratio": ratio,
            "eval_images_per_second": 4000 * ratio,
            "eval_ratio": ratio,
        }
        return figures | {"model": model, "base": "tiny", "batch": 64, "size": 32}

    part = {"instruction_set": "avx512", "warnings": [], "speeds": [speed("tiny", 1.0), speed("tiny_dk", 0.85)]}
    return COMMON | {"kind": "model speeds", "parts": [part], "git": COMMON["git"] | {"dirty": True}}


def data() -> dict:
    def rate(decoded, mode, size, images_per_second):
        return {"source": "tar", "decoded": decoded, "size": size, "mode": mode, "images_per_second": images_per_second}

    rates = [
        rate("memory", "train", 64, 9000.4),
        rate("memory", "eval", 32, 30000.0),
        rate("memory", "train", 32, 20000.0),
        rate("every time", "train", 32, 1500.0),
    ]
    part = {"instruction_set": "AVX512", "warnings": [], "rates": rates}
    settings = {"sizes": [32, 64, 96], "images": 500, "side": 32, "rounds": 7, "place": None, "workers": [0, 2]}
    return COMMON | {"kind": "image rates", "settings": settings, "parts": [part]}


def write(folder, what, record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{what}-cpu.json").write_text(json.dumps(record))


def test_operators_of_both_instruction_sets(tmp_path):
    write(tmp_path, "ops", operators(operator_part("avx512", 1.0), operator_part("avx2", 0.9)))
    lines = speeds(tmp_path, "results/a b").splitlines()
    assert lines[0] == (
        "Operators: geometric mean over 128 x 56 x 56, 256 x 28 x 28 (the largest ratio among them). Torchvision's "
        "deformable convolution takes 40 (AVX-512) and 44 (AVX2) times as long as depthwise DCN, forward."
    )
    assert lines[2] == (
        "| time of | operator | AVX-512, forward | AVX-512, forward+backward | AVX2, forward | AVX2, forward+backward |"
    )
    fastest = "float32 channels_last, over PyTorch's fastest depthwise convolution"
    assert lines[4] == f"| {fastest} | local DK | 2.00 (3.00) | 2.00 (3.00) | 1.80 (2.70) | 1.80 (2.70) |"
    assert lines[6] == "|  | DK+DCN | 4.00 (6.00) | 4.00 (6.00) | 3.60 (5.40) | 3.60 (5.40) |"
    assert lines[7] == "| bfloat16 channels_last, over float32 | local DK | 1.25 | 1.25 | 1.25 | 1.25 |"
    assert lines[11] == (
        r"From [ops-cpu.json](results/a%20b/ops-cpu.json) (A \<processor>, 1 thread, commit 0123456), "
        "again by `dk-bench bench ops --output FILE`."
    )
    assert lines[13] == "No record of operator times yet: `dk-bench bench ops --of dense --output FILE` makes one."
    assert lines[17] == "No record of model speeds yet: `dk-bench bench train --output FILE` makes one."


def test_models(tmp_path):
    write(tmp_path, "train", models())
    lines = speeds(tmp_path, "results").splitlines()
    assert "| AVX-512, batch | model | training | x base | evaluation | x base |" in lines
    assert "| 64 at 32 | tiny | 1100 | 1.00 | 4000 | 1.00 |" in lines
    assert "|  | tiny_dk | 935 | 0.85 | 3400 | 0.85 |" in lines
    assert "commit 0123456 with changes" in lines[-3]


def test_data(tmp_path):
    write(tmp_path, "data", data())
    lines = speeds(tmp_path, "results").splitlines()
    assert lines[-6:-2] == [
        "| images of | decoded | 32 pixels, train | 32 pixels, eval | 64 pixels, train |",
        "| :-- | :-- | --: | --: | --: |",
        "| tar | memory | 20000 | 30000 | 9000 |",
        "| tar | every time | 1500 | - | - |",
    ]
    assert "again by `dk-bench bench data --images 500 --workers 0 2 --output FILE`." in lines[-1]


def test_data_of_both_instruction_sets(tmp_path):
    record = data()
    record["parts"] = [part | {"instruction_set": name} for part in record["parts"] for name in ("AVX512", "AVX2")]
    write(tmp_path, "data", record)
    text = speeds(tmp_path, "results")
    assert all(f"| {name}, images of | decoded | 32 pixels, train |" in text for name in ("AVX512", "AVX2"))
    assert text.count("| tar | memory | 20000 | 30000 | 9000 |") == 2


def test_what_disturbed_stands_beside_the_figures(tmp_path):
    parts = operator_part("avx512", 1.0), operator_part("avx2", 1.0, ["the load average at the start was 3.00"])
    write(tmp_path, "ops", operators(*parts))
    assert "The machine was not quiet: avx2, the load average at the start was 3.00." in speeds(tmp_path, "results")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"kind": "model speeds"}', "it is of model speeds"),
        ('{"kind": "operator times"}', "KeyError: 'parts'"),
        (
            '{"kind": "operator times", "parts": [{"geometric_means": {}, "over_float32": {}, "instruction_set": 3}], '
            '"settings": {"shapes": []}}',
            "AttributeError",
        ),
    ],
)
def test_a_file_that_is_no_record_is_named(content, said, tmp_path):
    (tmp_path / "ops-cpu.json").write_text(content)
    with pytest.raises(UserError, match=f"ops-cpu.json: no record of `dk-bench bench ops`: .*{said}"):
        speeds(tmp_path, "results")


def test_command_puts_the_speeds_into_a_readme(tmp_path, capsys):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    write_record(make_record("test_resnetdw", 55.0), results / "run" / "record.json")
    write(results / "bench", "train", models())
    readme.write_text(f"a\n{BEGIN}{END}\nb\n{SPEED_BEGIN}old{SPEED_END}\nc\n")
    for _ in range(2):
        assert main(["tables", str(results), "--readme", str(readme)]) == 0
        content = readme.read_text()
        new = content.partition(SPEED_BEGIN)[2].partition(SPEED_END)[0]
        assert new == f"\n\n{speeds(results / 'bench', 'results/bench')}\n\n"
        assert content.startswith("a\n") and f"\nb\n{SPEED_BEGIN}" in content and content.endswith(f"{SPEED_END}\nc\n")
    readme.write_text(f"{BEGIN}{END}{SPEED_BEGIN}")
    capsys.readouterr()
    assert main(["tables", str(results), "--readme", str(readme)]) == 2
    assert f"expected the line {SPEED_BEGIN}, and below it {SPEED_END}, once each" in capsys.readouterr().err
