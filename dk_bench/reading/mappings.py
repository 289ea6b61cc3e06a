"""Checks the keys of a mapping that a file holds, and of what kind their values are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from dk_bench.errors import UserError

WORDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}  # other kinds are numbers


def check_keys(
    value: Any, needed: Mapping[str, Any], optional: Mapping[str, Any] = MappingProxyType({}), also: Iterable[str] = ()
) -> None:
    """Raises UserError for a mapping that lacks a key, has an unknown one or one of another kind.

    Args:
        value: what is to be a mapping.
        needed, optional: keys with the types that their values may have; a truth value is no number.
        also: keys that are known too but not checked here, for the error.
    """
    if not isinstance(value, dict):
        raise UserError(f"expected a mapping, got {value!r}")
    kinds = {**needed, **optional}
    if missing := needed.keys() - value.keys():
        raise UserError(f"missing {', '.join(sorted(missing))}")
    if unknown := value.keys() - kinds.keys():
        expected = ", ".join([*kinds, *sorted(also)])
        raise UserError(f"unknown {', '.join(map(str, sorted(unknown, key=str)))}, expected some of {expected}")
    for key in value:
        kind = kinds[key]
        if not isinstance(value[key], kind) or (kind is not bool and isinstance(value[key], bool)):
            raise UserError(f"{key} is {value[key]!r}, expected {WORDS.get(kind, 'a number')}")
