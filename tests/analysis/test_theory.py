"""The paper's section 3 as identities: a unit's field by autograd is the sum over paths of the products of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from field_by_paths import Layer, field, split
from torch import nn

from dk_bench.analysis.erf.gradient import unit_gradient
from dk_bench.nn import DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d
from dk_bench.nn.offsets import OffsetGenerator

CHANNELS = 2
SIZE = (8, 7)
TAPS = list(np.ndindex(3, 3))


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


def as_layers(network: nn.Sequential, image: torch.Tensor, channel: int) -> tuple[list[Layer], list[tuple[int, int]]]:
    seen, sizes = observe(network, image)
    convolutions = [layer for layer in network if not isinstance(layer, nn.ReLU)]
    return [
        Layer(
            weight=layer.weight[channel, 0].detach().numpy(),
            kernel_size=(3, 3),
            stride=layer.stride[0],
            padding=1,
            kernel_offset=found["kernel_offset"],
            data_offset=found["data_offset"],
            active=None if found["active"] is None else found["active"][channel],
        )
        for layer, found in zip(convolutions, seen, strict=True)
    ], sizes


def by_paths(network: nn.Sequential, image: torch.Tensor, channel: int, unit: tuple[int, int]) -> np.ndarray:
    return field(*as_layers(network, image, channel), unit)


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


# The field split at one layer, by its taps. What autograd is asked for knows nothing of paths: the layer is run as a
# plain sum over its taps, each of which reads its own places by torch's own grid_sample, and all taps but one are left
# out. The layers' offsets are those of the whole network.


class OneLayer(nn.Module):
    """A convolution of the network on one channel, with offsets held, as a sum over ``taps``."""

    def __init__(self, layer: Layer, taps: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layer, self.taps = layer, taps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, (height, width) = self.layer, x.shape[2:]
        rows, columns = ((side + 2 * layer.padding - 3) // layer.stride + 1 for side in (height, width))
        cells = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).double()
        still = torch.zeros(3, 3, 2, rows, columns, dtype=torch.float64)
        by_data, by_kernel = (
            still if each is None else torch.as_tensor(each) for each in (layer.data_offset, layer.kernel_offset)
        )
        scope = torch.as_tensor(layer.weight)
        total = 0.0
        for tap in self.taps:
            k = torch.tensor(tap, dtype=torch.float64)[:, None, None]
            read = sampled(x[0, 0], cells * layer.stride - layer.padding + k + by_data[tap])
            in_scope = k + (scope.shape[0] - 3) / 2 + by_kernel[tap]
            total = total + sampled(scope, in_scope.clamp(0, scope.shape[0] - 1)) * read
        return total[None, None]


def sampled(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(h, w): a map (H, W) at places (2, h, w), by bilinear interpolation, zero outside."""
    last = torch.tensor(values.shape, dtype=torch.float64)[:, None, None] - 1
    grid = (2 * places / last - 1).flip(0).permute(1, 2, 0)  # (x, y), the first sample at -1 and the last at 1
    return nn.functional.grid_sample(values[None, None], grid[None], align_corners=True)[0, 0]


def by_autograd(layers: list[Layer], unit: tuple[int, int], at: int, taps: list[tuple[int, int]]) -> np.ndarray:
    """The field of the unit of the network in which layer ``at`` has only these taps."""
    image = torch.zeros(1, 1, *SIZE, dtype=torch.float64, requires_grad=True)
    network = nn.Sequential(*(OneLayer(layer, taps if n == at else TAPS) for n, layer in enumerate(layers)))
    (gradient,) = torch.autograd.grad(network(image)[0, 0][unit], image)
    return gradient[0, 0].numpy()


@pytest.mark.parametrize("kind", ["rigid", "dcn", "dk", "dcn_dk"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_field_splits_at_a_layer_by_its_taps(kind, at):
    """In three layers, of which that one is of the kind and its neighbours are of others."""
    kinds = ["dk", "dcn", "rigid"]
    kinds[at] = kind
    network = make_network(kinds, [1, 2, 1], seed=at)
    image = torch.randn(CHANNELS, *SIZE, dtype=torch.float64)
    unit = (2, 1)
    layers, sizes = as_layers(network, image, channel=1)
    gradient, _ = unit_gradient(network, image, layer="2", position=unit, through_offsets=False)
    one_by_one = {tap: by_autograd(layers, unit, at, [tap]) for tap in TAPS}
    np.testing.assert_allclose(sum(one_by_one.values()), gradient[1], rtol=0, atol=1e-10)
    for tap, part in split(layers, sizes, unit, at).items():
        np.testing.assert_allclose(part, one_by_one[tap], rtol=0, atol=1e-10)
    assert np.abs(gradient[1]).max() > 1e-3


def rigid_stack() -> list[Layer]:
    rng = np.random.default_rng(0)
    return [Layer(rng.normal(size=(3, 3)), (3, 3), padding=1) for _ in range(3)]


def shifted(field: np.ndarray, down: float, right: float) -> np.ndarray:
    """A field moved as a whole, by bilinear interpolation; what it leaves is zero."""
    places = np.stack(np.mgrid[: field.shape[0], : field.shape[1]]) - np.array([down, right])[:, None, None]
    return sampled(torch.as_tensor(field), torch.as_tensor(places)).numpy()


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("move", [(1.0, 0.0), (-1.0, 1.0), (0.25, -0.5)])
def test_what_a_tap_contributes_moves_with_its_place(at, move):
    """A tap's data offset moves its part of the field and leaves the others; a kernel offset moves none."""
    layers, sizes, unit, moving = rigid_stack(), [(15, 15)] * 3, (7, 7), (0, 2)
    offset = np.zeros((3, 3, 2, 15, 15))
    offset[moving] = np.array(move)[:, None, None]
    rest = split(layers, sizes, unit, at)
    layer = layers[at]
    layers[at] = replace(layer, data_offset=offset)
    for tap, part in split(layers, sizes, unit, at).items():
        expected = shifted(rest[tap], *move) if tap == moving else rest[tap]
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-10)
    assert np.abs(rest[moving]).max() > 1e-3
    layers[at] = replace(layer, kernel_offset=np.clip(offset, -0.5, 0.5))  # the scope is 3x3: the tap stays in it
    for tap, part in split(layers, sizes, unit, at).items():
        factor = layers[at]._weight(tap, unit) / layer.weight[tap]
        np.testing.assert_allclose(part, factor * rest[tap], rtol=0, atol=1e-10)
