"""What the texts say of the GPU is what its records hold."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
GPU = ROOT / "results" / "gpu"


def read(name: str) -> dict:
    return json.loads((GPU / name).read_text())


def conclusions(name: str) -> list[str]:
    return [line for part in read(name)["parts"] for line in part["conclusions"] if "left out" not in line]


def figure(lines: list[str], begin: str) -> str:
    """The first number of the one line that begins so."""
    (line,) = (line for line in lines if line.startswith(begin))
    return line.removeprefix(begin).split()[0].rstrip("x")


def test_readme_of_the_folder_quotes_its_records():
    said = (GPU / "README.md").read_text()
    quoted = [line[2:] for line in said.splitlines() if line.startswith(("- bfloat16", "- resnet"))]
    assert quoted == [*conclusions("ops.json"), *conclusions("train.json")]
    for name in ("ops.json", "train.json"):
        assert read(name)["git"]["commit"][:7] in said and read(name)["device"]["name"] in said


def test_readme_says_what_the_records_hold():
    said = " ".join((ROOT / "README.md").read_text().split())
    ops, train = conclusions("ops.json"), conclusions("train.json")
    times = {
        (name, what): figure(ops, f"bfloat16 channels_last: {name} {what}: ")
        for name in ("local DK", "depthwise DCN")
        for what in ("forward", "forward+backward")
    }
    assert (
        f"In bfloat16 local DK takes {times['local DK', 'forward']} times PyTorch's depthwise convolution forward and "
        f"{times['local DK', 'forward+backward']} with backward, depthwise DCN {times['depthwise DCN', 'forward']} and "
        f"{times['depthwise DCN', 'forward+backward']}; ResNet-50-DW trains at {figure(train, 'resnet50dw at 224: ')} "
        f"images/s, with local DK at {figure(train, 'resnet50dw_dk at 224: ')}."
    ) in said


def test_parts_went_as_the_folders_readme_says():
    summary, said = read("summary.json"), (GPU / "README.md").read_text()
    failed = {name for name, part in summary.items() if name != "gpu" and part["status"]}
    assert failed == {"tests-other", "initcheck", "bench"} and all(name in said for name in failed)
