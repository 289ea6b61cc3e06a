"""The depthwise convolution with a kernel for every image on CUDA: its kernels run by the emulator on the host, and,
where there is a GPU, by that; and what layers call there."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from emulation import emulated_function, load_emulated
from operator_cases import DTYPES, lay_out
from per_image_cases import GEOMETRY, MASKS, check_random_case, operands
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dk_bench import reference
from dk_bench.functional import loading
from dk_bench.nn import CondConv2d, GlobalDeformKernel2d

op, backward_op = torch.ops.dk_bench.depthwise_conv_per_image, torch.ops.dk_bench.depthwise_conv_per_image_backward
needs_gpu = pytest.mark.skipif(
    not (loading.HAS_CUDA and torch.cuda.is_available()), reason="needs a GPU and the operators"
)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    load_emulated("per_image", tmp_path_factory)
    return torch.ops.dk_bench_emulated_per_image


Emulated = emulated_function("dk_bench_emulated_per_image", 2)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("seed", range(112))
def test_random_case(seed):
    check_random_case(seed, Emulated.apply)


def larger(dtype, layout: str, channels: int, device: str = "cpu"):
    """Operands of 3x3 kernels, and the output's gradient: more positions than a block has threads."""
    generator = torch.Generator().manual_seed(channels)
    x, weight, grad = (
        torch.randn(2, channels, *size, dtype=torch.float64, generator=generator).to(device, dtype)
        for size in ((15, 18), (3, 3), (15, 18))
    )
    return lay_out(x, layout), weight, lay_out(grad, layout)


def check_larger(functions, dtype, channels: int, device: str = "cpu") -> None:
    """In channels_last, where channels are read as vectors, the same bits as elsewhere, but for the weight's gradient;
    that, and all else, as the reference in float64."""
    forward, backward = functions
    geometry, results = ((1, 1), (1, 1), (1, 1)), {}
    for layout in ("channels_last", "channel_slice", "cropped", "contiguous"):
        x, weight, grad = larger(dtype, layout, channels, device)
        results[layout] = [t.cpu() for t in (forward(x, weight, *geometry), *backward(grad, x, weight, *geometry))]
        for a, b in zip(results[layout][:2], results["channels_last"], strict=False):
            assert torch.equal(a, b), layout
    exact = [t.double().cpu() for t in (x, weight, grad)]
    expected, gradients = torch.func.vjp(
        lambda *t: reference.depthwise_conv_per_image(*t, stride=1, padding=1, dilation=1), *exact[:2]
    )
    bits = 16 * torch.finfo(dtype).eps
    for actual in results.values():
        for a, e in zip(actual, (expected, *gradients(exact[2])), strict=True):
            torch.testing.assert_close(a.double(), e, rtol=bits, atol=bits * e.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 40, 24])
