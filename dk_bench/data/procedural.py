"""Images of deformable shapes, drawn from a seed: the data set that needs no download.

The class is the shape alone. Scale, rotation and bend vary freely, colour says nothing, and strokes and discs of the
same colours lie around: a network has to follow the geometry. Image ``index`` of a split is a function of (seed,
split, index), whatever order or process draws it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 3  # drawn this many times larger, then averaged down: nine levels of coverage at every edge
SPLITS = ("train", "val")
STREAMS = (*SPLITS, "test")  # a split's random numbers go by its place here
BEND_LIMIT = 0.9  # radians per unit; at 1 the inner edge of a shape would shrink to a point
MAX_SCALE = 0.35  # half extent as a fraction of the side: any rotation still fits the image


def _polar(radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _corners(text: str) -> np.ndarray:
    return np.array(text.split(), float).reshape(-1, 2)


_CIRCLE = _polar(np.ones(41), np.linspace(0, 2 * math.pi, 41))
# Corners (P, 2) in the unit square [-1, 1]^2, x to the right and y down. No discs and no bars: those are the clutter.
_CORNERS = {
    "triangle": _corners("0 -1  1 0.8  -1 0.8"),
    "star": _polar(np.tile([1.0, 0.4], 5), np.arange(10) * math.pi / 5 - math.pi / 2),
    "ring": np.concatenate([_CIRCLE, 0.55 * _CIRCLE[::-1]]),  # a keyhole: out, round, in, back
    "cross": _corners(
        "-0.3 -1  0.3 -1  0.3 -0.3  1 -0.3  1 0.3  0.3 0.3  0.3 1  -0.3 1  -0.3 0.3  -1 0.3  -1 -0.3  -0.3 -0.3"
    ),
    "tee": _corners("-1 -1  1 -1  1 -0.4  0.3 -0.4  0.3 1  -0.3 1  -0.3 -0.4  -1 -0.4"),
    "ell": _corners("-1 -1  -0.4 -1  -0.4 0.4  1 0.4  1 1  -1 1"),
    "zed": _corners("-1 -1  0.3 -1  0.3 0.5  1 0.5  1 1  -0.3 1  -0.3 -0.5  -1 -0.5"),
    "arrow": _corners("-1 -0.3  0.1 -0.3  0.1 -1  1 0  0.1 1  0.1 0.3  -1 0.3"),
    "aitch": _corners(
        "-1 -1  -0.45 -1  -0.45 -0.28  0.45 -0.28  0.45 -1  1 -1  1 1  0.45 1  0.45 0.28  -0.45 0.28  -0.45 1  -1 1"
    ),
    "fork": _corners(
        "-1 -1  1 -1  1 -0.5  -0.4 -0.5  -0.4 -0.25  1 -0.25  1 0.25  -0.4 0.25  -0.4 0.5  1 0.5  1 1  -1 1"
    ),
}
SHAPES = tuple(_CORNERS)


def _outline(corners: np.ndarray, step: float = 0.15) -> np.ndarray:
    """Returns the closed polygon, (P, 2), with points at most ``step`` apart, so that bending curves its edges."""
    points = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        pieces = max(1, math.ceil(np.linalg.norm(end - start) / step))
        points.append(start + (end - start) * np.arange(pieces)[:, None] / pieces)
    return np.concatenate(points)


_OUTLINES = [_outline(corners) for corners in _CORNERS.values()]


@dataclass(frozen=True)
class Pose:
    """Holds where and how one shape lies: everything that is known about an object.

    ``center`` (x, y) and ``scale`` (half the unbent extent) are in pixels, ``rotation`` in radians clockwise (y is
    down), ``bend`` in radians per half extent along the shape's own x axis.
    """

    label: int
    center: tuple[float, float]
    scale: float
    rotation: float
    bend: float

    def contour(self) -> np.ndarray:
        """Returns the outline as polygon, (P, 2) in pixels (x, y)."""
        x, y = _OUTLINES[self.label].T
        if abs(self.bend) > 1e-6:  # the x axis becomes an arc of curvature bend; y stays the distance from it
            radius = 1 / self.bend
            x, y = (radius - y) * np.sin(self.bend * x), radius - (radius - y) * np.cos(self.bend * x)
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        return self.scale * np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + self.center

    def box(self) -> tuple[float, float, float, float]:
        """Returns the bounding box in pixels as COCO writes it: left, top, width, height."""
        points = self.contour()
        low, extent = points.min(axis=0), np.ptp(points, axis=0)
        return float(low[0]), float(low[1]), float(extent[0]), float(extent[1])


Limit = float | tuple[float, float]  # of a size without its sign: the largest, or the smallest and the largest


def sample_pose(
    rng: np.random.Generator, label: int, size: int, scale: tuple[float, float], bend: Limit, rotation: Limit = math.pi
) -> Pose:
    """Returns a random pose whose shape lies inside the ``size`` x ``size`` image.

    ``scale`` is a range of half extents as fractions of ``size``, drawn log-uniformly; bend and rotation are uniform
    in plus and minus the limit given. Whatever the ranges, as many random numbers are drawn.
    """
    half = size * math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1])))
    centred = Pose(label, (0.0, 0.0), half, _either_way(rng, rotation), _either_way(rng, bend))
    left, top, width, height = centred.box()
    place = rng.uniform(size=2)
    x, y = place[0] * (size - width) - left, place[1] * (size - height) - top
    return Pose(label, (float(x), float(y)), half, centred.rotation, centred.bend)


def _either_way(rng: np.random.Generator, limit: Limit) -> float:
    low, high = _from_to(limit)
    drawn = rng.uniform(low - high, high - low)
    return drawn + math.copysign(low, drawn)


def _from_to(limit: Limit) -> tuple[float, float]:
    return limit if isinstance(limit, tuple) else (0.0, limit)


def largest_scale(bend: float, rotation: float, steps: int = 32) -> float:
    """Returns the largest half extent, as a fraction of the side, of which every shape fits into the image, bent and
    turned both ways by up to that much."""
    extents = []
    for label in range(len(SHAPES)):
        for bent in np.linspace(-bend, bend, steps + 1):
            points = Pose(label, (0.0, 0.0), 1.0, 0.0, bent).contour() @ (1, 1j)
            turned = points[:, None] * np.exp(1j * np.linspace(-rotation, rotation, 2 * steps + 1))
            extents += [np.ptp(turned.real, axis=0).max(), np.ptp(turned.imag, axis=0).max()]
    return 1 / max(extents)


def draw(poses: list[Pose], size: int, rng: np.random.Generator, clutter: int) -> Image.Image:
    """Draws shapes over a cluttered background, anti-aliased: an RGB image of ``size`` x ``size``. ``clutter`` is the
    number of strokes and of discs behind the shapes; the colours of all come from one distribution."""
    k = SUPERSAMPLING
    background = rng.integers(0, 128, 3)
    blotches = np.clip(background + rng.integers(-40, 41, (4, 4, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(blotches).resize((k * size, k * size), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    # Every channel of every colour is lighter than the background's: in the mean, and by 70 grey levels or more.
    inks = iter((background + rng.integers(70, 128, (2 * clutter + len(poses), 3))).tolist())
    for x, y, angle, length, width in rng.uniform(size=(clutter, 5)).tolist():
        x, y, reach, angle = k * size * x, k * size * y, k * size * (0.05 + 0.2 * length), 2 * math.pi * angle
        end = (x + reach * math.cos(angle), y + reach * math.sin(angle))
        pen.line([(x, y), end], fill=tuple(next(inks)), width=round(k * size * (0.01 + 0.05 * width)))
    for x, y, radius in (k * size * rng.uniform(size=(clutter, 3))).tolist():
        pen.circle((x, y), 0.02 * k * size + 0.05 * radius, fill=tuple(next(inks)))
    for pose in poses:
        pen.polygon((k * pose.contour()).ravel().tolist(), fill=tuple(next(inks)))
    noise = rng.integers(-12, 13, (size, size, 3), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(image.reduce(k)) + noise, 0, 255).astype(np.uint8))


class ShapeImages:
    """A map-style data set: item ``index`` is (RGB image, label); labels go round, so classes are balanced.

    Images of one split, index and seed are one scene whatever ``scale``, ``bend`` and ``rotation`` are: these move, and
    with the shape's extent its place, while colours and clutter stay.

    Raises ValueError for a split, a number of classes, a scale or a bend out of range.
    """

    def __init__(
        self,
        split: str,
        count: int,
        *,
        size: int = 64,
        classes: int = len(SHAPES),
        seed: int = 0,
        scale: tuple[float, float] = (0.15, 0.34),
        bend: Limit = 0.8,
        rotation: Limit = math.pi,
        clutter: int = 6,
    ) -> None:
        if split not in STREAMS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(STREAMS)}")
        if not 2 <= classes <= len(SHAPES):
            raise ValueError(f"classes is {classes}, expected 2 to {len(SHAPES)}")
        if not 0 < scale[0] <= scale[1] <= MAX_SCALE:
            raise ValueError(f"scale is {tuple(scale)}, expected two fractions, rising, above 0 and up to {MAX_SCALE}")
        if not 0 <= _from_to(bend)[0] <= _from_to(bend)[1] <= BEND_LIMIT:
            raise ValueError(f"bend is {bend}, expected 0 to {BEND_LIMIT}")
        self.split, self.count, self.size, self.seed = split, count, size, seed
        self.classes = list(SHAPES[:classes])
        self._pose = {"size": size, "scale": tuple(scale), "bend": bend, "rotation": rotation}
        self._clutter = clutter

    def __len__(self) -> int:
        return self.count

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        return np.random.default_rng((self.seed, STREAMS.index(self.split), index, stream))

    @property
    def labels(self) -> list[int]:
        """Returns the labels of all images, in order."""
        return [index % len(self.classes) for index in range(self.count)]

    @property
    def settings(self) -> dict[str, Any]:
        """Returns all that the images depend on, but for the program that draws them."""
        own = {"split": self.split, "count": self.count, "classes": len(self.classes), "seed": self.seed}
        return {**own, **self._pose, "clutter": self._clutter}

    def pose(self, index: int) -> Pose:
        """Returns the pose of the shape in image ``index``; drawing is not needed to know it."""
        return sample_pose(self._rng(index, 0), index % len(self.classes), **self._pose)

    def metadata(self, index: int) -> dict[str, Any]:
        """Returns what is known of an image: label, class, center, scale, box (pixels), rotation (radians) and bend."""
        pose = self.pose(index)
        return {**vars(pose), "class": self.classes[pose.label], "box": pose.box()}

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pose = self.pose(index)
        return draw([pose], self.size, self._rng(index, 1), self._clutter), pose.label


def sheet(sets: Sequence[ShapeImages], rows: int, names: Sequence[str] = (), margin: int = 4) -> Image.Image:
    """Returns a column of images for every class, the class's name above it: ``rows`` times an image of each set, of
    the same number, with the set's name before it, if there are any. RGB, one image pixel a pixel. Raises IndexError
    where there are fewer than ``rows`` images of a class."""
    classes, size = sets[0].classes, sets[0].size
    title, side, indent = 14, size + margin, margin + (100 if names else 0)
    page = Image.new("RGB", (indent + side * len(classes), title + margin + side * rows * len(sets)), "white")
    pen = ImageDraw.Draw(page)
    for column, name in enumerate(classes):
        pen.text((indent + column * side + size / 2, margin), name, fill="black", anchor="mt")
    for line in range(rows * len(sets)):
        row, number = divmod(line, len(sets))
        top = title + margin + line * side
        if names:
            pen.text((indent - margin, top + size / 2), names[number], fill="black", anchor="rm")
        for column in range(len(classes)):
            page.paste(sets[number][row * len(classes) + column][0], (indent + column * side, top))
    return page
