"""Shifted test sets: each from beyond training in one factor, all else being the same scene."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dk_bench.config import load_config
from dk_bench.data import decoded
from dk_bench.data.procedural import SHAPES, Pose, ShapeImages, largest_scale
from dk_bench.data.shifts import SHIFTS, held_out_sets
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError

RANGES = ("data.procedural.scale=[0.16, 0.24]", "data.procedural.bend=0.5", "data.procedural.rotation=0.8")
SHIFTED = (
    "data.procedural.test_images=40",
    "data.size=48",
    "data.procedural.shifts={scale_up: 0.336, scale_down: 0.096, rotation: 3.141592653589793, bend: 0.8}",
)


def data(*overrides):
    return load_config(None, [*RANGES, *SHIFTED, *overrides]).data


def factors(pose):
    return {"scale": pose.scale / 48, "rotation": abs(pose.rotation), "bend": abs(pose.bend)}


def test_names():
    assert held_out_sets(load_config(None).data) == []
    assert held_out_sets(data()) == ["test", *(f"test/{shift}" for shift in SHIFTS)]
    assert held_out_sets(data("data.procedural.shifts.scale_up=null")) == ["test", *(f"test/{s}" for s in SHIFTS[1:])]
    assert held_out_sets(data("data.procedural.test_images=0")) == []
    files = ["data.source=timm", "data.train=a", "data.val=b"]
    assert held_out_sets(load_config(None, files).data) == []
    assert held_out_sets(load_config(None, [*files, "data.test=c"]).data) == ["test"]


@pytest.mark.parametrize(
    ("shift", "factor", "low", "high"),
    [
        ("scale_up", "scale", 0.24, 0.336),
        ("scale_down", "scale", 0.096, 0.16),
        ("rotation", "rotation", 0.8, math.pi),
        ("bend", "bend", 0.5, 0.8),
    ],
)
def test_one_factor_is_replaced_by_one_from_beyond_training(shift, factor, low, high):
    plain, shifted = open_images(data(), "test"), open_images(data(), f"test/{shift}")
    found = []
    for index in range(40):
        ours, theirs = shifted.pose(index), plain.pose(index)
        new, old = factors(ours), factors(theirs)
        found.append(new.pop(factor))
        was = old.pop(factor)
        assert new == pytest.approx(old) and ours.label == theirs.label
        assert was <= low + 1e-9 or shift == "scale_down" and was >= high - 1e-9
        assert math.copysign(1, getattr(ours, factor)) == math.copysign(1, getattr(theirs, factor))
        left, top, width, height = ours.box()
        assert min(left, top) >= -1e-9 and max(left + width, top + height) <= 48 + 1e-9
    assert low - 1e-9 <= min(found) and max(found) <= high + 1e-9 and np.ptp(found) > 0.8 * (high - low)


def test_colours_and_clutter_are_the_same_scene():
    """Where neither shape lies the images are equal to the last bit."""
    plain, shifted = open_images(data(), "test"), open_images(data(), "test/scale_down")
    for index in range(5):
        apart = np.ones((48, 48), bool)
        for images in (plain, shifted):
            left, top, width, height = images.pose(index).box()
            apart[max(0, int(top) - 1) : int(top + height) + 2, max(0, int(left) - 1) : int(left + width) + 2] = False
        assert apart.sum() > 200
        assert np.array_equal(np.asarray(plain[index][0])[apart], np.asarray(shifted[index][0])[apart])


def test_training_and_validation_do_not_depend_on_tests():
    plain = load_config(None, [*RANGES, "data.size=48"]).data
    train, val = (np.asarray(open_images(plain, split)[3][0]) for split in ("train", "val"))
    assert np.array_equal(train, open_images(data(), "train")[3][0])
    assert np.array_equal(val, open_images(data(), "val")[3][0])
    test = np.asarray(open_images(data(), "test")[3][0])
    assert not np.array_equal(test, train) and not np.array_equal(test, val)


def silhouette(label, rotation, mirrored=False):
    """A shape's mask at 64 x 64, its centre of mass in the middle, so that no placing of it is overlooked."""
    points = Pose(label, (0.0, 0.0), 20.0, rotation, 0.0).contour() * ((-1, 1) if mirrored else (1, 1))
    image = Image.new("1", (64, 64))
    ImageDraw.Draw(image).polygon([tuple(point) for point in points + 32], fill=1)
    mask = np.asarray(image)
    rows, columns = np.nonzero(mask)
    return np.roll(mask, (32 - round(rows.mean()), 32 - round(columns.mean())), (0, 1))


