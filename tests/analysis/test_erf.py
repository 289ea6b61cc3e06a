"""Effective receptive fields: known fields give back their numbers, units lie where the network puts them."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from dk_bench.analysis.erf.field import area, energy_radius, measure, replknet_sides, share_inside, sigma
from dk_bench.analysis.erf.gradient import unit_gradient
from dk_bench.analysis.erf.study import replknet, study
from dk_bench.analysis.erf.summary import profiles, summary
from dk_bench.analysis.pictures import Picture, open_pictures
from dk_bench.analysis.subjects import Subject
from dk_bench.cli import main
from dk_bench.nn import OffsetGenerator, RigidStart2d
from dk_bench.tables.statistics import Summary, summarize


def gaussian(side: int, width: float, centre: tuple[float, float]) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))


def gaussian_layer(width: float, size: int = 25) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, size, padding=size // 2, bias=False, dtype=torch.float64)
    kernel = torch.from_numpy(gaussian(size, width, (size // 2, size // 2)))
    layer.weight.data = (kernel / kernel.sum())[None, None]
    return layer


@pytest.mark.parametrize("widths", [[2.0], [1.5, 2.5], [1.0, 2.0, 2.0]])
def test_a_network_of_gaussian_kernels_gives_back_its_sigma(widths):
    network = nn.Sequential(*map(gaussian_layer, widths))
    image = torch.randn(1, 65, 65, dtype=torch.float64)
    gradient, centre = unit_gradient(network, image, layer=str(len(widths) - 1))
    assert centre == (32, 32)
    expected = math.sqrt(sum(width**2 for width in widths))
    assert sigma(gradient[0], centre) == pytest.approx(expected, rel=0.02)
    # The energy's is a Gaussian of sigma / sqrt(2): half of it within sigma * sqrt(ln 2), on pi ln 2 sigma^2 pixels.
    assert energy_radius(gradient[0], centre) == pytest.approx(expected * math.sqrt(math.log(2)), abs=0.5)
    assert area(gradient[0]) == pytest.approx(math.pi * math.log(2) * expected**2, rel=0.1)


def test_numbers_use_the_raw_gradient():
    """Neither the sign nor the size of a field changes them; its centre does."""
    field = gaussian(33, 3.0, (16, 16))
    plain = measure(field, (16, 16))
    other = measure(-1e-9 * field, (16, 16))
    assert (other.area, other.radius) == (plain.area, plain.radius)
    assert other.sigma == pytest.approx(plain.sigma)
    assert sigma(field, (12, 16)) == pytest.approx(math.sqrt(plain.sigma**2 + 4**2 / 2), rel=1e-3)


def test_share_inside_a_mask():
    field = np.zeros((4, 4))
    field[0, 0], field[3, 3] = 1.0, -2.0
    mask = np.zeros((4, 4), bool)
    mask[3] = True
    assert share_inside(field, mask) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"mask: expected the field's shape \(4, 4\), got \(3, 4\)"):
        share_inside(field, mask[:3])


@pytest.mark.parametrize("field", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.ones(3)])
def test_fields_that_have_no_numbers(field):
    with pytest.raises(ValueError, match="field: expected"):
        measure(field, (1, 1))


def test_replknet_sides_are_of_the_logarithm():
    field = np.zeros((11, 11))
    field[5, 5] = 9.0  # log10(9 + 1) = 1
    field[0, 0] = 99.0  # 2
    assert replknet_sides(field, (0.3, 0.5)) == {0.3: (3 / 11) ** 2, 0.5: 1.0}


@pytest.mark.parametrize(
    "name", ["test_resnetdw_dcn_dk", "resnet18", "mobilenetv2_100", "tf_mobilenetv3_small_minimal_100"]
)
def test_units_lie_where_the_network_puts_them(name):
    """Where all weights of a kernel are equal and all units active, a field is symmetric about its unit."""
    torch.manual_seed(0)
    model = timm.create_model(name).double()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, RigidStart2d)):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # zero at the end of ResNet's blocks
    image = 1e-3 * torch.rand(3, 416, 416, dtype=torch.float64)  # differs, so that max pooling takes any place
    gradient, centre = unit_gradient(model, image)
    weight = np.abs(gradient).sum(0)
    place = [float((axis * weight).sum() / weight.sum()) for axis in np.mgrid[:416, :416]]
    assert place == pytest.approx(centre, abs=1.0)  # even spreading would be 15.5 off, half a stride of 32
    assert centre == ((223, 223) if name.startswith("tf_") else (192, 192))  # TensorFlow pads below and right


@pytest.mark.parametrize("name", ["test_resnet_dcn_dk", "test_resnetdw_dk_lpw"])
def test_fields_are_derivatives_where_every_kernel_is_dense(name):
    """Against differences, in a direction of the image, with offsets that follow it and with offsets held."""
    torch.manual_seed(0)
    model = timm.create_model(name).double().eval()
    for module in model.modules():
        if isinstance(module, OffsetGenerator):
            nn.init.normal_(module.weight, std=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    image, direction = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def unit(moved: torch.Tensor) -> float:
        return model.forward_features(moved[None])[0, :, 0, 0].sum().item()

    with torch.no_grad():
        slope = (unit(image + 1e-6 * direction) - unit(image - 1e-6 * direction)) / 2e-6
    followed, held = (
        unit_gradient(model, image, position=(0, 0), through_offsets=through)[0] for through in (True, False)
    )
    assert float((followed * direction.numpy()).sum()) == pytest.approx(slope, rel=1e-4)
    assert np.abs(followed - held).max() > 1e-3 * np.abs(followed).max()


def test_position_in_pixels_takes_the_nearest_unit():
    network = nn.Sequential(*(nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(2)))
    image = torch.randn(1, 32, 32)
    assert unit_gradient(network, image, layer="1", position=(13.0, 30.9), in_pixels=True)[1] == (12, 28)
    assert unit_gradient(network, image, layer="1", position=(3, 7))[1] == (12, 28)
    assert unit_gradient(network, image, layer="1")[1] == (16, 16)
    with pytest.raises(ValueError, match="position: expected a place on the layer's map of 8 x 8, got"):
        unit_gradient(network, image, layer="1", position=(8, 0))


@pytest.mark.parametrize(("name", "side", "patch"), [("test_vit", 160, 16), ("swin_tiny_patch4_window7_224", 224, 4)])
def test_tokens_and_channels_last_are_maps(name, side, patch):
    """A patch's embedding is of its own pixels only; the last map, which is normalised, has a field all the same."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    image = torch.randn(3, side, side)
    # Swin normalises what its projection gives over the channels, whose sum is then rounding, or nothing at all.
    gradient, centre = unit_gradient(model, image, layer="patch_embed.proj", position=(2, 5))
    rows, columns = np.nonzero(np.abs(gradient).sum(0))
    corner = [2 * patch, 5 * patch]
    assert [rows.min(), columns.min()] == corner and [rows.max(), columns.max()] == [at + patch - 1 for at in corner]
    assert centre == tuple(at + (patch - 1) / 2 for at in corner)
    deep = "blocks.1" if name == "test_vit" else "layers.1"
    for layer in (None, deep):
        gradient, centre = unit_gradient(model, image, layer=layer)
        assert np.abs(gradient).max() > 1e-4  # rounding leaves less of a sum that is the same for all images
        assert all(abs(at - side / 2) <= 16 for at in centre)


