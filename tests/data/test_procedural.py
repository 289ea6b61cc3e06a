"""The procedural images: a function of the seed, and true to their metadata."""

import math

import numpy as np
import pytest
from PIL import Image

from dk_bench.cli import main
from dk_bench.data.procedural import SHAPES, Pose, ShapeImages, draw, sheet


def pixels(images, index):
    return np.asarray(images[index][0])


def test_an_image_depends_on_seed_split_and_index_alone():
    images = ShapeImages("train", 20, size=32, seed=1)
    forward = [pixels(images, i) for i in range(20)]
    backward = [pixels(ShapeImages("train", 40, size=32, seed=1), i) for i in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    for other in (ShapeImages("train", 20, size=32, seed=2), ShapeImages("val", 20, size=32, seed=1)):
        assert not any(np.array_equal(a, pixels(other, i)) for i, a in enumerate(forward))


def test_pinned_image():
    """Guards the data set itself: committed results are worth nothing once its images change."""
    image, label = ShapeImages("train", 100, size=64)[42]
    assert (image.size, image.mode, label) == ((64, 64), "RGB", 2)
    pose = ShapeImages("train", 100, size=64).metadata(42)
    assert pose["class"] == "ring"
    assert [round(pose[k], 4) for k in ("scale", "rotation", "bend")] == [11.6527, 2.6705, -0.7662]
    mean = np.asarray(image).mean(axis=(0, 1))
    assert mean == pytest.approx([110.55, 101.81, 26.06], abs=1.5)  # room for other rounding at edges


def test_classes_are_balanced_and_poses_vary():
    images = ShapeImages("train", 200, classes=8)
    poses = [images.pose(i) for i in range(200)]
    assert images.classes == list(SHAPES[:8])
    assert np.bincount([p.label for p in poses]).tolist() == [25] * 8
    assert np.ptp([p.rotation for p in poses]) > 0.9 * 2 * math.pi
    assert np.ptp([p.bend for p in poses]) > 0.9 * 1.6
    scales = np.array([p.scale for p in poses]) / 64
    assert scales.min() >= 0.15 and scales.max() <= 0.34 and scales.max() / scales.min() > 2


def test_boxes_lie_inside_and_hold_what_is_drawn():
    images = ShapeImages("val", 60, size=48)
    for index in range(60):
        left, top, width, height = images.metadata(index)["box"]
        assert left >= 0 and top >= 0 and left + width <= 48 + 1e-9 and top + height <= 48 + 1e-9
        pose = images.pose(index)
        alone = np.asarray(draw([pose], 48, np.random.default_rng(0), clutter=0)).astype(int)
        ground = np.asarray(draw([], 48, np.random.default_rng(0), clutter=0)).astype(int)
        rows, columns = np.nonzero(np.abs(alone - ground).max(axis=2) > 40)
        assert columns.min() >= math.floor(left) - 1 and columns.max() <= math.ceil(left + width)
        assert rows.min() >= math.floor(top) - 1 and rows.max() <= math.ceil(top + height)
        assert len(rows) > 0.15 * width * height  # the thinnest shape still fills that much of its box


def test_bend_keeps_the_length_of_the_axis_and_curves_it():
    flat, bent = (Pose(3, (0.0, 0.0), 10.0, 0.0, bend).contour() for bend in (0.0, 0.8))
    on_axis = np.abs(flat[:, 1]) < 1e-9  # points of the cross on its own x axis lie on an arc when bent
    assert on_axis.sum() >= 2
    angle = 0.8 * flat[on_axis, 0] / 10
    arc = np.stack([np.sin(angle), 1 - np.cos(angle)], axis=1) * 10 / 0.8
    np.testing.assert_allclose(bent[on_axis], arc, atol=1e-9)


@pytest.mark.parametrize("label", range(len(SHAPES)))
def test_pose_moves_scales_and_rotates(label):
    base = Pose(label, (0.0, 0.0), 1.0, 0.0, 0.3).contour()
    moved = Pose(label, (5.0, 7.0), 2.0, math.pi / 2, 0.3).contour()
    np.testing.assert_allclose(moved, 2 * base @ np.array([[0, 1], [-1, 0]]) + [5, 7], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": 1}, "classes is 1"),
        ({"classes": 99}, "classes is 99"),
        ({"scale": (0.3, 0.5)}, "scale"),
        ({"scale": (0.3, 0.2)}, "scale"),
        ({"bend": 1.0}, "bend is 1.0"),
        ({"split": "dev"}, "'dev'"),
    ],
)
def test_settings_out_of_range_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        ShapeImages(**{"split": "train", "count": 4, **change})


def test_index_out_of_range():
    with pytest.raises(IndexError, match="image 4 of 4"):
        ShapeImages("train", 4)[4]


def test_sheet_has_a_column_for_every_class():
    images = ShapeImages("train", 20, size=16)
    page = sheet([images], rows=2)
    assert page.size == (4 + 10 * 20, 14 + 4 + 2 * 20)
    assert np.array_equal(np.asarray(page)[38:54, 24:40], pixels(images, 11))


def test_sheet_of_several_sets_has_the_same_scene_of_each_below_another():
    sets = [ShapeImages("test", 20, size=16, bend=bend) for bend in (0.0, 0.8)]
    page = np.asarray(sheet(sets, rows=2, names=["straight", "bent"]))
    assert page.shape == (14 + 4 + 4 * 20, 104 + 10 * 20, 3)
    for line, (images, index) in enumerate([(sets[0], 0), (sets[1], 0), (sets[0], 10), (sets[1], 10)]):
        top = 18 + 20 * line
        assert np.array_equal(page[top : top + 16, 104:120], pixels(images, index))
        assert page[top : top + 16, :100].min() < 255  # its name


def test_picture_command(tmp_path, capsys):
    out = tmp_path / "shapes.png"
    assert main(["picture", "--output", str(out), "--rows", "1"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    shapes = ["scale=[0.1, 0.2]", "test_images=20", "shifts.bend=0.9"]
    tested = [f"data.procedural.{setting}" for setting in shapes]
    assert main(["picture", *tested, "--split=test", "--rows=1", "--output", str(out)]) == 0
    with Image.open(out) as page:
        assert page.height == 14 + 4 + 2 * 68 and page.text["Description"].startswith("Test images")
    assert main(["picture", "--split=test", "--output", str(out)]) == 2
    assert "no test images: expected data.procedural.test_images=N" in capsys.readouterr().err
    assert main(["picture", "--output", str(tmp_path / "no" / "x.png")]) == 2
    assert "x.png" in capsys.readouterr().err
