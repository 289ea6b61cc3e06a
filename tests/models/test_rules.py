"""Rules: what a spec asks for, in what words, and that a new kind of layer is a field of the spec and a rule."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from module_cases import on_meta
from torch import nn

from dk_bench import KernelSpec, deform
from dk_bench.models import MODELS
from dk_bench.models.rules import RULES, Convolutions, Rule
from dk_bench.nn import CondConv2d, DeformKernel2d

WORDS = [  # spec, cells of tables, all in a line
    ({}, ("rigid", "rigid", ""), "rigid"),
    ({"depthwise": "local"}, ("rigid", "local 4x4, centred", ""), "local 4x4, centred"),
    ({"depthwise": "local", "scope": 3, "grid": "spread"}, ("rigid", "local 3x3", ""), "local 3x3"),
    (
        {"depthwise": "global", "grid": "spread", "clip": False, "pointwise": "global"},
        ("global 2x2", "global 4x4, spread, unclipped", ""),
        "global 4x4, spread, unclipped + 1x1 global 2x2",
    ),
    ({"depthwise": "local", "dcn": True}, ("rigid", "local 4x4, centred", "DCN"), "DCN + local 4x4, centred"),
    ({"dcn": True, "experts": 2}, ("rigid", "rigid", "DCN, SCC"), "DCN, SCC"),
    (
        {"dense": "local", "dense_dcn": "v1", "pointwise": "local", "clip": False},
        ("local 2x2", "dense local 4x4, centred, unclipped", "full DCN v1 from stride 32"),
        "full DCN v1 from stride 32 + dense local 4x4, centred, unclipped + 1x1 local 2x2",
    ),
    (
        {"dense": "global", "depthwise": "local", "scope": 5, "grid": "spread"},
        ("rigid", "local 5x5, dense global 5x5, spread", ""),
        "local 5x5, dense global 5x5, spread",
    ),
    (
        {"dense": "local", "kernel_size": None, "scope": 5, "everywhere": True},
        ("rigid", "dense local K+2 for every K, centred", "everywhere"),
        "everywhere + dense local K+2 for every K, centred",
    ),
    ({"pointwise": "local", "clip": False}, ("local 2x2, unclipped", "rigid", ""), "1x1 local 2x2, unclipped"),
    ({"everywhere": True, "kernel_size": None}, ("rigid", "rigid", ""), "rigid"),
    (
        {"dense_dcn": "v2", "dense_dcn_groups": 4, "dilate_last": True},
        ("rigid", "rigid", "full DCN v2 from stride 32, 4 groups, dilated"),
        "full DCN v2 from stride 32, 4 groups, dilated",
    ),
]


@pytest.mark.parametrize("changes, columns, line", WORDS, ids=str)
def test_words(changes, columns, line):
    words = KernelSpec(**changes).words
    assert words.columns == columns and str(words) == line


def test_rules_ask_for_fields_by_themselves():
    fields = {field.name for field in dataclasses.fields(KernelSpec)}
    assert set(KernelSpec.PARTS) - {"dilate_last"} == {rule.parts[0] for rule in RULES if len(rule.parts) == 1}
    assert set(KernelSpec.PARTS) <= fields
    for model in MODELS.values():
        assert model.spec.is_rigid == (str(model.spec.words) == "rigid") == (model.suffix == "")


@dataclasses.dataclass(frozen=True)
class NewSpec(KernelSpec):
    mixed: bool = False

    PARTS = (*KernelSpec.PARTS, "mixed")


@pytest.fixture
def new_rule(monkeypatch):
    rule = Rule(
        ("mixed",),
        lambda spec: Convolutions(False, spec.kernel_size),
        lambda conv, spec: CondConv2d.from_rigid(conv, experts=2),
        lambda spec: {"combined": "mixed"},
    )
    for module in ("matching", "spec"):
        monkeypatch.setattr(sys.modules[f"dk_bench.models.{module}"], "RULES", (rule, *RULES))


@pytest.mark.usefixtures("new_rule")
def test_a_new_kind_is_a_field_and_a_rule():
    spec = NewSpec(mixed=True, depthwise="local")
    assert not spec.is_rigid and spec.words.columns == ("rigid", "local 4x4, centred", "mixed")
    convs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)))
    deform(convs, spec)
    assert [type(each) for each in convs[1]] == [DeformKernel2d, CondConv2d]
    message = (
        r"^mixed: ResNet has no dense 3x3 convolution in a block; its dense kernels there have the sizes \[\(1, 1\)\]"
    )
    with pytest.raises(ValueError, match=message):
        deform(on_meta("test_resnetdw"), spec)


def test_one_channel_alone_is_dense():
    """The stem of a network on grey images, or a head with one output, is no depthwise convolution of its blocks."""
    depthwise, dense = Convolutions(depthwise=True), Convolutions(depthwise=False)
    for channels, is_dense in ((1, True), (2, False)):
        conv = nn.Conv2d(channels, channels, 3, groups=channels)
        assert (dense.include(conv, 4), depthwise.include(conv, 4)) == (is_dense, not is_dense)


@pytest.mark.parametrize(
    "spec, unread",
    [
        ({"pointwise": "local", "scope": 3, "pointwise_scope": 3, "clip": False}, {"scope": 3}),
        ({"dense": "local", "kernel_size": 5, "scope": 6, "dense_dcn_groups": 2}, {"dense_dcn_groups": 2}),
        ({"dense_dcn": "v1", "dense_dcn_min_stride": 8, "dcn_min_stride": 4}, {"dcn_min_stride": 4}),
        ({"dcn": True, "everywhere": True, "kernel_size": None, "grid": "spread"}, {"grid": "spread"}),
        ({"pointwise_scope": 3, "everywhere": True}, {"pointwise_scope": 3, "everywhere": True}),
    ],
    ids=str,
)
def test_fields_without_effect_are_told(spec, unread, caplog):
    assert KernelSpec(**spec).unread() == unread
    if unread == {"scope": 3}:
        deform(nn.Sequential(nn.Conv2d(2, 2, 1)), KernelSpec(**spec))
        assert "KernelSpec: scope=3 has no effect without depthwise or dense" in caplog.text
    assert {model.name for model in MODELS.values() if model.spec.unread()} == set()
    fields = {field.name for field in dataclasses.fields(KernelSpec)}
    assert KernelSpec.READ_BY.keys() == fields - set(KernelSpec.PARTS)
