"""Detection images of deformable shapes, drawn from a seed, with annotations that hold pixel for pixel.

An image holds up to six shapes of `dk_bench.data.procedural`, each of known class, scale, rotation and bend, small,
medium or large by COCO's areas in known shares, on the same cluttered background. Every tenth image has no object,
every fifth a crowd: a patch of many small shapes of one class, annotated as one (``iscrowd``: 1).

Objects may overlap; the smaller ones lie in front. As in COCO, an annotation tells of the pixels that are visible: a
pixel belongs to the object that shows in most of its samples, ``area`` counts those pixels, ``bbox`` is their tight
box. Never is more than half of an object hidden, nor so much that it changes from large to medium or medium to small.
Image ``index`` of a split is a function of (settings, split, index), whatever order or process draws it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dk_bench.data.procedural import BEND_LIMIT, SHAPES, SPLITS, SUPERSAMPLING, Pose, draw
from dk_bench.errors import UserError

MIN_SIZE = 64  # below it the small shapes are a few pixels


class SizeClass(NamedTuple):
    """Objects of one of COCO's sizes. Lengths are square roots of areas, in pixels of an image of 256 x 256; in other
    images they are in proportion. Shares are of what is asked for; some of the large find no place: of 1,013 objects
    (300 images, seed 0) 40 % are small, 43 % medium, 17 % large."""

    name: str
    share: float
    shortest: float
    longest: float
    visible: float  # what must remain to be seen, a little above COCO's bounds of 32 and 96


SIZES = (
    SizeClass("small", 0.4, 10, 30, 0),
    SizeClass("medium", 0.4, 36, 90, 33),
    SizeClass("large", 0.2, 104, 125, 98),
)
SHARES = tuple(size.share for size in SIZES)  # where nothing is said
NATIVE_SIZE = 256  # of the image for which SIZES holds
MAX_OBJECTS = 6
EMPTY_EVERY, EMPTY_AT = 10, 9  # image 9, 19, ... of a split has no object
CROWD_EVERY, CROWD_AT = 5, 2  # image 2, 7, ... has a crowd
CROWD_SHAPES, CROWD_PATCH, CROWD_LENGTHS = (12, 25), (80, 130), (8, 14)  # how many, where, how large (as in SIZES)
LOWEST = {"train_images": 1, "val_images": 1, "size": MIN_SIZE, "seed": 0, "classes": 1, "bend": 0, "clutter": 0}
HIGHEST = {"classes": len(SHAPES), "bend": BEND_LIMIT}
TRIES = 30  # places tried for an object before it is left out


@dataclass(frozen=True)
class Item:
    """The shape of one annotation, or the shapes of a crowd. ``visible``: the area, in pixels, to remain."""

    poses: tuple[Pose, ...]
    crowd: bool = False
    visible: float = 0.0


@dataclass(frozen=True)
class Scenes:
    """The settings of a data set and, by split and index, its images and annotations.

    ``classes`` is how many of `SHAPES` there are, ``bend`` the largest bend in radians per half extent, ``clutter``
    the number of strokes and of discs behind the objects, ``shares`` those of small, medium and large among the
    objects that are asked for. Raises UserError for a setting out of range.
    """

    train_images: int = 400
    val_images: int = 100
    size: int = NATIVE_SIZE
    seed: int = 0
    classes: int = len(SHAPES)
    bend: float = 0.8
    clutter: int = 6
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        for name, low in LOWEST.items():
            value, high = getattr(self, name), HIGHEST.get(name, math.inf)
            kind, number = ("a number", (int, float)) if name == "bend" else ("an integer", int)
            if isinstance(value, bool) or not isinstance(value, number) or not low <= value <= high:
                upper = "" if high == math.inf else f" and up to {high}"
                raise UserError(f"procedural data: {name} is {value!r}, expected {kind} from {low}{upper}")
        shares = self.shares
        numbers = isinstance(shares, list | tuple) and all(type(share) in (int, float) for share in shares)
        if not numbers or len(shares) != len(SIZES) or min(shares) < 0 or not math.isclose(sum(shares), 1):
            expected = f"{len(SIZES)} numbers from 0 that sum to 1: of small, medium and large objects"
            raise UserError(f"procedural data: shares is {shares!r}, expected {expected}")

    def count(self, split: str) -> int:
        """Tells how many images a split has."""
        return self.train_images if split == "train" else self.val_images

    def items(self, split: str, index: int) -> list[Item]:
        """Returns the objects of an image, those behind first."""
        if index % EMPTY_EVERY == EMPTY_AT:
            return []
        rng = self._rng(split, index, 0)
        wanted = [self._crowd(rng)] if index % CROWD_EVERY == CROWD_AT else []
        choices = rng.choice(len(SIZES), size=rng.integers(1, MAX_OBJECTS + 1), p=self.shares)
        wanted += [self._object(SIZES[choice], rng) for choice in sorted(choices, reverse=True)]
        placed: list[Item] = []
        for item in wanted:
            places = (self._moved(item, rng.uniform(size=2)) for _ in range(TRIES))
            fitting = next((moved for moved in places if self._all_visible([*placed, moved])), None)
            placed += [fitting] if fitting else []
        return placed

    def image(self, split: str, index: int) -> Image.Image:
        """Returns the image, RGB."""
        poses = [pose for item in self.items(split, index) for pose in item.poses]
        return draw(poses, self.size, self._rng(split, index, 1), self.clutter)

    def annotations(self, split: str, index: int) -> list[dict[str, Any]]:
        """Returns COCO annotations of an image, but for ids: category_id (label + 1), bbox, area, iscrowd, segmentation
        (a crowd's as run lengths, else empty). An object's ``pose`` has what it was drawn by: center and scale in
        pixels, rotation and bend in radians; ``visible`` is the share of its pixels that nothing hides."""
        items, k = self.items(split, index), SUPERSAMPLING
        samples = self._samples(items).reshape(self.size, k, self.size, k)
        found = []
        for number, item in enumerate(items, start=1):
            mask = (samples == number).sum(axis=(1, 3)) > k * k / 2
            annotation = {"category_id": item.poses[0].label + 1, **_box_and_area(mask), "iscrowd": int(item.crowd)}
            annotation["segmentation"] = run_lengths(mask) if item.crowd else []
            if not item.crowd:
                alone = self._samples([item]).sum() / (k * k)
                visible = round(float((samples == number).sum() / (k * k) / alone), 4)
                annotation |= {"visible": visible, "pose": _plain(item.poses[0])}
            found.append(annotation)
        return found

    def _rng(self, split: str, index: int, stream: int) -> np.random.Generator:
        if not 0 <= index < self.count(split):
            raise IndexError(f"image {index} of {self.count(split)}")
        # A number more than the classification images have, so that no stream of theirs is one of these.
        return np.random.default_rng((self.seed, SPLITS.index(split), index, stream, 1))

    def _object(self, size: SizeClass, rng: np.random.Generator) -> Item:
        """Returns a shape of a size, anywhere."""
        label = int(rng.integers(self.classes))
        pose = self._pose(label, (size.shortest, size.longest), rng)
        return Item((pose,), visible=(size.visible * self.size / NATIVE_SIZE) ** 2)

    def _crowd(self, rng: np.random.Generator) -> Item:
        """Draws many small shapes of one class in a patch, anywhere."""
        label, count = int(rng.integers(self.classes)), rng.integers(*CROWD_SHAPES)
        patch = rng.uniform(*CROWD_PATCH) * self.size / NATIVE_SIZE
        poses = [self._pose(label, CROWD_LENGTHS, rng) for _ in range(count)]
        centres = rng.uniform(0, patch, (count, 2)).tolist()
        placed = (replace(pose, center=tuple(centre)) for pose, centre in zip(poses, centres, strict=True))
        return Item(tuple(placed), crowd=True)

    def _pose(self, label: int, lengths: tuple[float, float], rng: np.random.Generator) -> Pose:
        """Returns a shape around the origin whose area's square root is drawn log-uniformly from ``lengths``."""
        length = math.exp(rng.uniform(*np.log(lengths))) * self.size / NATIVE_SIZE
        while True:  # a strongly bent shape may be too long for the image; most are not
            pose = Pose(label, (0.0, 0.0), 1.0, rng.uniform(-math.pi, math.pi), rng.uniform(-self.bend, self.bend))
            pose = replace(pose, scale=length / math.sqrt(_polygon_area(pose.contour())))
            if max(pose.box()[2:]) < self.size:
                return pose

    def _moved(self, item: Item, place: np.ndarray) -> Item:
        """Returns the item moved into the image: ``place`` (x, y) from 0, at the left and upper edges, to 1."""
        points = np.concatenate([pose.contour() for pose in item.poses])
        shift = place * (self.size - np.ptp(points, axis=0)) - points.min(axis=0)
        return replace(item, poses=tuple(replace(p, center=tuple((shift + p.center).tolist())) for p in item.poses))

    def _all_visible(self, items: list[Item]) -> bool:
        """Tells whether enough shows of every item."""
        areas = np.bincount(self._samples(items).ravel(), minlength=len(items) + 1)[1:] / SUPERSAMPLING**2
        whole = [sum(_polygon_area(pose.contour()) for pose in item.poses) for item in items]
        # Of the crowd, whose shapes hide each other too, a third.
        least = [max(item.visible, area / (3 if item.crowd else 2)) for item, area in zip(items, whole, strict=True)]
        return bool((areas >= least).all())

    def _samples(self, items: list[Item]) -> np.ndarray:
        """Tells which item shows in each sample that `draw` colours, from 1 on, 0 for none: (k size, k size)."""
        k = SUPERSAMPLING
        numbers = Image.new("L", (k * self.size, k * self.size))
        pen = ImageDraw.Draw(numbers)
        for number, item in enumerate(items, start=1):
            for pose in item.poses:
                pen.polygon((k * pose.contour()).ravel().tolist(), fill=number)
        return np.asarray(numbers)


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Returns a mask, bool (H, W), as COCO's uncompressed run lengths: column by column, pixels off, on, off, ..."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0))).tolist()  # a mask that begins on: first run of length 0
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def _box_and_area(mask: np.ndarray) -> dict[str, Any]:
    """Returns bbox (left, top, width, height) and area of a mask with at least a pixel on, in pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    return {"bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top], "area": int(mask.sum())}


def _polygon_area(points: np.ndarray) -> float:
    """Returns the area of a closed polygon, (P, 2), by the shoelace formula."""
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _plain(pose: Pose) -> dict[str, Any]:
    """Returns a pose as JSON holds it, rounded so that another machine's last binary digit does not show."""
    values = {name: round(getattr(pose, name), 4) for name in ("scale", "rotation", "bend")}
    return {"center": [round(value, 4) for value in pose.center], **values}
