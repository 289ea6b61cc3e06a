"""The faults of the paper's official release, one test each: none of them is here."""

from __future__ import annotations

import pytest
import torch

from dk_bench import functional
from dk_bench.nn import DeformKernelConv2d, GlobalDeformKernel2d


def operands(channels: int = 4, scope: tuple[int, int] = (4, 4), dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, channels, 6, 6), (2, 18, 6, 6), (channels, 1, *scope)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def test_local_backward_returns_every_gradient():
    """There: one gradient too few, so that local kernels cannot train."""
    tensors = operands()
    functional.local_deform_kernel(*tensors, kernel_size=3, padding=1).square().sum().backward()
    assert all(t.grad is not None and t.grad.shape == t.shape and t.grad.any() for t in tensors)


def test_deform_kernel_conv_uses_its_kernel_offsets():
    """There: the module of DK with DCN passes none."""
    torch.manual_seed(0)
    module = DeformKernelConv2d((4, 4), 4, 4, 3, 1, 1, groups=4)
    x = torch.randn(2, 4, 6, 6)
    module(x).square().sum().backward()
    untouched = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched
    x, kernel, weight = operands()
    data = torch.zeros_like(kernel)
    out, rigid = (functional.deform_kernel_conv(x, data, k, weight, kernel_size=3, padding=1) for k in (kernel, None))
    assert not torch.allclose(out, rigid)


@pytest.mark.parametrize("groups", [1, 4])
def test_global_kernel_takes_channels_last(groups):
    """There: an error."""
    torch.manual_seed(0)
    module = GlobalDeformKernel2d((4, 4), 4, 4, 3, 1, 1, groups=groups)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), module(x))


@pytest.mark.parametrize("scope", [(2, 6), (6, 2)])
def test_clip_has_its_own_bound_in_each_axis(scope):
    """There: the height's bound in both. Offsets far down and right end in the scope's last sample."""
    x, _, weight = operands(scope=scope)
    far = torch.full((2, 18, 6, 6), 100.0)
    out = functional.local_deform_kernel(x, far, weight, kernel_size=3, padding=1)
    ones = torch.ones(4, 1, 3, 3)
    expected = torch.nn.functional.conv2d(x, ones, padding=1, groups=4) * weight[:, :, -1, -1].view(1, -1, 1, 1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_on_the_cpu(dtype):
    """There: CUDA and float32 alone."""
    tensors = operands(dtype=dtype)
    out = functional.local_deform_kernel(*tensors, kernel_size=3, padding=1)
    out.sum().backward()
    assert {t.dtype for t in (out, *(t.grad for t in tensors))} == {dtype}


def test_errors_are_raised():
    """There: printed, and the call goes on; sizes that do not fit read memory that is not theirs."""
    x, offset, weight = operands()
    for bad in (offset[:, :9], offset[..., :3], offset[:1]):
        with pytest.raises(RuntimeError, match="kernel_offset: expected shape"):
            functional.local_deform_kernel(x, bad, weight, kernel_size=3, padding=1)
