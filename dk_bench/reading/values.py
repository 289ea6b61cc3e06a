"""How a text becomes a value: of an override, of a sweep's arguments and of a configuration file, by the same rules.

What a key takes decides, by its annotation: `dk_bench.config` has a schema; a configuration of mmdet has none, and
there the value that stands decides (`annotation_of`).

- Text is taken exactly as it is written: ``007``, ``no``, ``try #1``, ``${x}``, ``'a'`` with its quotes.
- A number is a plain decimal (``3``, ``0.1``, ``1e-4``); a truth value is ``true`` or ``false``, as Python writes them
  too; null is ``null`` or ``None``, where null is allowed.
- A list is in brackets, a section in braces. Inside, a text may stand in quotes, with the escapes of Python and JSON,
  and must where it begins with a quote or holds a comma or a bracket.
- Where nothing says what a key takes, a text is one of the above if it looks like it, and else itself; in quotes it
  is always a text. ``yes``, ``no``, ``on`` and ``off`` may be meant either way there: they are an error.
"""

import ast
import dataclasses
import json
import math
import re
import types
import typing
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from dk_bench.errors import UserError

INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
UNCLEAR = ("yes", "no", "on", "off")  # truth values to YAML, true to Python
NULLS = ("null", "None")
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
CLOSING = {"[": "]", "(": ")", "{": "}"}
NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


class Word(str):
    """A text as it stands without quotes: what it means depends on the place. A plain str is a text and no more."""


class UnknownKey(UserError):
    """A section of the schema has no key ``unknown``, the whole key, with dots."""

    def __init__(self, unknown: str) -> None:
        super().__init__(f"unknown key '{unknown}'")
        self.unknown = unknown


class Standing(dict):
    """A section without a schema as a kind of value: what stands in it says how what is laid over it is read."""


