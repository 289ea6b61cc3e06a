"""Receptive fields of dead units are counted, and the study goes on; figures say whose weights are random."""

import numpy as np
import pytest
import torch
from learned_cases import read_csv
from PIL import Image
from rich.console import Console
from torch import nn

from dk_bench.analysis.erf.gradient import unit_gradient
from dk_bench.analysis.erf.study import study
from dk_bench.analysis.erf.summary import profiles, summary
from dk_bench.analysis.erf.tables import ABOUT, document, write_study, write_summary
from dk_bench.analysis.pictures import Picture
from dk_bench.analysis.subjects import Subject, open_model
from dk_bench.cli import main
from dk_bench.tables.terminal import show

SIDE = 24


class Threshold(nn.Module):
    """A mean of 3 x 3 pixels that lets through what is above a level: dark pictures move nothing."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.mean = nn.Conv2d(3, 1, 3, padding=1)
        nn.init.constant_(self.mean.weight, 1 / 27)
        nn.init.constant_(self.mean.bias, -level)

    def forward_features(self, x):
        return self.mean(x).relu()

    forward = forward_features


def subject(name: str, level: float = 0.5, trained: bool = True) -> Subject:
    return Subject(name.partition(" (")[0], name, Threshold(level), SIDE, (0.0,) * 3, (1.0,) * 3, trained)


def picture(name: str, grey: int) -> Picture:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[8:16, 8:16] = True
    return Picture(name, Image.new("RGB", (SIDE, SIDE), (grey,) * 3), (11.5, 11.5), mask)


PICTURES = [picture("dark", 20), picture("bright", 250), picture("brighter", 255)]


def test_dead_units_are_counted_and_left_out():
    found = study([subject("net (seed 0)"), subject("net (seed 1)", level=0.0)], PICTURES)
    assert [seen.picture for seen in found if seen.dead] == ["dark"] * 3  # of the first; the second sees all
    dead = found[0]
    assert (dead.measures, dead.inside, dead.covered, dead.agreement, dead.absolute.any()) == (*[None] * 4, False)
    first, second, both = summary(found)
    assert (first.count, first.dead, first.units) == (2, 3, 9)
    assert (second.count, second.dead, second.units) == (3, 0, 9)
    assert (both.over, both.count, both.dead, both.units) == ("checkpoints", 2, 3, 18)
    assert first.numbers["area"].mean == second.numbers["area"].mean == 5  # of nine equal pixels, half of the energy
    assert np.isfinite([line.numbers["agreement_scaled"].half_width for line in (first, second, both)]).all()


def test_checkpoint_without_a_living_unit_stops_no_other(tmp_path, capsys):
    names = ("net (seed 0)", "net (seed 1)", "other (seed 0)", "other (seed 1)")
    found = study([subject(name, level) for name, level in zip(names, (2.0, 0.0, 0.0, 0.0), strict=True)], PICTURES)
    lines = summary(found)
    assert [(line.model, line.over, line.count, line.dead, line.units) for line in lines] == [
        ("net (seed 0)", "pictures", 0, 9, 9),
        ("net (seed 1)", "pictures", 3, 0, 9),
        ("other (seed 0)", "pictures", 3, 0, 9),
        ("other (seed 1)", "pictures", 3, 0, 9),
        ("other", "checkpoints", 2, 0, 18),
    ]
    assert lines[0].numbers == {} and [each.count for each in profiles(found)] == [3, 2]
    show(document(lines, dict.fromkeys(ABOUT), []), Console())
    printed = capsys.readouterr().out
    assert "│ 9 of 9     │" in printed and "dead units" in printed and "nan" not in printed
    write_study(found, PICTURES, tmp_path)
    write_summary(lines, dict.fromkeys(ABOUT), [], tmp_path)
    dead = [row for row in read_csv(tmp_path / "fields.csv") if row["dead"] == "True"]
    assert len(dead) == 9 and {row["sigma"] + row["inside"] + row["agreement"] for row in dead} == {""}
    table = read_csv(tmp_path / "summary.csv")
    assert [(row["dead"], row["units"], row["sigma"]) for row in table][:1] == [("9", "9", "")]
    assert "nan" not in "".join(path.read_text() for path in tmp_path.glob("*.csv"))
    caption = Image.open(tmp_path / "fields.png").info["Description"]
    assert caption.endswith(" Left out, as their gradient is zero, units: 9 of 9 of net (seed 0).")


def test_differences_are_of_the_numbers_that_both_have():
    """A kind whose pictures rotated are all dead has no agreement to compare."""
    found = study([subject(f"{kind} (seed {seed})", 0.0) for kind in ("a", "b") for seed in (0, 1)], PICTURES)
    kept = [seen for seen in found if seen.model != "b (seed 1)" or seen.kind == "original"]
    *_, difference = summary(kept)
    assert (difference.model, difference.count) == ("b - a", 2)
    assert "sigma" in difference.numbers and "agreement_rotated" not in difference.numbers


def test_all_dead_is_one_sentence():
    words = r"^layer mean: all 3 units on pictures as they are are dead, their gradient is zero everywhere"
    with pytest.raises(ValueError, match=words):
        model = subject("net")
        model.model.mean.weight.data[:] = 0
        study([model], PICTURES, layer="mean")


def test_all_dead_but_for_scaled_pictures_is_that_sentence():
    """There is nothing to say of a model's fields then, and no profile."""
    image = Image.new("RGB", (SIDE, SIDE))
    image.putpixel((12, 12), (255,) * 3)  # a ninth of what a unit sees, and more of it once it is scaled
    spot = Picture("spot", image, (12.0, 12.0), None)
    seen = study([subject("net", 0.2), subject("open", 0.1)], [spot])
    assert [each.dead for each in seen] == [True, True, False, False, False, False]
    with pytest.raises(ValueError, match=r"^layer \(the last map\): all 1 units on pictures as they are are dead"):
        study([subject("net", 0.2)], [spot])