def test_layers_that_have_no_map():
    model = timm.create_model("test_resnetdw")
    image = torch.randn(3, 32, 32)
    with pytest.raises(ValueError, match="layer: no module 'layer9'; some of .*layer1"):
        unit_gradient(model, image, layer="layer9")
    with pytest.raises(ValueError, match=r"layer: expected a module that gives \(N, C, h, w\), fc gives"):
        unit_gradient(model, image, layer="fc")
    with pytest.raises(ValueError, match=r"image: expected \(C, H, W\)"):
        unit_gradient(model, image[0])


def test_measuring_leaves_the_model_as_it_was():
    model = timm.create_model("test_resnetdw_dk").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unit_gradient(model, torch.randn(3, 64, 64), through_offsets=False)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Isotropic(nn.Module):
    """A blur: the same to all sides, so that its field turns with the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 13, padding=6, groups=3, bias=False)
        self.blur.weight.data = torch.from_numpy(gaussian(13, 2.0, (6, 6))).float().expand(3, 1, 13, 13).clone()

    def forward_features(self, x):
        return self.blur(x)

    forward = forward_features


def test_study_of_a_network_that_turns_with_the_picture():
    pictures = open_pictures("procedural", 48, 3)
    subject = Subject("blur", "blur", Isotropic(), 48, (0.5,) * 3, (0.5,) * 3, trained=False)
    found = study([subject], pictures)
    assert [(seen.picture, seen.kind) for seen in found[:3]] == [
        (pictures[0].name, kind) for kind in ("original", "rotated", "scaled")
    ]
    rotated = [seen.agreement for seen in found if seen.kind == "rotated"]
    scaled = [seen.agreement for seen in found if seen.kind == "scaled"]
    assert min(rotated) > 0.97 and max(scaled) < 0.97  # turns with it to within a pixel, and does not grow with it
    (line,) = summary(found)
    numbers = line.numbers
    assert (line.model, line.over, line.count) == ("blur", "pictures", 3)
    assert numbers["sigma"].mean == pytest.approx(2.0, rel=0.15)  # cut off by borders, and at three sigma
    plain = [seen for seen in found if seen.kind == "original"]
    shares = [share_inside(seen.absolute, p.mask) for seen, p in zip(plain, pictures, strict=True)]
    assert numbers["inside"] == summarize(shares)
    assert set(replknet(subject, pictures)) == {0.2, 0.3, 0.5, 0.99}


def test_summary_over_checkpoints_of_one_kind():
    """Each checkpoint counts once, by its mean over pictures."""
    pictures = open_pictures("procedural", 48, 2)
    names = ("blur (seed 0)", "blur (seed 1)")
    subjects = [Subject("blur", name, Isotropic(), 48, (0.5,) * 3, (0.5,) * 3, trained=True) for name in names]
    subjects[1].model.blur.weight.data[:] = 0
    subjects[1].model.blur.weight.data[..., 5:8, 5:8] = 1.0
    first, second, both = summary(study(subjects, pictures))
    assert (both.model, both.over, both.count) == ("blur", "checkpoints", 2)
    means = [first.numbers["sigma"].mean, second.numbers["sigma"].mean]
    assert both.numbers["sigma"] == summarize(means) and means[1] < 1 < means[0]


def test_summary_of_differences_by_seed():
    """In another order, and with a seed that the first kind has not."""
    pictures = open_pictures("procedural", 48, 2)
    names = ("blur (seed 0)", "blur (seed 1)", "box (seed 1)", "box (seed 0)", "box (seed 2)")
    subjects = [Subject(n[:-9], n, Isotropic(), 48, (0.5,) * 3, (0.5,) * 3, trained=True) for n in names]
    for width, subject in enumerate(subjects[1:], start=1):
        subject.model.blur.weight.data[:] = 0
        subject.model.blur.weight.data[..., 6 - width : 7 + width, 6 - width : 7 + width] = 1.0
    *_, difference = lines = summary(study(subjects, pictures))
    assert [line.over for line in lines] == ["pictures"] * 5 + ["checkpoints"] * 2 + ["seeds"]
    assert (difference.model, difference.count) == ("box - blur", 2)
    blur0, blur1, box1, box0, _ = [line.numbers["sigma"].mean for line in lines[:5]]
    assert difference.numbers["sigma"] == summarize([box1 - blur1, box0 - blur0])


def test_profiles_by_distance():
    """A Gaussian's profile is the Gaussian; a field whose sign differs has the same magnitudes."""
    side, width = 41, 3.0
    picture = Picture("grey", Image.new("RGB", (side, side)), (20.0, 20.0), None)
    names = ("blur (seed 0)", "blur (seed 1)")
    subjects = [Subject("blur", name, Isotropic(), side, (0.5,) * 3, (0.5,) * 3, trained=True) for name in names]
    kernel = torch.from_numpy(gaussian(13, width, (6, 6))).float()
    for subject, sign in zip(subjects, (1, -1), strict=True):
        subject.model.blur.weight.data = sign * kernel.expand(3, 1, 13, 13).clone()
    (one,) = profiles(study(subjects[:1], [picture]))
    assert (one.model, one.over, one.count) == ("blur", "pictures", 1)
    peak = 1 / float(kernel.sum())
    for distance in (0, 1, 4):  # rings are half a pixel wide to both sides
        found = one.parts["absolute"][distance]
        expected = peak * math.exp(-(distance**2) / (2 * width**2))
        assert found.half_width is None and found.mean == pytest.approx(expected, rel=0.05)
        assert one.parts["signed"][distance] == Summary(1, pytest.approx(found.mean))
    (both,) = profiles(study(subjects, [picture]))
    assert (both.over, both.count) == ("checkpoints", 2)
    assert both.parts["absolute"][1].mean == pytest.approx(one.parts["absolute"][1].mean, abs=1e-9)
    assert both.parts["absolute"][1].half_width == pytest.approx(0, abs=1e-9)
    assert both.parts["signed"][1].mean == pytest.approx(0, abs=1e-9) and both.parts["signed"][1].half_width > 0
    row = list(one.rows())[1]
    assert list(row.values())[:5] == ["blur", "pictures", 1, 1, one.parts["absolute"][1].mean]


