"""``dk-bench models model.name=...``: the convolutions of a model, and what a spec makes of them."""

from __future__ import annotations

import csv
import io
import re

import pytest

from dk_bench.cli import main


def listed(capsys, *arguments):
    assert main(["models", *arguments, "--csv"]) == 0
    return {row["convolution"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}


def test_table(capsys):
    spec = ["model.spec.dense=local", "model.spec.kernel_size=null", "model.spec.everywhere=true"]
    assert main(["models", "model.name=test_convnext", *spec]) == 0
    out = capsys.readouterr().out
    assert "test_convnext: 4 of 13 convolutions change" in out
    assert "Deformed: everywhere + dense local K+1 for every K, centred." in out
    rows = listed(capsys, "model.name=test_convnext", *spec)
    assert rows["stem.0"]["kernel"] == "dense 4x4" and rows["stem.0"]["becomes"] == "DeformKernel2d"
    assert rows["stages.0.blocks.0.conv_dw"]["stays"] == "no dense convolution larger than 1x1"


def test_models_of_ours_and_rigid_ones(capsys):
    rows = listed(capsys, "model.name=test_resnetdw_dk_pw")
    assert rows["layer1.0.conv2"]["becomes"] == "DeformKernel2d"
    assert rows["layer1.0.conv1"]["becomes"] == "GlobalDeformKernel2d"
    assert {row["stays"] for row in listed(capsys, "model.name=test_resnetdw").values()} == {
        "in the stem",
        "of a shortcut or between stages",
        "the spec asks for nothing",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["model.name=test_convnext", "model.spec.dense=local"],
            r"no dense 3x3 .* everywhere=True adds \[\(2, 2\), \(4, 4\)\]",
        ),
        (["model.name=test_resnt"], "which timm does not know, did you mean test_resnet"),
        (["model.name=test_resnet", "--filter", "conv*"], "--filter and --input-size: are of the list of models"),
        (["model.name=test_resnet", "seed=1"], "seed=1: expected a key of the model, as model.name=resnet50"),
    ],
)
def test_what_does_not_go(arguments, message, capsys):
    assert main(["models", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