def test_gradient_that_is_not_finite_is_named():
    model = subject("net", 0.0)
    model.model.mean.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="net on dark: the gradient is not finite"):
        study([model], PICTURES)


def test_layer_that_the_image_does_not_reach_is_dead():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return x + self.place(torch.ones_like(x[:, :1]))

    for frozen in (False, True):
        model = Constant().requires_grad_(not frozen)
        assert not unit_gradient(model, torch.rand(3, 8, 8), layer="place")[0].any()


def test_names_and_captions_say_that_weights_are_random(tmp_path, capsys):
    assert open_model("test_resnetdw", 32).name == open_model("test_resnetdw", 32).kind
    arguments = ["erf", "test_resnetdw", "--count", "1", "--side", "32", "--layer", "layer1", "--replknet"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "│ test_resnetdw (random weights) │" in printed and "│ 0 of 3     │" in printed
    for name in ("fields", "transforms", "profile"):
        caption = Image.open(tmp_path / f"{name}.png").info["Description"]
        assert caption.endswith(" Not trained: test_resnetdw (random weights).")
    for name in ("fields", "summary", "profile"):
        assert {row["model"] for row in read_csv(tmp_path / f"{name}.csv")} == {"test_resnetdw (random weights)"}
    figures = study([subject("net (seed 0)")], PICTURES[1:])
    write_study(figures, PICTURES[1:], tmp_path / "trained")
    assert "Not trained" not in Image.open(tmp_path / "trained" / "fields.png").info["Description"]


def test_of_several_checkpoints_the_first_is_drawn(tmp_path):
    names = ("net (seed 0)", "net (seed 1)", "other (seed 1)")
    write_study(study([subject(name, 0.0) for name in names], PICTURES[:1]), PICTURES[:1], tmp_path)
    drawn = {path.name.partition("-")[0] for path in (tmp_path / "maps").iterdir()}
    assert drawn == {"net_seed_0_", "other_seed_1_"}
    assert {row["model"] for row in read_csv(tmp_path / "fields.csv")} == set(names)