def test_no_shape_becomes_another_when_turned_or_mirrored():
    """Overlap over union of two classes stays well below what one class has with itself, turned by a whole turn."""
    fixed = [silhouette(label, 0.0) for label in range(len(SHAPES))]
    for label in range(len(SHAPES)):
        for turn in np.arange(0, 360, 5):
            for mirrored in (False, True):
                turned = silhouette(label, math.radians(turn), mirrored)
                for other in set(range(len(SHAPES))) - {label}:
                    overlap = (turned & fixed[other]).sum() / (turned | fixed[other]).sum()
                    assert overlap < 0.8, (SHAPES[label], SHAPES[other], turn)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "scale_up=0.2",
            "scale_up' is 0.2, expected null or a number above 0.24, the upper end of scale, and up to 0.35",
        ),
        ("scale_up=0.4", "scale_up' is 0.4, expected null or a number above 0.24"),
        (
            "scale_up=0.349",
            r"scale_up' is 0.349, by which shapes .*bent by up to 0.5, reach out of the image; .* up to 0.347",
        ),
        ("scale_down=0.2", "scale_down' is 0.2, expected null or a number above 0 and below 0.16"),
        ("scale_down=0", "scale_down' is 0.0, expected null or a number above 0 and below 0.16"),
        ("rotation=0.7", "rotation' is 0.7, expected null or a number above 0.8, the largest rotation in training"),
        ("rotation=4", "rotation' is 4.0, expected null or a number above 0.8, .* and up to pi"),
        ("bend=0.5", "bend' is 0.5, expected null or a number above 0.5, the largest bend in training, and up to 0.9"),
        ("bend=1", "bend' is 1.0, expected null or a number above 0.5"),
    ],
)
def test_shifts_that_lead_nowhere_are_named(override, message):
    config = data(f"data.procedural.shifts.{override}")
    with pytest.raises(UserError, match=message):
        open_images(config, f"test/{override.partition('=')[0]}")


def test_largest_scale_is_reached_and_not_passed():
    fits = largest_scale(0.5, 0.8)
    for size, within in ((fits, True), (1.02 * fits, False)):
        poses = (Pose(label, (0.0, 0.0), size, 0.0, bend) for label in range(len(SHAPES)) for bend in (-0.5, 0.5))
        assert (max(max(pose.box()[2:]) for pose in poses) <= 1 + 1e-9) is within


# Drawn once


def test_drawn_images_are_kept_in_a_folder_that_is_named(tmp_path, monkeypatch):
    config = data(f"data.cache={tmp_path}/kept")
    images = open_images(config, "test/bend")
    first = decoded.keep(images, config, once=True)
    assert first.where == decoded.FILE and len([*tmp_path.glob("kept/*.pixels")]) == 1
    monkeypatch.setattr(decoded, "_decode", None)  # nothing is drawn again but what tells the images apart
    again = decoded.keep(open_images(config, "test/bend"), config)
    for kept in (first, again):
        pixels, labels = kept.load(range(40))
        assert labels.tolist() == [index % 10 for index in range(40)]
        for index in range(40):
            assert np.array_equal(pixels[index][0].permute(1, 2, 0).numpy(), np.asarray(images[index][0]))


def test_images_of_other_settings_are_other_files(tmp_path):
    changes = [
        "size=32",
        "procedural.seed=1",
        "procedural.clutter=5",
        "procedural.classes=9",
        "procedural.bend=0.4",
        "procedural.test_images=50",
    ]
    keys = {decoded.content_key(open_images(data(f"data.{change}"), "test")) for change in [*changes, "size=48"]}
    keys |= {decoded.content_key(open_images(data(), split)) for split in ("train", "val", "test/rotation")}
    assert len(keys) == len(changes) + 4


def test_another_way_of_drawing_is_another_file(monkeypatch):
    images = ShapeImages("test", 20, size=16)
    key = decoded.content_key(images)
    monkeypatch.setattr("dk_bench.data.procedural.SUPERSAMPLING", 2)
    assert decoded.content_key(images, again=True) != key


def test_without_a_folder_drawn_images_are_kept_in_memory_or_not_at_all(tmp_path):
    config = data()
    assert decoded.keep(open_images(config, "val"), config, tmp_path).where == decoded.MEMORY
    assert decoded.keep(open_images(config, "test"), config, tmp_path, once=True).where == decoded.EVERY_TIME
    assert not [*tmp_path.iterdir()]
