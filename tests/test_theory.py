"""The paper's section 3 as identities: a unit's field by autograd is the sum over paths of the products of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dk_bench.analysis.erf import unit_gradient
from dk_bench.analysis.theory import Layer, field
from dk_bench.nn import DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d
from dk_bench.nn.offsets import OffsetGenerator

CHANNELS = 2
SIZE = (8, 7)




def make_layer(kind: str, stride: int) -> nn.Module:
    geometry = dict(kernel_size=3, stride=stride, padding=1, groups=CHANNELS, bias=False, dtype=torch.float64)
    if kind == "rigid":
        return nn.Conv2d(CHANNELS, CHANNELS, **geometry)
    if kind == "dcn":
        return DeformConv2d(CHANNELS, CHANNELS, **geometry)
    module = {"dk": DeformKernel2d, "gdk": GlobalDeformKernel2d, "dcn_dk": DeformKernelConv2d}[kind]
    return module(4, CHANNELS, CHANNELS, **geometry)


def make_network(kinds: list[str], strides: list[int], seed: int, rectified: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [make_layer(kind, stride) for kind, stride in zip(kinds, strides, strict=True)]
    for module in nn.ModuleList(layers).modules():
        if isinstance(module, OffsetGenerator):
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.bias, std=0.4)
    return nn.Sequential(*(part for layer in layers for part in ((layer, nn.ReLU()) if rectified else (layer,))))


def observe(network: nn.Sequential, image: torch.Tensor) -> tuple[list[dict], list[tuple[int, int]]]:
    """What each convolution's offsets were, whether its units were active, and the sizes of what it read."""
    seen, sizes, x = [], [], image[None]
    for layer in network:
        if isinstance(layer, nn.ReLU):
            seen[-1]["active"] = (x > 0)[0].numpy()
            x = layer(x)
            continue
        sizes.append(tuple(x.shape[2:]))
        found: dict = {"active": None}
        for name in ("kernel_offset", "data_offset"):
            generator = getattr(layer, name, None)
            offset = None if generator is None else generator(x)[0].detach()
            found[name] = offset
        x = layer(x)
        for name in ("kernel_offset", "data_offset"):
            if found[name] is not None:
                offset = found[name].view(3, 3, 2, *found[name].shape[1:])
                if offset.dim() == 3:  # global: the same everywhere
                    offset = offset[..., None, None].expand(3, 3, 2, *x.shape[2:])
                found[name] = offset.numpy()
        seen.append(found)
    return seen, sizes


def by_paths(network: nn.Sequential, image: torch.Tensor, channel: int, unit: tuple[int, int]) -> np.ndarray:
    seen, sizes = observe(network, image)
    convolutions = [layer for layer in network if not isinstance(layer, nn.ReLU)]
    layers = [
        Layer(
            weight=layer.weight[channel, 0].detach().numpy(), kernel_size=(3, 3), stride=layer.stride[0], padding=1,
            kernel_offset=found["kernel_offset"], data_offset=found["data_offset"],
            active=None if found["active"] is None else found["active"][channel],
        )
        for layer, found in zip(convolutions, seen, strict=True)
    ]
    return field(layers, sizes, unit)


def last(network: nn.Sequential) -> str:
    return str(len(network) - 1)


@pytest.mark.parametrize("kind", ["rigid", "dcn", "gdk", "dk", "dcn_dk"])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_the_field_is_the_sum_over_paths(kind, rectified, strides):
    """A stack of one kind; two layers of 9 taps, 36 steps each where places move."""
    for seed in range(3):
        network = make_network([kind] * 2, list(strides), seed, rectified)
        image = torch.randn(CHANNELS, *SIZE, dtype=torch.float64)
        unit = (2, 1)
        gradient, _ = unit_gradient(network, image, layer=last(network), position=unit, through_offsets=False)
        for channel in range(CHANNELS):  # channels do not mix but in the offsets, which are held
            expected = by_paths(network, image, channel, unit)
            np.testing.assert_allclose(gradient[channel], expected, rtol=0, atol=1e-10)
        assert rectified or np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("kinds", [["rigid", "dk", "dcn"], ["dcn_dk", "rigid", "dk"], ["gdk", "dk", "dk"]])
def test_three_layers_of_several_kinds(kinds):
    network = make_network(kinds, [1, 2, 1], seed=7)
    image = torch.randn(CHANNELS, *SIZE, dtype=torch.float64)
    gradient, _ = unit_gradient(network, image, layer="2", position=(1, 2), through_offsets=False)
    np.testing.assert_allclose(gradient[0], by_paths(network, image, 0, (1, 2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["rigid", "dcn", "dk", "dcn_dk"])
def test_a_linear_unit_is_its_field_applied_to_the_image(kind):
    network = make_network([kind] * 2, [1, 1], seed=1)
    image = torch.randn(CHANNELS, *SIZE, dtype=torch.float64)
    output = network(image[None])[0, :, 4, 3].tolist()
    fields = [by_paths(network, image, channel, (4, 3)) for channel in range(CHANNELS)]
    applied = [float((seen * image[channel].numpy()).sum()) for channel, seen in enumerate(fields)]
    np.testing.assert_allclose(applied, output, rtol=0, atol=1e-10)


def test_deformable_kernels_leave_the_places_alone():
    """Data offsets widen what a unit can see; kernel offsets change the weights inside it."""
    image = torch.randn(CHANNELS, *SIZE, dtype=torch.float64)
    seen = {kind: by_paths(make_network([kind], [1], seed=3), image, 0, (4, 3)) != 0 for kind in ("rigid", "dk", "dcn")}
    window = np.zeros(SIZE, bool)
    window[3:6, 2:5] = True
    assert (seen["rigid"] == window).all() and (seen["dk"] == window).all()
    assert (seen["dcn"] & ~window).any()


def test_offsets_pass_gradients_unless_they_are_held():
    network = make_network(["dk"], [1], seed=0)
    image = torch.randn(CHANNELS, *SIZE, dtype=torch.float64)
    held, _ = unit_gradient(network, image, layer="0", position=(4, 3), through_offsets=False)
    free, _ = unit_gradient(network, image, layer="0", position=(4, 3))
    assert np.abs(free - held).max() > 1e-3
    again, _ = unit_gradient(network, image, layer="0", position=(4, 3))  # the hooks are gone
    assert (again == free).all()
