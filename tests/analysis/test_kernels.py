"""Where taps go: planted offsets give exact taps, kernels and shares, and the command from end to end."""

import numpy as np
import pytest
import torch
from learned_cases import checkpoint, read_csv
from PIL import Image
from torch import nn

from dk_bench.analysis.learned import load
from dk_bench.analysis.taps.study import offsets_at, offsets_over
from dk_bench.cli import main
from dk_bench.nn import DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d

GRID = [(y, x) for y in range(3) for x in range(3)]


def plant(generator: nn.Module, dy: float, dx: float) -> None:
    with torch.no_grad():
        generator.bias.view(-1, 2).copy_(torch.tensor([dy, dx]))


@pytest.mark.parametrize("kind", [DeformKernel2d, GlobalDeformKernel2d])
def test_taps_in_the_scope(kind):
    """Taps rest at 0.5, 1.5, 2.5 of a scope of 4. Half a sample down they sit on rows 1 to 3; 0.75 to the right the
    last column leaves the scope."""
    conv = kind((4, 4), 2, 2, 3, 1, 1, groups=2)
    plant(conv.kernel_offset, 0.5, 0.75)
    model, image = nn.Sequential(conv), torch.rand(2, 6, 8)
    (layer,) = offsets_at(model, image, (0.5, 0.99))
    assert (layer.name, layer.unit, layer.input_size, layer.data) == ("0", (3, 7), (6, 8), None)
    np.testing.assert_array_equal(layer.kernel.before, np.array(GRID) + 0.5)
    np.testing.assert_array_equal(layer.kernel.after, np.array(GRID) + [1.0, 1.25])
    assert layer.kernel.outside.tolist() == [x == 2 for _, x in GRID]
    np.testing.assert_array_equal(layer.resting, np.array(GRID) + [2, 6])
    weight = conv.weight[:, 0].detach().double().numpy()
    between = 0.75 * weight[:, 1:, 1:3] + 0.25 * weight[:, 1:, 2:4]
    expected = np.concatenate([between, weight[:, 1:, 3:]], axis=2)  # the third is clipped to the last column
    np.testing.assert_allclose(layer.sampled, expected, rtol=1e-5)
    np.testing.assert_array_equal(layer.stored, weight)
    (found,) = offsets_over(model, [image, torch.rand(2, 5, 5)])
    assert (found.outside, found.outside_before) == (pytest.approx(1 / 3), 0.0)
    positions = 6 * 8 + 5 * 5 if kind is DeformKernel2d else 2
    assert found.values.shape == (9, 2, positions)
    np.testing.assert_array_equal(found.values, np.broadcast_to([[0.5], [0.75]], found.values.shape))


def test_kernels_of_pairs_of_channels():
    """All pairs of a dense kernel are sampled at the same taps: a sample down and to the left of the centred ones."""
    conv = DeformKernel2d((5, 5), 4, 6, 3, 1, 1, groups=2)
    plant(conv.kernel_offset, 1.0, -1.0)
    (layer,) = offsets_at(nn.Sequential(conv), torch.rand(4, 5, 5), (0.5, 0.5))
    np.testing.assert_array_equal(layer.kernel.after, np.array(GRID) + [2, 0])
    weight = conv.weight.detach().double().numpy().reshape(12, 5, 5)
    np.testing.assert_array_equal(layer.stored, weight)
    np.testing.assert_array_equal(layer.sampled, weight[:, 2:5, :3])
    assert [layer.pair(channel) for channel in (0, 1, 7, 11)] == [(0, 0), (0, 1), (3, 1), (5, 1)]


