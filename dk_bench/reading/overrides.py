"""``KEY=VALUE`` arguments: which place in a configuration they name, and putting a value there."""

import copy
import re
from collections.abc import Mapping
from typing import Any

from dk_bench.errors import UserError

HABITS = {"-": "dashes", "+": "plus signs", "~": "a tilde"}  # options, and Hydra's ways to add and delete
INDEXED = re.compile(r"([^\[\]]+)((?:\[[0-9]+\])*)")

Key = tuple[str | int, ...]  # names of sections and keys; indices into lists


def split_override(override: str) -> tuple[Key, str]:
    """Returns place and text of ``KEY=VALUE``, KEY as ``a.b``, with ``[0]`` or ``.0`` for an item. Raises UserError."""
    name, equals, text = override.partition("=")
    example = "for example optim.epochs=10"
    if override.startswith("{"):
        raise UserError(f"{override!r}: expected KEY=VALUE, {example}; in a sweep's command write ${{args_no_hyphens}}")
    if name[:1] in HABITS:
        raise UserError(f"{override!r}: expected KEY=VALUE without {HABITS[name[0]]} before the key, {example}")
    if not equals or not name:
        raise UserError(f"{override!r}: expected KEY=VALUE, {example}")
    key: list[str | int] = []
    for part in name.split("."):
        found = INDEXED.fullmatch(part)
        if not found:
            raise UserError(f"{override!r}: expected a key as a.b, or a.b[0] for an item of a list, before '='")
        key += [found[1], *map(int, re.findall(r"[0-9]+", found[2]))]
    return tuple(key), text


def joined(key: Key) -> str:
    """Returns a key as it is written: a.b[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def standing(values: Any, key: Key, default: Any = None) -> Any:
    """Returns what stands at a place, or the default where nothing does."""
    for part in key:
        if isinstance(values, list | tuple) and str(part).isdecimal() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, Mapping) and part in values:
            values = values[part]
        else:
            return default
    return values


def put(values: Any, key: Key, value: Any, done: Key = ()) -> Any:
    """Returns ``values`` with a value at a place, as a copy where they change. A section is laid over the one that
    stands, key by key; one without keys empties it, and one with ``_delete_: true``, as in mmengine, takes its place.
    The key ``_delete_`` alone, true, empties its section.

    Raises UserError for an index beyond a list's end and for a place within what is neither list nor section.
    """
    if not key:
        return _laid_over(values, value, done)
    head, *rest = key
    here = (*done, head)
    if isinstance(values, list | tuple):
        if not str(head).isdecimal() or int(head) >= len(values):
            raise UserError(f"key '{joined(done)}' has no item {head}, expected 0 to {len(values) - 1}")
        items = list(values)
        items[int(head)] = put(items[int(head)], tuple(rest), value, here)
        return type(values)(items)
    is_index = isinstance(head, int) or values is None and head.isdecimal()
    if is_index or not isinstance(values, Mapping | None):
        expected = "a list in brackets" if is_index else "a section"
        raise UserError(f"expected {expected} that has '{head}'", key=joined(done), value=values)
    if head == "_delete_" and not rest:
        return {} if value else values
    changed = {} if values is None else copy.copy(values)
    changed[head] = put(changed.get(head), tuple(rest), value, here)
    return changed


def _laid_over(values: Any, value: Any, done: Key) -> Any:
    if not isinstance(value, Mapping):
        return value
    own = {name: item for name, item in value.items() if name != "_delete_"}
    if not own or value.get("_delete_") or not isinstance(values, Mapping):
        return own
    for name, item in own.items():
        values = put(values, (name,), item, done)
    return values