def test_intervals():
    assert summarize([3.0]) == Summary(1, 3.0)
    found = summarize([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)  # t of two degrees of freedom


def test_command_writes_figures_and_their_numbers(tmp_path, capsys):
    arguments = ["erf", "test_resnetdw", "test_resnetdw_dk", "--count", "2", "--side", "48", "--layer", "layer2"]
    assert main([*arguments, "--replknet", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "test_resnetdw_dk (random weights): 20% in" in printed  # what RepLKNet's tool says
    for name in ("fields.png", "fields.pdf", "transforms.png", "transforms.pdf", "profile.png", "profile.pdf"):
        assert (tmp_path / name).stat().st_size > 5000
    with open(tmp_path / "fields.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 3 and {row["model"] for row in rows} == {
        "test_resnetdw (random weights)",
        "test_resnetdw_dk (random weights)",
    }
    row = rows[0]
    name = f"test_resnetdw_random_weights_-{row['picture']}-{row['kind']}.csv"
    signed = np.loadtxt(tmp_path / "maps" / name, delimiter=",", skiprows=1)
    assert signed.shape == (48, 48) and np.abs(signed).max() > 0
    assert float(row["sigma"]) > 0 and row["agreement"] == ""
    with open(tmp_path / "summary.csv", newline="") as stream:
        assert [(line["over"], line["count"]) for line in csv.DictReader(stream)] == [("pictures", "2")] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_model"], "no_such_model: neither a checkpoint's file nor a model of timm's"),
        (["dk_deformed"], "dk_deformed: neither a checkpoint's file nor a model of timm's"),
        (["test_resnetdw", "--images", "nowhere"], "--images nowhere: does not exist"),
        (["test_resnetdw", "--count", "0"], "--count: expected at least 1, got 0"),
        (
            ["test_resnetdw", "--side", "48", "--position", "3,48"],
            "--position 3,48: outside the image, which is 48 pix",
        ),
        (["test_resnetdw", "--side", "0"], "--side: expected at least 1, got 0"),
        (["test_resnetdw", "test_resnetdw"], "test_resnetdw (random weights): several models of that name"),
        (["test_resnetdw", "--layer", "fc"], "layer: expected a module that gives"),
        (["test_resnetdw", "test_resnet"], "the models were made for images of"),
    ],
)
def test_bad_input_of_the_command(arguments, message, capsys, tmp_path):
    assert main(["erf", *arguments, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("position", ["left", "nan,3", "3"])
def test_positions_that_are_none(position, capsys):
    with pytest.raises(SystemExit):
        main(["erf", "test_resnetdw", "--position", position])
    assert f"--position: expected Y,X in pixels, such as 120,80, got '{position}'" in capsys.readouterr().err
