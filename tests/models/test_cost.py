"""Multiply-adds: formulas by hand, the paper's differences, and no operator that silently counts 0."""

from __future__ import annotations

import pytest
import timm
import torch
from module_cases import on_meta
from new_python import run_new_python
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dk_bench  # noqa: F401  (registers the models)
from dk_bench import functional
from dk_bench.cli import main
from dk_bench.functional import narrow_conv
from dk_bench.models import TEST_MODELS
from dk_bench.models.cost import count_cost
from dk_bench.nn import CondConv2d, DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d

POSITIONS = 5 * 4  # of a 3x3 with stride 2 and padding 1 on 9 x 8
OFFSETS = 9 * 6 * 18 * POSITIONS


def cost(module: nn.Module) -> tuple[int, int]:
    counted = count_cost(module, (6, 9, 8))
    return counted.macs, counted.sampling_macs


@pytest.mark.parametrize(
    "module, expected",
    [
        (nn.Conv2d(6, 6, 3, 2, 1, groups=6), (9 * 6 * POSITIONS, 0)),
        (DeformKernel2d(4, 6, 6, 3, 2, 1, groups=6), (9 * 6 * POSITIONS + OFFSETS, 4 * 9 * 6 * POSITIONS)),
        (DeformConv2d(6, 6, 3, 2, 1, groups=6), (9 * 6 * POSITIONS + OFFSETS, 4 * 9 * 6 * POSITIONS)),
        (DeformKernelConv2d(4, 6, 6, 3, 2, 1, groups=6), (9 * 6 * POSITIONS + 2 * OFFSETS, 8 * 9 * 6 * POSITIONS)),
        (DeformConv2d(6, 10, 3, 2, 1, groups=2), (9 * 3 * 10 * POSITIONS + OFFSETS, 4 * 9 * 6 * POSITIONS)),
        # of any groups: the convolution over the scope, 16 / 9 of the rigid one; 1x1: 4 times, and 2 offsets
        (DeformKernel2d(4, 6, 10, 3, 2, 1, groups=2), (16 * 3 * 10 * POSITIONS + OFFSETS, 4 * 9 * 6 * POSITIONS)),
        (
            DeformKernelConv2d(4, 6, 10, 3, 2, 1, groups=2),
            (16 * 3 * 10 * POSITIONS + 2 * OFFSETS, 8 * 9 * 6 * POSITIONS),
        ),
        (DeformKernel2d(2, 6, 10, 1, 2), (4 * 6 * 10 * POSITIONS + 6 * 2 * POSITIONS, 4 * 6 * POSITIONS)),
        # global: the linear layer, the product with the 16 samples of the scope, the convolution
        (GlobalDeformKernel2d(4, 6, 6, 3, 2, 1, groups=6), (6 * 18 + 9 * 16 * 6 + 9 * 6 * POSITIONS, 0)),
        (CondConv2d(3, 6, 6, 3, 2, 1, groups=6), (6 * 3 + 3 * 9 * 6 + 9 * 6 * POSITIONS, 0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_counted_by_hand(module, expected):
    assert cost(module) == expected
    assert count_cost(module, (6, 9, 8)).params == sum(p.numel() for p in module.parameters())


def test_backward_costs_twice_the_forward_pass():
    x, weight = torch.randn(2, 6, 9, 8, requires_grad=True), torch.randn(6, 1, 4, 4, requires_grad=True)
    offset = torch.randn(2, 18, 5, 4, requires_grad=True)
    forward = 2 * 2 * 9 * 6 * POSITIONS
    with FlopCounterMode(display=False) as counter:
        out = functional.local_deform_kernel(x, offset, weight, kernel_size=3, stride=2, padding=1)
        assert counter.get_total_flops() == forward
        out.sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_importing_the_package_is_enough_for_torchs_counter():
    """In a process of its own: here, the other imports have registered the formulas."""
    code = (
        "import dk_bench, torch\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "module = dk_bench.nn.DeformKernel2d(4, 6, 6, 3, padding=1, groups=6)\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    module(torch.randn(1, 6, 9, 8))\n"
        "flops = counter.get_flop_counts()['Global']\n"
        "print(flops[torch.ops.dk_bench.deform_kernel_conv])"
    )
    run = run_new_python(["-c", code])
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == 2 * 9 * 6 * 9 * 8


@pytest.mark.parametrize(
    "base, dk, dcn",
    [("resnet50dw", 0.447, 0.252), ("mobilenetv2_100", 0.373, 0.186)],
    ids=["resnet50dw", "mobilenetv2"],
)
def test_what_offsets_add(base, dk, dcn):
    """GMACs of the offset convolutions, which for local DK do not depend on the scope."""

    def gmacs(name):
        return count_cost(on_meta(name)).macs / 1e9

    rigid = gmacs(base)
    assert round(gmacs(base + "_dk") - rigid, 3) == dk
    assert round(gmacs(base + "_dcn") - rigid, 3) == dcn
    if base == "resnet50dw":
        assert round(rigid, 2) == 4.02  # the paper prints 3.82: see the notes of table 1
        assert round(gmacs("resnet50dw_dk_s9") - rigid, 3) == dk


STAGES = [(64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)]  # of ResNet-50: width, blocks, pixels along a side


def test_what_dense_kernels_add():
    """On ResNet-50: to each 3x3 convolution 7 more samples of the scope, and 18 outputs of each offset generator; DCN
    gives a second to all stages but the first."""
    rigid, dk, both, dcn = (count_cost(on_meta(f"resnet50{suffix}")) for suffix in ("", "_dk", "_dcn_dk", "_dcn"))
    kernels = [(7 * width**2, count, pixels**2) for width, count, pixels in STAGES]
    offsets = [(9 * 18 * width, count, pixels**2) for width, count, pixels in STAGES]

    def macs(parts):
        return sum(each * count * positions for each, count, positions in parts)

    def params(parts, biases=0):
        return sum((each + biases) * count for each, count, _ in parts)

    assert dk.macs - rigid.macs == macs([*kernels, *offsets])
    assert dk.params - rigid.params == params(kernels) + params(offsets, 18)
    for more, less in ((dcn, rigid), (both, dk)):
        assert more.macs - less.macs == macs(offsets[1:])
        assert more.params - less.params == params(offsets[1:], 18)
    once = [(4 * 9 * width, count, pixels**2) for width, count, pixels in STAGES]
    assert [each.sampling_macs for each in (rigid, dk, both, dcn)] == [
        *(0, macs(once), macs(once) + macs(once[1:]), macs(once[1:]))
    ]


def test_what_local_pointwise_kernels_add():
    """On ResNet-50-DW: to each 1x1 convolution in a block 3 more samples of the scope, and 2 outputs of an offset
    generator. Bottlenecks are twice as wide as ResNet-50's; the first of a stage reads what the stage before left."""
    added, params, channels, before = 0, 0, 64, 56
    for width, count, pixels in STAGES:
        for block in range(count):
            convs = [(channels, 2 * width, pixels if block else before), (2 * width, 4 * width, pixels)]
            added += sum((3 * rows * columns + 2 * rows) * side**2 for rows, columns, side in convs)
            params += sum(3 * rows * columns + 2 * rows + 2 for rows, columns, _ in convs)
            channels = 4 * width
        before = pixels
    local, none = (count_cost(on_meta(f"resnet50dw_dk{suffix}")) for suffix in ("_lpw", ""))
    assert (local.macs - none.macs, local.params - none.params) == (added, params)


def test_sampling_is_apart():
    rigid, deformed = (on_meta(name) for name in ("test_resnetdw", "test_resnetdw_dk"))
    assert count_cost(rigid, (3, 64, 64)).sampling_macs == 0
    positions = [(16, 16 * 16), (32, 8 * 8), (64, 4 * 4), (128, 2 * 2)]  # (width, Hout Wout) of every stage
    assert count_cost(deformed, (3, 64, 64)).sampling_macs == sum(4 * 9 * c * p for c, p in positions)


class _Runs(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))
        self.function = function

    def forward(self, x):
        return self.function(x * self.weight.view(-1, 1, 1))


@torch.library.custom_op("dk_bench_test::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


unknown.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    "function, name",
    [
        (unknown, "dk_bench_test.unknown"),
        (lambda x: torch.cdist(x, x), "aten._cdist_forward"),
        (lambda x: torch.addr(x[0, 0], x[0, 0, 0], x[0, 0, 0].clone()[:8]), "aten.addr"),
    ],
    ids=["custom", "cdist", "addr"],
)
def test_operator_without_formula_is_an_error_that_names_it(function, name):
    with pytest.raises(NotImplementedError, match=name):
        count_cost(_Runs(function), (6, 8, 8))


def test_questions_cost_nothing():
    """Which instruction set there is is asked at the first convolution of few outputs, which may be while counting."""
    narrow_conv._has_wide_vectors.cache_clear()
    counted = count_cost(DeformKernel2d(4, 16, 16, 3, padding=1, groups=16), (16, 8, 8))
    assert counted.macs == (16 * 9 + 16 * 9 * 18) * 8 * 8


def test_attention_counts():
    """As two matrix products; on the CPU's fused operator, torch's own counter counts 0."""
    attend = _Runs(lambda x: nn.functional.scaled_dot_product_attention(x, x, x))
    assert cost(attend) == (2 * 6 * 9 * 9 * 8, 0)


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "test_maxvit", "regnety_002"])
def test_models_of_timm_count(name):
    model = on_meta(name)
    assert count_cost(model, model.pretrained_cfg["input_size"]).macs > 1e6


def test_model_is_left_as_it_was():
    model = timm.create_model("test_resnetdw_dcn_dk")
    model.layer2.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    first = count_cost(model, (3, 64, 64))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert count_cost(model, (3, 64, 64)) == first


def test_command_lists_models(capsys):
    assert main(["models", "--filter", "resnet50dw_dk_s9", "--input-size", "64"]) == 0
    shown = capsys.readouterr().out
    assert "resnet50dw_dk_s9" in shown and "25.450" in shown and "25.4 " in shown and "4.32" in shown
    assert main(["models", "--filter", "test_resnet*", "--csv", "--input-size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(",")[0] for line in lines[1:]} == set(TEST_MODELS) and lines[0].startswith("name,#P (M)")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--filter", "nothing"], "no model matches 'nothing'"),
        (["--input-size", "0"], "--input-size: expected at least 1, got 0"),
    ],
    ids=["filter", "size"],
)
def test_command_names_bad_input(arguments, message, capsys):
    assert main(["models", *arguments]) == 2
    assert message in capsys.readouterr().err