def annotation_of(value: Any) -> Any:
    """Returns the annotation of what may take a value's place: its own kind, or null. A number may become a list (mmdet
    often takes both); the items of a list are of the kind that all items standing there have."""
    if value is None:
        return Any
    if isinstance(value, Mapping):
        return (Standing(value), type(None))
    if isinstance(value, list | tuple):
        kinds = [annotation_of(item) for item in value if not isinstance(item, Mapping)]
        item = kinds[0] if len(kinds) == len(value) > 0 and all(kind == kinds[0] for kind in kinds) else Any
        return ((list, item), type(None)) if isinstance(value, list) else ((tuple, item), type(None))
    if isinstance(value, bool):
        return (bool, type(None))
    return (int, float, (list, Any), type(None)) if isinstance(value, int | float) else (str, type(None))


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Returns an annotation as the kinds of value it allows: plain types, Literal, dataclasses, `Standing`, Any, and
    (list, item), (tuple, item), (dict, item)."""
    if isinstance(annotation, tuple) and not (len(annotation) == 2 and annotation[0] in (list, tuple, dict)):
        return annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for argument in arguments for kind in kinds_of(argument))
    if origin in (list, tuple):
        return ((origin, arguments[0]),)
    return ((dict, arguments[1]),) if origin is dict else (annotation,)


def read_text(text: str, annotation: Any, key: str) -> Any:
    """Returns the value that a text stands for where ``key`` takes ``annotation``. Raises UserError, UnknownKey for a
    key inside braces that the schema does not have."""
    kinds = kinds_of(annotation)
    raw: Any = Word(text)
    try:
        if text.lstrip()[:1] in CLOSING and any(_holds(kind) for kind in kinds):
            raw = _Brackets(text.strip()).whole()
        elif Any in kinds and QUOTED.fullmatch(text):
            raw = _unquoted(text)
    except _Unbalanced as error:
        hint = "; in quotes it is a text" if Any in kinds else ""
        raise UserError(f"which cannot be read: {error}{hint}", key=key, value=text) from error
    return read(raw, annotation, key)


def read(raw: Any, annotation: Any, key: str = "") -> Any:
    """Returns the value that ``key`` takes of plain data in which texts may be `Word`. A section may be a part of it.
    Raises UserError, UnknownKey for a key that the schema does not have."""
    kinds = kinds_of(annotation)
    if isinstance(raw, Mapping):
        return _read_section(raw, kinds, key)
    if isinstance(raw, list | tuple):
        return _read_list(raw, kinds, key)
    if isinstance(raw, str):
        return _read_word(raw, kinds, key)
    if Any in kinds or type(raw) in kinds and (type(raw) is not float or math.isfinite(raw)):
        return raw
    if type(raw) is int and float in kinds:
        return float(raw)
    raise _misread(raw, kinds, key)


def describe(kinds: tuple[Any, ...]) -> str:
    """Returns the kinds that a key takes, in words."""
    *words, last = dict.fromkeys(_describe(kind) for kind in kinds if kind is not int or float not in kinds)
    return f"{', '.join(words)} or {last}" if words else last


def _describe(kind: Any) -> str:
    if isinstance(kind, type) and kind in NAMES:
        return NAMES[kind]
    if dataclasses.is_dataclass(kind):
        return f"a section with keys {', '.join(field.name for field in dataclasses.fields(kind))}"
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if isinstance(kind, tuple) and kind[0] is not dict:
        items = [item for item in kinds_of(kind[1]) if isinstance(item, type) and item in NAMES] or [Any]
        return "a list in brackets" + ("" if Any in items else f" (each item {describe(tuple(items))})")
    return "anything" if kind is Any else "keys and values in braces"


def _misread(raw: Any, kinds: tuple[Any, ...], key: str) -> UserError:
    return UserError(f"expected {describe(kinds)}", key=key, value=plain(raw))


def plain(raw: Any) -> Any:
    """Returns plain data without `Word`: every text as it is written."""
    if isinstance(raw, Mapping):
        return {str(key): plain(item) for key, item in raw.items()}
    if isinstance(raw, list | tuple):
        return type(raw)(map(plain, raw))
    return str(raw) if isinstance(raw, str) else raw


def _holds(kind: Any) -> bool:
    """Tells whether values of a kind may hold others."""
    return kind is Any or isinstance(kind, tuple | Standing) or dataclasses.is_dataclass(kind)


def _read_section(raw: Mapping[str, Any], kinds: tuple[Any, ...], key: str) -> dict[str, Any]:
    within = f"{key}." if key else ""
    for kind in kinds:
        if kind is Any or isinstance(kind, tuple) and kind[0] is dict:
            item = Any if kind is Any else kind[1]
            return {str(name): read(value, item, within + name) for name, value in raw.items()}
        if isinstance(kind, Standing):
            stands = {} if "_delete_" in raw else kind
            return {str(n): read(value, annotation_of(stands.get(n)), within + n) for n, value in raw.items()}
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            if unknown := [name for name in raw if name not in hints]:
                raise UnknownKey(f"{within}{unknown[0]}")
            return {str(name): read(value, hints[name], within + name) for name, value in raw.items()}
    raise _misread(raw, kinds, key)


def _read_list(raw: list | tuple, kinds: tuple[Any, ...], key: str) -> list | tuple:
    for kind in kinds:
        if kind is Any or isinstance(kind, tuple) and kind[0] in (list, tuple):
            make, item = (type(raw), Any) if kind in (Any, (list, Any)) else kind
            return make(read(value, item, f"{key}[{index}]") for index, value in enumerate(raw))
    raise _misread(raw, kinds, key)


def _read_word(raw: str, kinds: tuple[Any, ...], key: str) -> Any:
    """Tries null, truth value, integer, number, text, in that order. A text in quotes is one where a text may stand."""
    takes_text, text = Any in kinds or str in kinds, str(raw)
    if takes_text and not isinstance(raw, Word):
        return text
    if text in NULLS and (Any in kinds or type(None) in kinds):
        return None
    if text in TRUTH and (Any in kinds or bool in kinds):
        return TRUTH[text]
    if INTEGER.fullmatch(text) and len(text) < 400 and (Any in kinds or int in kinds):
        return int(text)
    if DECIMAL.fullmatch(text) and (Any in kinds or float in kinds) and _fits(text):
        return float(text)
    if Any in kinds and isinstance(raw, Word) and text.lower() in UNCLEAR:
        raise UserError("expected true or false, or quotes around it if it is a text", key=key, value=text)
    if takes_text or any(typing.get_origin(kind) is Literal and text in typing.get_args(kind) for kind in kinds):
        return text
    raise _misread(raw, kinds, key)


def _fits(decimal: str) -> bool:
    """Tells whether a decimal is a finite number, and zero only where it says zero."""
    number = float(decimal)
    return math.isfinite(number) and (number != 0 or not re.search("[1-9]", re.split("[eE]", decimal)[0]))


def _unquoted(text: str) -> str:
    """Returns the text in quotes, with its escapes: JSON's in double quotes, else Python's."""
    if text.startswith('"'):
        try:
            return json.loads(text, strict=False)
        except ValueError:
            pass
    try:
        with warnings.catch_warnings(action="error"):  # of a backslash that escapes nothing
            return ast.literal_eval(text.replace("\n", "\\n"))
    except (ValueError, SyntaxError) as error:
        raise _Unbalanced(f"{text} is no text in quotes") from error


class _Unbalanced(ValueError):
    """A text that begins with a bracket and is no list and no section."""


class _Brackets:
    """Reads lists and sections: YAML's in one line, JSON's and Python's. Their words stay words."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def whole(self) -> Any:
        value = self._value()
        if self.at < len(self.text):
            raise _Unbalanced(f"after its end comes {self.text[self.at :]!r}")
        return value

    def _value(self) -> Any:
        opening = self._peek()
        if opening == "{":
            return self._section()
        if opening in CLOSING:
            start, items = self.at, self._items(CLOSING[opening], self._value)
            if opening == "(" and len(items) == 1 and not re.search(r",\s*\)$", self.text[start : self.at]):
                raise _Unbalanced("expected a comma after the only item of a tuple, or brackets")  # ('a') is a text
            return tuple(items) if opening == "(" else items
        return self._word(",]})")

    def _section(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in self._items("}", self._pair):
            if key in found:
                raise _Unbalanced(f"{key!r} stands there twice")
            found[key] = value
        return found

    def _pair(self) -> tuple[str, Any]:
        key = str(self._word(":,]})"))
        if self._peek() != ":":
            raise _Unbalanced(f"expected ':' after {key!r}")
        self.at += 1
        return key, self._value()

    def _items(self, closing: str, read_one: typing.Callable[[], Any]) -> list[Any]:
        items = []
        self.at += 1
        while self._peek() != closing:
            items.append(read_one())
            if self._peek() == ",":
                self.at += 1
            elif self._peek() != closing:
                raise _Unbalanced(f"expected {closing!r} or a comma before {self.text[self.at :]!r}")
        self.at += 1
        return items

    def _word(self, ends: str) -> str:
        """Returns a text in quotes, or a `Word` up to one of ``ends``, without the blanks around it."""
        if self._peek() in ("'", '"'):
            found = QUOTED.match(self.text, self.at)
            if not found:
                raise _Unbalanced("a quote has no end")
            self.at = found.end()
            return _unquoted(found[0])
        found = re.compile(f"[^{re.escape(ends)}]*").match(self.text, self.at)
        word, self.at = found[0].strip(), found.end()
        if self.at == len(self.text):
            raise _Unbalanced("a bracket is not closed")
        if not word:
            raise _Unbalanced(f"expected a value before {self.text[self.at :]!r}")
        if any(bracket in word for bracket in CLOSING):
            raise _Unbalanced(f"expected quotes around {word!r}, or a comma in it")
        return Word(word)

    def _peek(self) -> str:
        """Returns the next character that is no blank, to which it goes; empty at the end."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]
