"""Dynamics of objects that are alike, or of models that give no numbers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dk_bench.analysis.dynamics.figures import captions
from dk_bench.analysis.dynamics.linear_probe import targets_of
from dk_bench.analysis.dynamics.study import ALL, LEARNED, ProbeScore, collect
from dk_bench.analysis.learned import KERNEL, Loaded
from dk_bench.analysis.objects import Objects
from dk_bench.config import Config
from dk_bench.errors import UserError
from dk_bench.nn import DeformKernel2d


def test_objects_that_are_all_alike_are_named():
    with pytest.raises(ValueError, match="expected objects of several classes or scales, these are all alike"):
        targets_of(np.zeros(30, int), np.ones(30), {})


def test_dynamics_that_are_not_finite_are_named():
    """Weights may be finite where what they give is not."""
    from PIL import Image

    conv = DeformKernel2d((4, 4), 3, 3, 3, 1, 1, groups=3)
    with torch.no_grad():
        conv.kernel_offset.weight.fill_(3e38)
    config = Config()
    config.data.size, config.data.crop_pct = 8, 1.0
    objects = Objects(
        [lambda: Image.new("RGB", (8, 8), "white")],
        np.array([0]),
        np.zeros(1, int),
        ["a"],
        np.array([[0.5, 0.5]]),
        np.ones(1),
        {},
        "one object",
    )
    with pytest.raises(UserError, match=r"^last\.ckpt: kernel offsets of 0 are not finite on one object"):
        collect(Loaded(Path("last.ckpt"), nn.Sequential(conv), config, "", ["a"]), objects)


def test_captions_of_one_class_and_of_one_scale():
    line = ProbeScore("m", "cell", 0, "", KERNEL, ALL, 2, LEARNED, "log scale", 0.5, 0.4, 0.6)
    assert captions([line]) == {("cell", KERNEL): ("one class", "probe: scale $R^2$ = 0.50")}
    line = dataclasses.replace(line, target="class", value=40.0)
    assert captions([line]) == {("cell", KERNEL): ("probe: class 40 %", "one scale")}
