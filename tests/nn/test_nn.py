"""Modules: each starts as the rigid convolution, learns, and takes what nn.Conv2d takes."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from module_cases import check_dtypes, randomise
from torch import nn

from dk_bench import reference
from dk_bench.nn import (
    CondConv2d,
    DeformConv2d,
    DeformKernel2d,
    DeformKernelConv2d,
    GlobalDeformKernel2d,
    LocalDeformKernel2d,
    OffsetGenerator,
    cond_conv,
    deform_conv,
    offset_parameter_names,
)

KINDS = [
    (DeformKernel2d, {"scope": 4}),
    (DeformKernelConv2d, {"scope": 4}),
    (GlobalDeformKernel2d, {"scope": 4}),
    (DeformConv2d, {}),
    (CondConv2d, {"experts": 3}),
]
GEOMETRY = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "padding": 1},
]


def ids(value):
    return value.__name__ if isinstance(value, type) else None


pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
@pytest.mark.parametrize("groups, kind, options", [(g, *m) for g in (6, 1, 2) for m in KINDS], ids=ids)
def test_starts_as_the_rigid_convolution(groups, kind, options, geometry):
    conv = nn.Conv2d(6, 6, groups=groups, **geometry)
    module = kind.from_rigid(conv, **options)
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 9, 8).to(memory_format=format)
        torch.testing.assert_close(module(x), conv(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind, options", KINDS, ids=ids)
def test_new_module_starts_at_the_scale_of_a_new_convolution(kind, options):
    module = kind(in_channels=64, out_channels=64, kernel_size=3, padding=1, groups=64, bias=False, **options)
    impulse = torch.zeros(1, 64, 5, 5)
    impulse[:, :, 2, 2] = 1
    kernel = module(impulse)[0, :, 1:4, 1:4]
    assert kernel.abs().max() <= 1 / 3 + 1e-5  # nn.Conv2d's uniform bound, 1 / sqrt(fan in)
    assert 0.15 < kernel.std() < 0.23  # of a uniform distribution: bound / sqrt(3) = 0.19


def test_constructor_of_the_official_release():
    module = DeformKernel2d((4, 4), 64, 64, 3, 1, 1, groups=64)
    assert module.weight.shape == (64, 1, 4, 4)
    assert module.kernel_offset.weight.shape == (18, 64, 3, 3)
    assert module(torch.randn(1, 64, 5, 5)).shape == (1, 64, 5, 5)
    assert LocalDeformKernel2d is DeformKernel2d
    assert DeformKernel2d((2, 2), 64, 32, 1).weight.shape == (32, 64, 2, 2)
    assert GlobalDeformKernel2d((4, 4), 64, 32, 3, 1, 1, groups=32).kernel_offset.weight.shape == (18, 64)


def test_deform_kernel_conv_learns_its_kernel_offsets():
    """In the official release DK+DCN gets no kernel offset, so that its deformable kernel is never learnt."""
    module = DeformKernelConv2d((4, 4), 4, 4, 3, 1, 1, groups=4)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    x, target = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    for _ in range(2):
        optimiser.zero_grad()
        F.mse_loss(module(x), target).backward()
        optimiser.step()
    assert module.kernel_offset is not module.data_offset
    for generator in (module.kernel_offset, module.data_offset):
        assert generator.weight.abs().max() > 1e-5 and generator.bias.abs().max() > 1e-5
    with_both = module(x)
    module.kernel_offset.reset_parameters()
    assert (module(x) - with_both).abs().max() > 1e-6


@pytest.mark.parametrize("kernel_size, groups", [(3, 6), (3, 2), (1, 1)])
def test_global_kernel_on_channels_last(kernel_size, groups):
    """The official release fails here. The output has the input's format and values."""
    module = randomise(GlobalDeformKernel2d(4, 6, 6, kernel_size, 1, kernel_size // 2, groups=groups))
    x = torch.randn(3, 6, 7, 5)
    out = module(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    torch.testing.assert_close(out, module(x), atol=1e-5, rtol=1e-5)
    assert module(x).is_contiguous()


@pytest.mark.parametrize("kernel_size, stride, groups", [(3, 1, 6), (3, 2, 1), (1, 1, 1), (1, 2, 1), (1, 1, 2)])
@pytest.mark.parametrize("kind, options", [(GlobalDeformKernel2d, {"scope": 4}), (CondConv2d, {"experts": 3})], ids=ids)
def test_every_image_has_its_own_kernel(kind, options, kernel_size, stride, groups):
    module = randomise(
        kind(in_channels=6, out_channels=6, kernel_size=kernel_size, stride=stride, groups=groups, **options)
    )
    x = torch.randn(3, 6, 7, 5)
    pooled = x.mean((2, 3))
    if kind is CondConv2d:
        route = torch.sigmoid(F.linear(pooled, module.routing.weight, module.routing.bias))
        experts = module.weight.unflatten(1, (6, 6 // groups, kernel_size, kernel_size))
        kernels = torch.einsum("ne,eoikl->noikl", route, experts)
    else:
        offset = F.linear(pooled, module.kernel_offset.weight, module.kernel_offset.bias)
        kernels = reference.sample_kernel(module.weight, offset, kernel_size=kernel_size)
    assert (kernels[0] - kernels[1]).abs().max() > 1e-3
    expected = torch.cat([F.conv2d(x[n : n + 1], kernels[n], module.bias, stride, groups=groups) for n in range(3)])
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "kernel_size, out_channels, groups", [(3, 6, 6), (3, 4, 1), (3, 4, 2), (1, 4, 1), ((1, 2), 6, 3)]
)
@pytest.mark.parametrize("kind", [DeformKernel2d, DeformKernelConv2d])
def test_local_modules_compute_the_reference(kind, kernel_size, out_channels, groups):
    geometry = {"kernel_size": kernel_size, "stride": 2, "padding": 1}
    module = randomise(kind(4, 6, out_channels, groups=groups, **geometry))
    x = torch.randn(2, 6, 8, 7)
    data_offset = module.data_offset(x) if kind is DeformKernelConv2d else None
    expected = reference.dense_deform_kernel(
        x, module.kernel_offset(x), module.weight, data_offset=data_offset, **geometry
    )
    torch.testing.assert_close(module(x), expected + module.bias.view(-1, 1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size, stride, images", [((1, 1), 1, 2), ((2, 2), 1, 3), ((4, 3), 2, 3), ((2, 2), 1, 0)])
def test_experts_of_few_positions_mix_their_outputs(size, stride, images, memory_format, monkeypatch):
    """The same function, to rounding, as mixed kernels; and the same derivatives."""
    module = randomise(CondConv2d(4, 6, 5, 1, stride)).double()
    x = torch.randn(images, 6, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    results, calls = [], []
    mix = cond_conv._mix_outputs
    monkeypatch.setattr(cond_conv, "_mix_outputs", lambda *given: calls.append(1) or mix(*given))
    for few in (16, 0):
        monkeypatch.setattr(cond_conv, "_FEW", few)
        output = module(x)
        assert output.is_contiguous(memory_format=memory_format) or not images
        gradients = torch.autograd.grad(output.sin().sum(), [x, *module.parameters()])
        results.append([output, *gradients])
    assert len(calls) == 1
    torch.testing.assert_close(*results)


def test_deform_conv_depthwise_agrees_with_torchvision():
    module = randomise(DeformConv2d(6, 6, 3, 2, 1, groups=6))
    x = torch.randn(2, 6, 9, 8)
    geometry = module.stride, module.padding, module.dilation
    dense = deform_conv._dense(x, module.data_offset(x), None, module.weight, module.bias, *geometry)
    torch.testing.assert_close(module(x), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups, kind, options", [(g, *m) for g in (6, 1) for m in KINDS], ids=ids)
def test_empty_batch(groups, kind, options):
    module = kind(in_channels=6, out_channels=6, kernel_size=3, stride=2, padding=1, groups=groups, **options)
    x = torch.randn(0, 6, 9, 8, requires_grad=True)
    out = module(x)
    assert out.shape == (0, 6, 5, 4)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert module.weight.grad.eq(0).all()


@pytest.mark.parametrize("groups, kind, options", [(g, *m) for g in (6, 1) for m in KINDS], ids=ids)
@pytest.mark.parametrize("mode", ["autocast", "bfloat16", "float64"])
def test_dtypes(mode, groups, kind, options):
    module = randomise(kind(in_channels=6, out_channels=6, kernel_size=3, padding=1, groups=groups, **options), 0.05)
    check_dtypes(mode, module, torch.randn(2, 6, 9, 8))


@pytest.mark.parametrize("kind, options", KINDS[:4], ids=ids)
def test_offsets_have_the_dtype_of_the_computation(kind, options):
    module = kind(in_channels=6, out_channels=6, kernel_size=3, padding=1, groups=6, **options)
    x = torch.randn(2, 6, 9, 8)
    generators = [part for part in module.modules() if isinstance(part, OffsetGenerator)]
    for generator in generators:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert generator(x).dtype == torch.bfloat16
        assert generator.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        assert generator.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", [GlobalDeformKernel2d, DeformKernel2d, DeformKernelConv2d])
def test_pointwise_scope_starts_unequal(kind):
    """At minimum norm alone all samples of a 1x1 kernel's scope would be equal, and so would their gradients."""
    module = kind.from_rigid(nn.Conv2d(8, 8, 1), scope=2)
    samples = module.weight.detach().flatten(2)
    assert (samples - samples[..., :1]).abs().mean() > 0.1 * samples.abs().mean()
    module(torch.randn(2, 8, 4, 4)).square().sum().backward()
    assert module.kernel_offset.weight.grad.abs().max() > 1e-3


def test_experts_start_unequal():
    module = CondConv2d.from_rigid(nn.Conv2d(8, 8, 3), experts=4)
    assert (module.weight[0] - module.weight[1]).abs().mean() > 0.1 * module.weight.abs().mean()
    module(torch.randn(2, 8, 4, 4)).square().sum().backward()
    grad = module.routing.bias.grad
    assert (grad - grad.mean()).abs().max() > 1e-3  # the experts are told apart from the first step on


def test_clip_can_be_left_out():
    torch.manual_seed(1)
    clipped = DeformKernel2d(3, 4, 4, 3, padding=1, groups=4)
    free = copy.deepcopy(clipped)
    free.clip = False
    for module in (clipped, free):
        nn.init.constant_(module.kernel_offset.bias, 9.0)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(free(x), free.bias.view(1, -1, 1, 1).expand(1, 4, 5, 5))  # all taps outside the scope
    assert (clipped(x) - free(x)).abs().max() > 1e-3


@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize("scope", [4, 5])
@pytest.mark.parametrize("kind", [DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d])
def test_spread_grid_starts_as_the_rigid_convolution_and_learns(kind, scope, groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=groups)
    module = kind.from_rigid(conv, scope=scope, grid="spread")
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(module(x), conv(x), rtol=1e-4, atol=1e-5)
    assert module.kernel_offset.bias.detach().view(9, 2)[0].tolist() == [-(scope - 3) / 2] * 2
    module(x).square().sum().backward()
    assert (module.kernel_offset.bias.grad != 0).all()  # also of the taps on the scope's edge


def test_offset_parameter_names():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), DeformKernelConv2d(4, 4, 4, 3, groups=4), GlobalDeformKernel2d(2, 4, 4, 1)
    )
    expected = {
        f"{name}.{key}"
        for name in ("1.data_offset", "1.kernel_offset", "2.kernel_offset")
        for key in ("weight", "bias")
    }
    assert offset_parameter_names(model) == expected
    assert offset_parameter_names(copy.deepcopy(model)) == expected
    assert offset_parameter_names(model[1].kernel_offset) == {"weight", "bias"}
    assert expected <= {name for name, _ in model.named_parameters()}
    model.load_state_dict(copy.deepcopy(model).state_dict())
    assert offset_parameter_names(model) == expected
    compiled = torch.compile(model, backend="eager")
    assert offset_parameter_names(compiled) == {f"_orig_mod.{name}" for name in expected}
    assert offset_parameter_names(nn.Conv2d(3, 4, 1)) == set()


BAD = [
    (DeformKernel2d, {"groups": 4}, ValueError, "groups: expected a divisor of in_channels = 6"),
    (
        DeformKernelConv2d,
        {"groups": 1, "scope": (4, 2)},
        ValueError,
        r"scope: expected at least kernel_size = \(3, 3\)",
    ),
    (DeformKernel2d, {"scope": 2}, ValueError, r"scope: expected at least kernel_size = \(3, 3\), got \(2, 2\)"),
    (DeformKernel2d, {"scope": 0}, ValueError, "scope: expected values of at least 1, got 0"),
    (DeformKernel2d, {"scope": 4.0}, TypeError, "scope: expected an int or a pair of ints, got 4.0"),
    (GlobalDeformKernel2d, {"groups": 4}, ValueError, "groups: expected a divisor of in_channels = 6"),
    (GlobalDeformKernel2d, {"in_channels": 0}, ValueError, "in_channels: expected an int of at least 1, got 0"),
    (DeformConv2d, {"stride": 0}, ValueError, "stride: expected values of at least 1, got 0"),
    (DeformConv2d, {"padding": (-1, 0)}, ValueError, r"padding: expected values of at least 0, got \(-1, 0\)"),
    (CondConv2d, {"dilation": 0}, ValueError, "dilation: expected values of at least 1"),
    (CondConv2d, {"kernel_size": "3"}, TypeError, "kernel_size: expected an int or a pair of ints, got '3'"),
    (CondConv2d, {"expert": 2}, TypeError, r"CondConv2d.__init__\(\) got an unexpected keyword argument 'expert'"),
    (CondConv2d, {"experts": 1}, ValueError, "experts: expected an int of at least 2, got 1"),
]


@pytest.mark.parametrize("kind, change, error, message", BAD, ids=str)
def test_bad_arguments(kind, change, error, message):
    arguments = {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6, **dict(KINDS)[kind], **change}
    with pytest.raises(error, match=message):
        kind(**arguments)


def test_from_rigid_names_what_it_cannot_take():
    from timm.layers import Conv2dSame

    with pytest.raises(ValueError, match="got Conv2dSame"):
        DeformKernel2d.from_rigid(Conv2dSame(4, 4, 3, groups=4), scope=4)
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        DeformKernel2d.from_rigid(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4), scope=4)
    with pytest.raises(ValueError, match="padding='same'"):
        CondConv2d.from_rigid(nn.Conv2d(4, 4, 3, padding="same"), experts=2)


def test_from_rigid_keeps_device_dtype_mode_and_frozen_weights():
    conv = nn.Conv2d(4, 4, 3, groups=4, dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    module = DeformKernel2d.from_rigid(conv, scope=4)
    assert module.weight.dtype == torch.float64 and not module.training
    assert not module.weight.requires_grad and module.bias.requires_grad and module.kernel_offset.weight.requires_grad
    assert DeformKernel2d.from_rigid(nn.Conv2d(4, 4, 3, groups=4, device="meta"), scope=4).weight.is_meta


def test_constructors_show_and_take_a_convolutions_arguments():
    """By place too, in the order that ``inspect.signature`` shows, where a module's own may stand first or last."""
    shared = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"]
    for kind, first, last in (
        (DeformKernel2d, ["scope"], ["clip", "grid", "device", "dtype"]),
        (CondConv2d, ["experts"], ["device", "dtype"]),
        (DeformConv2d, [], ["device", "dtype", "deform_groups", "modulated"]),
    ):
        assert list(inspect.signature(kind).parameters) == [*first, *shared, *last]
    module = DeformConv2d(8, 4, (3, 1), 2, 1, 1, 2, False, None, torch.float64, 4, True)
    assert (module.kernel_size, module.stride, module.padding, module.groups) == ((3, 1), (2, 2), (1, 1), 2)
    assert module.bias is None and module.weight.dtype == torch.float64
    assert module.deform_groups == 4 and module.modulated
