"""Which images of a set a model classified rightly, a bit an image in records; comparisons of two such rows."""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr, stdtrit

from dk_bench.errors import UserError
from dk_bench.runs.record import RunRecord


def pack_correct(hits: np.ndarray, order: str | None) -> dict[str, Any]:
    """Returns what a record holds of hits (N,) bool, in the order of the set's images: ``images``, their number;
    ``order``, the set's checksum, which also is one of its order, None where nobody knows it; ``bits``, the hits packed
    eight to a byte, the first in the highest bit, in base64."""
    hits = np.asarray(hits, bool)
    return {"images": len(hits), "order": order, "bits": base64.b64encode(np.packbits(hits).tobytes()).decode()}


def correct_images(record: RunRecord, name: str = "val") -> np.ndarray:
    """Tells of each image of a set, in order, whether the model told its class at the end of training: (N,) bool.
    Raises UserError where the record does not say, as those of detectors and older ones."""
    held = record.correct.get(name)
    if held is None:
        known = f", it does of {', '.join(record.correct)}" if record.correct else ""
        raise UserError(f"record {record.run_id} does not say which images of {name!r} were told rightly{known}")
    try:
        packed = np.frombuffer(base64.b64decode(held["bits"], validate=True), np.uint8)
        if len(packed) != math.ceil(held["images"] / 8):
            raise ValueError(f"{len(packed)} bytes for {held['images']} images")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise UserError(f"record {record.run_id}: correct.{name} is damaged: {error}") from error
    return np.unpackbits(packed, count=held["images"]).astype(bool)


def correct_together(records: Sequence[RunRecord], name: str = "val") -> np.ndarray:
    """Returns the same of several records: (records, N) bool. Raises UserError unless images and order are the same."""
    rows = [correct_images(record, name) for record in records]
    orders = {(record.correct[name]["images"], record.correct[name].get("order")) for record in records}
    if len(orders) > 1 or None in next(iter(orders), ()):
        runs = ", ".join(record.run_id for record in records)
        raise UserError(f"records {runs} are not known to be of the same images {name!r} in the same order")
    return np.stack(rows)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, float]:
    """Returns McNemar's exact test of two rows of hits, (N,) bool each, on the same images: how many images only the
    first and only the second told rightly, and the two-sided p of so uneven a split by chance."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    count = only_ours + only_theirs
    p = min(1.0, 2 * float(bdtr(min(only_ours, only_theirs), count, 0.5))) if count else 1.0
    return only_ours, only_theirs, p


def crossed_interval(differences: np.ndarray, confidence: float = 0.95) -> Mapping[str, float]:
    """Returns the ``mean`` of differences (seeds, images), such as hits minus the base's, and its interval if seeds and
    images are both drawn at random: ``half_width``, and the standard errors by ``seeds`` and by ``images`` alone.

    By the two-way layout with one value a cell: the variance of the mean is that over seeds plus that over images,
    less what both count, the rest's; the part of a source is never below 0. Student's t has as many degrees of freedom
    as the source with fewer values has, which is on the safe side. Raises ValueError for fewer than two of either.
    """
    seeds, images = differences.shape
    if min(seeds, images) < 2:
        raise ValueError(f"differences are of {seeds} seeds and {images} images, expected two or more of both")
    values = np.asarray(differences, float)
    mean, rows, columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = ((values - rows[:, None] - columns + mean) ** 2).sum() / ((seeds - 1) * (images - 1) * seeds * images)
    of_seeds, of_images = (max(0.0, m.var(ddof=1) / len(m) - rest) for m in (rows, columns))
    half_width = stdtrit(min(seeds, images) - 1, (1 + confidence) / 2) * math.sqrt(of_seeds + of_images + rest)
    standard_errors = {"seeds": math.sqrt(of_seeds), "images": math.sqrt(of_images)}
    return {"mean": float(mean), "half_width": float(half_width), **standard_errors}
