"""Dataclasses as the schema of a configuration: layers of values over its defaults, then what its fields require.

A field that not every value of its type fits is made by `checked`, which stands beside it and not in a list elsewhere.
"""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dk_bench.errors import UserError, located
from dk_bench.reading.overrides import Key, joined, put, split_override
from dk_bench.reading.values import UnknownKey, kinds_of, read, read_text

Layer = tuple[str, Mapping[str, Any]]  # where values come from, for errors, and the values


def checked(default: Any, expected: str, holds: Callable[[Any], bool], *, of_section: bool = False) -> Any:
    """Returns a dataclass field for values that ``holds`` tells fit, ``expected`` in words. ``holds`` is given the
    value or, with ``of_section``, the whole section, where other fields decide too."""
    rule = {"expected": expected, "holds": holds, "of_section": of_section}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=rule)
    return dataclasses.field(default=default, metadata=rule)


def merged(schema: type, layers: Iterable[Layer], overrides: Iterable[str]) -> Any:
    """Returns an instance of ``schema``: its defaults, ``layers`` over them in order, then ``KEY=VALUE`` overrides.

    Raises UserError that names layer or override for an unknown key and a value of the wrong type, and for the first
    value that does not fit its field.
    """
    values = dataclasses.asdict(schema())
    for source, content in layers:
        with located(source), _hints(schema):
            values = put(values, (), _without_empty(read(content, schema), schema))
    for override in overrides:
        key, text = split_override(override)
        with located(override), _hints(schema):
            annotation = _annotation(schema, key)
            value = _without_empty(read_text(text, annotation, joined(key)), annotation)
            if value or not dataclasses.is_dataclass(annotation):
                values = put(values, key, value)
    return _built(schema, values)


def read_value(schema: type, key: Key, text: str) -> Any:
    """Returns what the text of an override sets. Raises UserError for an unknown key and a value of the wrong type."""
    with _hints(schema):
        return read_text(text, _annotation(schema, key), joined(key))


def _annotation(schema: type, key: Key) -> Any:
    """Returns what a key takes. Raises UnknownKey."""
    annotation: Any = schema
    for depth, part in enumerate(key):
        for kind in kinds_of(annotation):
            hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
            if part in hints:
                annotation = hints[part]
                break
            if kind is Any or isinstance(kind, tuple) and (kind[0] is dict or str(part).isdecimal()):
                annotation = Any if kind is Any else kind[1]
                break
        else:
            raise UnknownKey(joined(key[: depth + 1]))
    return annotation


def _without_empty(value: Any, schema: Any) -> Any:
    """Returns a section of the schema without its empty sections, which set nothing. Elsewhere empty is a value."""
    if not dataclasses.is_dataclass(schema):
        return value
    hints = typing.get_type_hints(schema)
    parts = {name: _without_empty(item, hints[name]) for name, item in value.items()}
    return {name: item for name, item in parts.items() if item != {} or not dataclasses.is_dataclass(hints[name])}


def _built(schema: Any, values: Any, within: str = "") -> Any:
    """Returns values as an instance of the schema. Raises UserError for the first that does not fit its field, those
    of inner sections before."""
    if not dataclasses.is_dataclass(schema):
        return values
    hints = typing.get_type_hints(schema)
    section = schema(**{name: _built(hints[name], value, f"{within}{name}.") for name, value in values.items()})
    for field in dataclasses.fields(section):
        value, rule = getattr(section, field.name), field.metadata
        if rule and not rule["holds"](section if rule["of_section"] else value):
            raise UserError(f"expected {rule['expected']}", key=within + field.name, value=value)
    return section


@contextlib.contextmanager
def _hints(schema: type) -> Iterator[None]:
    """Adds to an UnknownKey of the block which key may have been meant."""
    try:
        yield
    except UnknownKey as error:
        error.reason += _did_you_mean(error.unknown, list(_keys(schema)))
        raise


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yields all dotted keys, sections included."""
    for name, hint in typing.get_type_hints(schema).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")


def _did_you_mean(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    close = close or [k for k in keys if k.rsplit(".")[-1] == key.rsplit(".")[-1]]  # the right name, another section
    if close:
        return f", did you mean '{close[0]}'?"
    section = key.rpartition(".")[0]
    return f"; keys here: {', '.join(k for k in keys if k.rpartition('.')[0] == section)}"
