"""What modules take and keep: images without a batch, wrong inputs, dtypes; and vmap over them, also of gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from module_cases import randomise
from torch import nn
from torch.func import functional_call, grad, vmap

from dk_bench.nn import (
    CondConv2d,
    DeformConv2d,
    DeformKernel2d,
    DeformKernelConv2d,
    DeformRoIPool,
    GlobalDeformKernel2d,
    GlobalOffset,
    LocalMask,
    LocalOffset,
    RoIOffsetHead,
)

PER_IMAGE = [
    (GlobalDeformKernel2d, {"scope": 4, "groups": 6}),
    (GlobalDeformKernel2d, {"scope": 4, "groups": 2, "stride": 2}),
    (GlobalDeformKernel2d, {"scope": 2, "kernel_size": 1, "padding": 0}),
    (CondConv2d, {"experts": 3, "groups": 6, "stride": 2}),
    (CondConv2d, {"experts": 2}),
    (CondConv2d, {"experts": 2, "kernel_size": 1, "padding": 0}),
]
PER_POSITION = [
    (DeformKernel2d, {"scope": 4, "groups": 6}),
    (DeformKernelConv2d, {"scope": 5, "groups": 6}),
    (DeformKernel2d, {"scope": 4, "groups": 2, "stride": 2}),
    (DeformKernel2d, {"scope": 2, "kernel_size": 1, "padding": 0}),
    (DeformKernelConv2d, {"scope": 4}),
    (DeformConv2d, {"groups": 6}),
    (DeformConv2d, {"deform_groups": 2, "modulated": True}),
]
MODULES = PER_IMAGE + PER_POSITION


def ids(value):
    return getattr(value, "__name__", None) or "-".join(f"{k}{v}" for k, v in value.items())


def moved(kind: type[nn.Module], options: dict, **changes) -> nn.Module:
    """A module of 6 channels whose offsets, factors and routing depend on the image."""
    torch.manual_seed(0)
    return randomise(kind(**{"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1} | options | changes))


@pytest.mark.parametrize("kind, options", MODULES, ids=ids)
def test_one_image_without_a_batch(kind, options):
    """As torch.nn.Conv2d: (C, H, W) in, (C, H, W) out."""
    module = moved(kind, options)
    x = torch.randn(6, 9, 8, requires_grad=True)
    out = module(x)
    torch.testing.assert_close(out, module(x[None])[0])
    assert out.dim() == 3
    out.sum().backward()
    assert x.grad.shape == x.shape and x.grad.any()


def test_generators_without_a_batch():
    for generator, shape in (
        (LocalOffset(6, (3, 3), (1, 1), (1, 1), (1, 1)), (18, 9, 8)),
        (LocalMask(6, (3, 3), (1, 1), (1, 1), (1, 1)), (9, 9, 8)),
        (GlobalOffset(6, (3, 3)), (18,)),
    ):
        assert generator(torch.randn(6, 9, 8)).shape == shape
        assert generator(torch.randn(2, 6, 9, 8)).shape == (2, *shape)


SHAPES = [(9, 8), (1, 2, 6, 9, 8), (2, 5, 9, 8), (7, 9, 8), (2, 6, 0, 8), (2, 6, 9, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind, options", MODULES, ids=ids)
def test_wrong_shape(kind, options, shape):
    text = rf"input: {kind.__name__} expected \(N, 6, H, W\) or \(C, H, W\) = \(6, H, W\) .* got shape \({shape[0]}, "
    with pytest.raises(RuntimeError, match=text):
        moved(kind, options)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("kind, options", MODULES, ids=ids)
def test_wrong_dtype(kind, options, dtype):
    text = f"input: {kind.__name__} expected dtype torch.float32 as its weight has, got {dtype}"
    with pytest.raises(RuntimeError, match=text):
        moved(kind, options)(torch.zeros(2, 6, 9, 8, dtype=dtype))


@pytest.mark.parametrize("kind, options", MODULES, ids=ids)
def test_autocast_makes_16_bit_and_float32_equal_and_nothing_else(kind, options):
    module = moved(kind, options)
    x = torch.randn(2, 6, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x.bfloat16()).float(), module(x).float(), atol=0.1, rtol=0.1)
        with pytest.raises(RuntimeError, match="got torch.float64"):
            module(x.double())
        module.double()(x.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wrong_input_of_a_generator(shape):
    with pytest.raises(RuntimeError, match=r"input: GlobalOffset expected \(N, 6, H, W\)"):
        GlobalOffset(6, (3, 3))(torch.zeros(shape))


def test_wrong_channels_of_boxes():
    rois = torch.tensor([[0.0, 0, 0, 4, 4]])
    with pytest.raises(RuntimeError, match=r"pooled: RoIOffsetHead expected \(R, 6, 2, 2\), got shape \(1, 5, 2, 2\)"):
        DeformRoIPool(6, 2, hidden=4)(torch.randn(1, 5, 8, 8), rois)
    with pytest.raises(RuntimeError, match=r"pooled: RoIOffsetHead expected \(R, 6, 2, 2\), got shape \(6, 2, 2\)"):
        RoIOffsetHead(6, 2, hidden=4)(torch.randn(6, 2, 2))


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("experts", [2, 8])
def test_experts_of_a_float64_kernel_add_up_in_float64(experts, kernel_size):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel_size).double()
    x = torch.randn(2, 6, 9, 8).double()
    module = CondConv2d.from_rigid(conv, experts=experts)
    torch.testing.assert_close(module(x), conv(x), atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(module.weight.sum(0) / 2, conv.weight.flatten(), atol=1e-15, rtol=1e-14)


def check_vmap(kind, options):
    module = moved(kind, options)
    for format in (torch.contiguous_format, torch.channels_last):
        batches = [torch.randn(2, 6, 9, 8).to(memory_format=format) for _ in range(3)]
        expected = torch.stack([module(batch) for batch in batches])
        torch.testing.assert_close(vmap(module)(torch.stack(batches)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind, options", PER_IMAGE, ids=ids)
def test_vmap(kind, options):
    check_vmap(kind, options)


def test_vmap_of_what_differs_at_every_position():
    for kind, options in PER_POSITION:
        check_vmap(kind, options)


@pytest.mark.parametrize("kind, options", MODULES, ids=ids)
def test_gradients_of_every_sample(kind, options):
    """vmap(grad) over the parameters, as differential privacy uses it, with samples as images or as batches of one."""
    module = moved(kind, options)
    parameters = dict(module.named_parameters())

    def loss(parameters, sample):
        return functional_call(module, parameters, (sample,)).square().mean()

    for samples in (torch.randn(3, 6, 9, 8), torch.randn(3, 1, 6, 9, 8)):
        found = vmap(grad(loss), (None, 0))(parameters, samples)
        for index, sample in enumerate(samples):
            expected = torch.autograd.grad(loss(parameters, sample), list(parameters.values()))
            for key, value in zip(parameters, expected, strict=True):
                torch.testing.assert_close(found[key][index], value, atol=1e-5, rtol=1e-4)


def test_modules_from_the_meta_device():
    """The checks of inputs look at no values: shapes alone are computed there; then memory and a start are given."""
    for (kind, options), dtype in itertools.product(MODULES, (torch.float32, torch.float64, torch.bfloat16)):
        options = {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1, **options, "dtype": dtype}
        module = kind(**options, device="meta")
        out = module(torch.empty(2, 6, 9, 8, device="meta", dtype=dtype))
        assert out.is_meta and out.dtype == dtype
        module.to_empty(device="cpu")
        for tensor in module.parameters():
            nn.init.constant_(tensor, torch.nan)
        new = kind(**options)
        for one in (module, new):
            torch.manual_seed(0)
            one.reset_parameters()
        for key, value in new.state_dict().items():
            assert torch.equal(module.state_dict()[key], value) and value.dtype == dtype, (kind, key)


def test_functions_in_symbolic_tracing():
    """A user's own module that calls them traces like ours."""
    from dk_bench.functional import deform_kernel_conv, deform_roi_pool, local_deform_kernel, sample_kernel

    torch.manual_seed(0)
    weight, rois = torch.randn(2, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4], [1.0, 1, 0, 3, 4]])

    def forward(x, offset):
        kernel = sample_kernel(weight, offset.mean((2, 3)), kernel_size=3)
        moved = deform_kernel_conv(x, offset, offset, weight, kernel_size=3, padding=1)
        out = local_deform_kernel(moved, offset, weight, kernel_size=3, padding=1)
        return kernel, deform_roi_pool(out, rois, output_size=2)

    x, offset = torch.randn(2, 2, 5, 6), torch.randn(2, 18, 5, 6)
    for found, expected in zip(torch.fx.symbolic_trace(forward)(x, offset), forward(x, offset), strict=True):
        torch.testing.assert_close(found, expected)


def test_channels_last_slices_keep_their_format():
    """A part of a channels_last image is neither contiguous nor wholly channels_last; nn.Conv2d keeps the order."""
    module = moved(*PER_IMAGE[0])
    x = torch.randn(2, 6, 9, 16).to(memory_format=torch.channels_last)[..., ::2]
    assert module(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(x), module(x.contiguous()), atol=1e-5, rtol=1e-5)