def test_the_one_tap_of_a_1x1_kernel_moves_in_its_scope():
    conv = DeformKernel2d((2, 2), 3, 2, 1, 2)
    plant(conv.kernel_offset, 0.25, 0.75)
    model, image = nn.Sequential(conv), torch.rand(3, 5, 7)
    (layer,) = offsets_at(model, image, (0.5, 0.5))
    np.testing.assert_array_equal(layer.kernel.before, [[0.5, 0.5]])
    np.testing.assert_array_equal(layer.kernel.after, [[0.75, 1.25]])
    assert layer.kernel.outside.tolist() == [True] and layer.data is None
    np.testing.assert_array_equal(layer.resting, [2 * np.array(layer.unit)])
    weight = conv.weight.detach().double().numpy().reshape(6, 2, 2)
    between = 0.25 * weight[:, :1, 1:] + 0.75 * weight[:, 1:, 1:]  # clipped to the last column
    np.testing.assert_allclose(layer.sampled, between, rtol=1e-5)
    (found,) = offsets_over(model, [image])
    assert found.values.shape == (1, 2, 3 * 4) and found.outside == 1.0


def test_taps_that_start_spread_start_at_the_edge_and_are_not_clipped_there():
    conv = DeformKernel2d((5, 5), 2, 2, 3, 1, 1, groups=2, grid="spread")
    (layer,) = offsets_at(nn.Sequential(conv), torch.rand(2, 4, 4), (0.5, 0.5))
    np.testing.assert_array_equal(layer.kernel.before, 2.0 * np.array(GRID))
    np.testing.assert_array_equal(layer.kernel.after, layer.kernel.before)
    assert not layer.kernel.outside.any()


def test_taps_on_the_data():
    """Against a count by hand, at stride 2; both kinds of offsets in one layer are told apart."""
    conv = DeformKernelConv2d((4, 4), 2, 2, 3, 2, 1, groups=2)
    plant(conv.data_offset, -0.5, 2.0)
    model, image = nn.Sequential(conv), torch.rand(2, 6, 7)
    (layer,) = offsets_at(model, image, (0.0, 1.0))
    assert layer.unit == (0, 3)
    (taps,) = layer.data
    np.testing.assert_array_equal(taps.before, np.array(GRID) + [-1, 5])
    np.testing.assert_array_equal(taps.after, np.array(GRID) + [-1.5, 7.0])
    kernel, data = offsets_over(model, [image])
    assert (kernel.outside, kernel.source.kind, data.source.kind) == (0.0, "kernel offsets", "data offsets")
    for dy, dx, share in ((-0.5, 2.0, data.outside), (0.0, 0.0, data.outside_before)):
        inside = sum(
            0 <= 2 * row - 1 + i + dy <= 5 and 0 <= 2 * column - 1 + j + dx <= 6
            for row in range(3)
            for column in range(4)
            for i, j in GRID
        )
        assert share == pytest.approx(1 - inside / (12 * 9))


@pytest.mark.parametrize("name", ["test_resnetdw_dk", "test_resnetdw_dcn_dk"])
def test_rigid_taps_lie_about_the_position(tmp_path, name):
    """The taps at rest of the unit that is taken are centred on its place in the image, within half a step of it."""
    model, image = load(checkpoint(tmp_path / "last.ckpt", name)).model, torch.rand(3, 128, 128)
    layers = offsets_at(model, image, (60.5 / 128, 71.5 / 128))
    assert len(layers) == 4
    for layer in layers:
        middle = layer.resting.mean(0)
        place = [first + at * stride for at, (first, stride) in zip(middle, layer.lattice, strict=True)]
        step = 128 / layer.input_size[0] * (2 if layer.name != "layer1.0.conv2" else 1)
        assert np.abs(np.array(place) - [60, 71]).max() <= step / 2
        # convolutions of 3x3 with stride 2 and padding 1 lead down from the image's upper left corner
        assert layer.lattice == ((0.0, 128 / layer.input_size[0]),) * 2


def test_groups_of_channels_have_offsets_of_their_own():
    conv = DeformConv2d(4, 6, 3, 1, 0, deform_groups=2)
    with torch.no_grad():
        conv.data_offset.bias[18:] = 100
    model, image = nn.Sequential(conv), torch.rand(4, 5, 5)
    (layer,) = offsets_at(model, image, (0.5, 0.5))
    assert [taps.outside.all() for taps in layer.data] == [False, True]
    assert layer.kernel is None and layer.sampled.shape == (24, 3, 3)
    (found,) = offsets_over(model, [image])
    assert (found.outside, found.outside_before) == (0.5, 0.0)


