"""Keys of mmdet's configurations that take several values: a text there is read letter by letter, a number as a length.

``classes=('apple')`` is a text, not a tuple of one; ``scales=8`` of an anchor generator are eight numbers that nobody
wrote; ``milestones='8'`` are never reached. mmdet takes all of them in silence, or fails without a key.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from dk_bench.errors import UserError

NUMBERS, NAMES, SECTIONS = "numbers", "names", "sections"
# The end of a key -> what it takes a list or a tuple of.
EXPECTED = {
    ("metainfo", "classes"): NAMES,
    ("metainfo", "palette"): "colours",
    ("neck", "in_channels"): NUMBERS,
    ("bbox_roi_extractor", "featmap_strides"): NUMBERS,
    ("data_preprocessor", "mean"): NUMBERS,
    ("data_preprocessor", "std"): NUMBERS,
    ("bbox_coder", "target_means"): NUMBERS,
    ("bbox_coder", "target_stds"): NUMBERS,
    **{("anchor_generator", key): NUMBERS for key in ("scales", "ratios", "strides", "base_sizes")},
    **{(key,): NUMBERS for key in ("out_indices", "milestones", "betas")},
    **{(key,): SECTIONS for key in ("pipeline", "datasets", "custom_hooks")},
}


def check_sequences(cfg: Mapping[str, Any]) -> None:
    """Raises UserError that names the first key of a configuration which holds one value in place of several."""
    for key, section in _sections(cfg):
        for name, value in section.items():
            path = (*key, name)
            plain = tuple(part.partition("[")[0] for part in path)
            kind = EXPECTED.get(plain[-2:]) or EXPECTED.get(plain[-1:])
            if kind is None or value is None or _is_left_to_mmdet(plain, section, value):
                continue
            if fault := _fault(value, kind):
                raise UserError(fault, key=".".join(path), value=value)


def check_names(value: Any, what: str) -> list[str]:
    """Returns names of classes as a list. Raises UserError, which calls them ``what``, for what are no texts."""
    if fault := _fault(value, NAMES):
        raise UserError(f"{what} is {value!r}, {fault}")
    return list(value)


def _fault(value: Any, kind: str) -> str | None:
    """Tells what is expected in place of a value; None where it is right. Numbers may stand in lists of lists."""
    if isinstance(value, list | tuple):
        wanted = {NAMES: str, SECTIONS: Mapping}.get(kind)
        texts = kind == NUMBERS and any(isinstance(item, str) for item in value)
        if not texts and (wanted is None or all(isinstance(item, wanted) for item in value)):
            return None
        return f"expected {kind} in it"
    one = f"({value!r},)" if isinstance(value, str | int | float) else "[dict(...)]"
    return f"expected a list or tuple of {kind}; one alone is {one}"


def _is_left_to_mmdet(path: tuple[str, ...], section: Mapping[str, Any], value: Any) -> bool:
    """Tells whether it is a file with the names of classes, a line each, or the one map of some necks and backbones."""
    if path[-2:] == ("metainfo", "classes"):
        return isinstance(value, str) and os.path.isfile(value)
    pyramid = path[-1] == "in_channels" and str(section.get("type")).endswith("FPN")
    return type(value) is int and path[-1] in ("in_channels", "out_indices") and not pyramid


def _sections(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yields all sections inside a value, with their keys; a list's items are numbered."""
    if isinstance(value, Mapping):
        yield key, value
        for name, item in value.items():
            yield from _sections(item, (*key, str(name)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _sections(item, (*key[:-1], f"{key[-1]}[{number}]") if key else (f"[{number}]",))
