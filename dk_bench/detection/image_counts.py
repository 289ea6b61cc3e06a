"""How many images a detector's data set has after wrappers, filter and subset, told from its settings alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from dk_bench.data.known_sizes import DataSize
from dk_bench.detection.scenes import EMPTY_AT, EMPTY_EVERY, Scenes

CONCATENATION, REPETITION, MIXTURE = "ConcatDataset", "RepeatDataset", "MultiImageMixDataset"
LEAST_SIDE = 32  # pixels that all images of data with known sizes have: mmdet's usual ``min_size`` leaves none out


def count_images(dataset: Mapping[str, Any], split: str, known: DataSize | None) -> int | None:
    """Counts the images that an epoch has of a data set's settings, one that comes again again.

    ``split``: train or val; ``known``: the sizes of the data by its name. None where only files can tell: of data
    without a known size, of a filter by other classes or sizes, of wrappers that repeat images by what they show.
    """
    kind = str(dataset.get("type")).rpartition(".")[2]
    if parts := dataset.get("datasets"):
        # What the name knows is the whole data, not parts of it.
        counts = [count_images(part, split, known if len(parts) == 1 else None) for part in parts]
        return None if None in counts or kind != CONCATENATION else sum(counts)
    if inner := dataset.get("dataset"):
        count = count_images(inner, split, known)
        if kind == REPETITION:
            return None if count is None else count * dataset["times"]
        return count if kind == MIXTURE else None
    own = _scenes(dataset)
    count = _named(dataset, split, known) if own is None else _drawn(dataset, own)
    return _cut(count, dataset.get("indices"))


def scene_settings(dataset: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the settings of procedural scenes, which wrappers may hold; None where the images are others."""
    return next((own for leaf in _leaves(dataset) if (own := _scenes(leaf)) is not None), None)


def _leaves(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    inner = [*(dataset.get("datasets") or ()), *filter(None, [dataset.get("dataset")])]
    if not inner:
        yield dataset
    for each in inner:
        yield from _leaves(each)


def _scenes(leaf: Mapping[str, Any]) -> Mapping[str, Any] | None:
    is_drawn = str(leaf.get("type")).rpartition(".")[2] == "ProceduralCoco"
    return (leaf.get("scenes") or {}) if is_drawn else None


def _drawn(leaf: Mapping[str, Any], scenes: Mapping[str, Any]) -> int | None:
    """Counts procedural scenes, of which some have no object."""
    name = f"{leaf.get('split', 'train')}_images"
    count = scenes.get(name, getattr(Scenes, name, None))
    if count is None or not _leaves_out_empty(leaf):
        return count
    if (leaf.get("metainfo") or {}).get("classes"):
        return None
    return count - (count + EMPTY_EVERY - 1 - EMPTY_AT) // EMPTY_EVERY


def _named(leaf: Mapping[str, Any], split: str, known: DataSize | None) -> int | None:
    """Counts the images of data with a name."""
    if known is None or split == "val" or leaf.get("test_mode"):
        return known and getattr(known, split)
    wanted = (leaf.get("metainfo") or {}).get("classes")
    if (leaf.get("filter_cfg") or {}).get("min_size", 0) > LEAST_SIDE:
        return None
    if not _leaves_out_empty(leaf):
        return None if known.without_objects is None else known.train + known.without_objects
    return known.train if wanted is None or len(wanted) == known.classes else None


def _leaves_out_empty(leaf: Mapping[str, Any]) -> bool:
    """Tells whether images without an object are no part of the data set."""
    return bool((leaf.get("filter_cfg") or {}).get("filter_empty_gt")) and not leaf.get("test_mode")


def _cut(count: int | None, indices: Any) -> int | None:
    """Counts the images of mmengine's ``indices``: the first or, below 0, the last so many of them, or those listed."""
    if indices is None:
        return count
    if not isinstance(indices, int):
        return len(indices)
    return None if count is None else min(abs(indices), count)