# The command


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, size in (("a", (40, 60, 3)), ("b", (50, 50, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in "ab"]


@pytest.mark.parametrize(
    "name, kinds, layers",
    [
        ("dw_dcn", {"data offsets"}, 3),
        ("dw_dk_lpw", {"kernel offsets"}, 8),  # four of 3x3 kernels and four of 1x1
        ("_dcn_dk", {"kernel offsets", "data offsets"}, 4),
    ],
)
def test_from_end_to_end(tmp_path, photos, capsys, name, kinds, layers):
    path = checkpoint(tmp_path / "last.ckpt", f"test_resnet{name}")
    out = tmp_path / "out"
    assert main(["kernels", str(path), "--image", *photos, "--position", "10,59.5", "--output", str(out)]) == 0
    assert "% of taps outside" in capsys.readouterr().out
    for figure in ("taps", "offsets"):
        assert Image.open(out / f"{figure}.png").size[0] > 500
        assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    taps = read_csv(out / "taps.csv")
    assert {row["kind"] for row in taps} == kinds and len({row["layer"] for row in taps}) == layers
    model = load(path).model
    for row in taps:
        kind = row["kind"].replace(" offsets", "_offset")
        bias = getattr(model.get_submodule(row["layer"]), kind).bias.view(-1, 2)[int(row["tap"])].tolist()
        moved = [float(row[f"after {axis}"]) - float(row[f"before {axis}"]) for axis in "yx"]
        assert moved == pytest.approx(bias, abs=1e-5)
    shares = {(row["layer"], row["kind"]): float(row["share"]) for row in read_csv(out / "outside.csv")}
    for layer, kind in shares:
        outside = [int(row["outside"]) for row in taps if (row["layer"], row["kind"]) == (layer, kind)]
        if kind == "kernel offsets" and outside:  # the same at every position, the offsets being planted
            assert shares[layer, kind] == pytest.approx(np.mean(outside), abs=1e-6)
    assert {row["axis"] for row in read_csv(out / "offsets.csv")} == {"dy", "dx", "length"}
    kernels = read_csv(out / "kernels.csv")
    assert {row["what"] for row in kernels} == {"stored", "sampled"}
    for row in kernels:
        weight = model.get_submodule(row["layer"]).weight
        if row["what"] == "stored" and row["input"]:
            place = [int(row[part]) for part in ("channel", "input", "row", "column")]
            assert float(row["weight"]) == pytest.approx(weight[tuple(place)].item(), abs=1e-6)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("", [], "test_resnetdw is rigid: nothing is deformable in it"),
        ("_scc", [], "test_resnetdw_scc has experts but no taps that move"),
        ("_dk", ["--position", "40,3"], "--position 40,3: outside the image, which is 40 pixels high and 60 wide"),
        ("_dk", ["--layer", "conv1"], "--layer conv1: no taps move there, expected one of layer1.0.conv2, layer2"),
        ("_dk", ["--size", "0"], "--size: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_named(tmp_path, photos, capsys, name, arguments, message):
    path = checkpoint(tmp_path / "last.ckpt", f"test_resnetdw{name}")
    assert main(["kernels", str(path), "--image", photos[0], *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_named(tmp_path, photos, capsys):
    path = str(checkpoint(tmp_path / "last.ckpt", "test_resnetdw_dk"))
    for command, named in (
        (["nowhere.ckpt", "--image", photos[0]], "nowhere.ckpt"),
        ([path, "--image", "nowhere.png"], "image nowhere.png cannot be read"),
        ([path, "--image", photos[0], path], f"image {path} cannot be read"),
    ):
        assert main(["kernels", *command, "--output", str(tmp_path / "out")]) == 2
        assert named in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["kernels", path, "--image", photos[0], "--position=-1,3"])
    assert "expected Y,X in pixels" in capsys.readouterr().err
