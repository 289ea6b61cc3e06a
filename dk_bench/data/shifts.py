"""Test sets of a run: one apart from its other images and, of procedural ones, sets with a factor beyond training's.

Image ``i`` of every procedural test set is the same scene with that factor replaced, so that a model's figures on two
of them are paired. All ten shapes stay what they are under any rotation; ring, star and cross look the same again
after less than a right angle, so that a rotation from beyond 0.8 shows nothing new of them.
"""

import math
from typing import Any

from dk_bench.config import DataConfig, ProceduralConfig
from dk_bench.data.procedural import BEND_LIMIT, MAX_SCALE, largest_scale
from dk_bench.errors import UserError

TEST = "test"
SHIFTS = ("scale_up", "scale_down", "rotation", "bend")


def held_out_sets(config: DataConfig) -> list[str]:
    """Names what a run is tested on, if anything: ``test``, and ``test/SHIFT`` of procedural images."""
    if config.source == "timm":
        return [TEST] if config.test is not None else []
    if config.source == "synthetic":
        return []
    shapes = config.procedural
    shifted = [f"{TEST}/{shift}" for shift in SHIFTS if getattr(shapes.shifts, shift) is not None]
    return [TEST, *shifted] if shapes.test_images else []


def ranges(shapes: ProceduralConfig, shift: str = "") -> dict[str, Any]:
    """Returns scale, bend and rotation of images as `dk_bench.data.procedural.ShapeImages` takes them: those of
    training but for ``shift``, one of `SHIFTS` or empty."""
    (small, large), bend, turn = shapes.scale, shapes.bend, shapes.rotation
    within = {"scale": (small, large), "bend": bend, "rotation": turn}
    if not shift:
        return within
    to = getattr(shapes.shifts, shift)
    beyond = {"scale_up": (large, to), "scale_down": (to, small), "bend": (bend, to), "rotation": (turn, to)}
    return {**within, shift.partition("_")[0]: beyond[shift]}


def check_beyond(shapes: ProceduralConfig, shift: str) -> None:
    """Raises UserError where a shift does not lead out of training's range, or shapes out of the image."""
    to, (small, large), turn, bend = getattr(shapes.shifts, shift), shapes.scale, shapes.rotation, shapes.bend
    key = f"data.procedural.shifts.{shift}"
    holds, expected = {
        "scale_up": (large < to <= MAX_SCALE, f"above {large}, the upper end of scale, and up to {MAX_SCALE}"),
        "scale_down": (0 < to < small, f"above 0 and below {small}, the lower end of scale"),
        "rotation": (turn < to <= math.pi, f"above {turn}, the largest rotation in training, and up to pi"),
        "bend": (bend < to <= BEND_LIMIT, f"above {bend}, the largest bend in training, and up to {BEND_LIMIT}"),
    }[shift]
    if not holds:
        raise UserError(f"expected null or a number {expected}", key=key, value=to)
    reach = {"scale_up": large, "bend": bend, "rotation": turn, shift: to}
    fits = largest_scale(reach["bend"], reach["rotation"])
    if shift != "scale_down" and reach["scale_up"] > fits:  # smaller ones fit better than those of training
        bent = f"shapes of half extent {reach['scale_up']}, bent by up to {reach['bend']}, reach out of the image"
        expected = f"half extents (scale, shifts.scale_up) of up to {math.floor(1000 * fits) / 1000}"
        raise UserError(f"by which {bent}; expected {expected}", key=key, value=to)