def test_vectors_of_channels(emulated, channels, dtype):
    """As many lanes as vectors, several chunks of channels, and lanes that are left over."""
    check_larger((emulated.forward, emulated.backward), dtype, channels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_there_are_vectors(emulated, dtype):
    """Channels side by side, that vectors of 16 bytes divide, and so the steps between pixels; from 16 bytes on."""
    wide = 16 // dtype.itemsize
    x = torch.zeros(2, 3 * wide, 5, 6, dtype=dtype)
    last = x.to(memory_format=torch.channels_last)
    assert emulated.has_vectors(last) and emulated.has_vectors(last[:, wide:, 1:, 2:])
    assert not emulated.has_vectors(x) and not emulated.has_vectors(last[:, 1:])
    assert not emulated.has_vectors(last[:, 1 : wide + 1])  # of an address that is no multiple
    odd = torch.zeros(2, 2 * wide + 1, 5, 6, dtype=dtype).to(memory_format=torch.channels_last)
    assert not emulated.has_vectors(odd[:, :wide])  # of such steps


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_choice_of_gradients(emulated, layout):
    """What is left out is empty, and the rest keeps its bits."""
    given = operands(torch.float32, layout, channels=16)
    grad = torch.randn_like(emulated.forward(*given, *GEOMETRY.values()))
    full = emulated.backward(grad, *given, *GEOMETRY.values())
    assert full[0].stride() == given[0].stride() and full[1].is_contiguous()
    for mask in MASKS:
        part = emulated.backward(grad, *given, *GEOMETRY.values(), True, False, mask)
        for wanted, p, f in zip(mask, part, full, strict=True):
            assert torch.equal(p, f) if wanted else p.shape == (0,)


class Calls(TorchDispatchMode):
    """Counts what is called below autograd."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize(
    ("kind", "options", "kernel_size", "groups"),
    [
        (GlobalDeformKernel2d, {"scope": 4}, 3, 32),
        (CondConv2d, {"experts": 3}, 3, 32),
        (GlobalDeformKernel2d, {"scope": 4}, 1, 1),
        (CondConv2d, {"experts": 3}, 1, 1),
    ],
)
def test_what_layers_call_on_cuda(monkeypatch, kind, options, kernel_size, groups, library, layout):
    """Depthwise kernels of images are our operator where it is built, pointwise ones a batched product of matrices."""
    monkeypatch.setattr(loading, "_NO_CUDA", None if library else "not built")
    monkeypatch.setattr(loading, "CHOSEN", loading.COMPILED)
    with FakeTensorMode(), torch.no_grad():
        module = kind(
            in_channels=32,
            out_channels=32,
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            groups=groups,
            device="cuda",
            **options,
        )
        x = torch.empty(4, 32, 16, 16, device="cuda").to(memory_format=layout)
        with Calls() as calls:
            output = module(x)
    assert output.device.type == "cuda" and output.is_contiguous(memory_format=layout)
    depthwise = groups > 1
    assert calls.of[op] == (depthwise and library)
    assert calls.of[torch.ops.aten.convolution] == (depthwise and not library)
    assert calls.of[torch.ops.aten.bmm] >= (not depthwise)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_pointwise_kernels_are_batched_products(layout):
    """On any device."""
    x = torch.randn(4, 8, 6, 6).to(memory_format=layout).requires_grad_()
    with Calls() as calls:
        CondConv2d(3, 8, 5, 1)(x).sum().backward()
    assert calls.of[torch.ops.aten.bmm] == 3
    assert not calls.of[torch.ops.aten.convolution] and not calls.of[torch.ops.aten.convolution_backward]


@pytest.mark.cuda
@needs_gpu
def test_random_cases_on_a_gpu():
    for seed in range(400):
        check_random_case(seed, device="cuda")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_channels_on_a_gpu(dtype):
    def backward(*arguments):
        return backward_op(*arguments, False)

    for channels in (8, 40, 24, 512):
        check_larger((op, backward), dtype, channels, "cuda")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_every_time_on_a_gpu(layout):
    """And deterministic algorithms are not refused."""
    x, weight, grad = (t.requires_grad_() for t in larger(torch.bfloat16, layout, 40, "cuda"))
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(4):
            output = op(x, weight, (1, 1), (1, 1), (1, 1))
            results.append((output, *torch.autograd.grad(output, (x, weight), grad)))
    finally:
        torch.use_deterministic_algorithms(False)
    for result, i in itertools.product(results[1:], range(3)):
        assert torch.equal(result[i], results[0][i])


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layers_on_a_gpu_are_those_on_the_cpu(layout):
    module = GlobalDeformKernel2d(4, 32, 32, 3, 2, 1, groups=32)
    torch.nn.init.normal_(module.kernel_offset.weight)
    x = torch.randn(4, 32, 15, 16).to(memory_format=layout)
    grad = torch.randn(4, 32, 8, 8)
    results = []
    for device in ("cpu", "cuda"):
        there = x.to(device).requires_grad_()
        output = module.to(device)(there)
        gradients = torch.autograd.grad(output, (there, *module.parameters()), grad.to(device))
        results.append([t.cpu() for t in (output, *gradients)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
