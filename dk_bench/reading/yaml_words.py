"""Reads YAML files so that a scalar without quotes stays the word that was written, and checks mappings in them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from dk_bench.errors import UserError, system_errors
from dk_bench.reading.values import DECIMAL, TRUTH, Word

TAG = "tag:yaml.org,2002:"
WORDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}  # other kinds are numbers


def read_words(path: str | Path, what: str = "configuration", *, as_written: bool = False) -> Any:
    """Returns a YAML file as dicts, lists and texts; a scalar without quotes is a `Word`, or None where it is YAML's
    null, also by leaving it out. An empty file is None.

    Raises UserError for a file that is missing (``what`` names it) or not YAML, a key twice, a tag but ``!!str``, and,
    with ``as_written``, for a scalar without quotes that YAML takes for another.
    """
    try:
        with system_errors(f"{path}: no {what} can be read there"):
            node = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
        return None if node is None else _Words(path, as_written).value(node)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def read_as_written(path: str | Path, what: str) -> Any:
    """Returns a YAML file's values as PyYAML, and so W&B, reads them, where that is what is written. Raises UserError
    as `read_words` does, and for a scalar without quotes that YAML takes for another: ``007`` is 7, ``no`` false,
    ``12:30`` 750, ``2020-01-01`` a date."""
    read_words(path, what, as_written=True)
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def check_keys(
    value: Any, needed: Mapping[str, Any], optional: Mapping[str, Any] = MappingProxyType({}), also: Iterable[str] = ()
) -> None:
    """Raises UserError for what is no mapping, lacks a needed key, or has an unknown one or one of another type than
    stated; a truth value is no number. ``also``: keys that are known too but not checked here, for the error."""
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


class _Words:
    def __init__(self, path: str | Path, as_written: bool) -> None:
        self.path, self.as_written, self.loader = path, as_written, yaml.SafeLoader("")

    def value(self, node: yaml.Node, *within: yaml.Node) -> Any:
        if node in within:
            raise self._error(node, "holds itself")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in (f"{TAG}seq", f"{TAG}map"):
            raise self._error(node, f"tag {node.tag.replace(TAG, '!!')} is not read")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, node, *within) for item in node.value]
        self._check_keys(node)
        self.loader.flatten_mapping(node)  # `<<: *anchor`
        return {key.value: self.value(item, node, *within) for key, item in node.value}

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "expected a text as a key")
            if key.value in seen:
                raise self._error(key, f"key '{key.value}' stands there twice")
            seen.add(key.value)

    def _scalar(self, node: yaml.ScalarNode) -> str | None:
        is_plain = not node.style
        implied = self.loader.resolve(yaml.ScalarNode, node.value, (is_plain, not is_plain))
        if node.tag not in (implied, f"{TAG}str"):
            raise self._error(node, f"tag {node.tag.replace(TAG, '!!')} is not read")
        if not is_plain or node.tag != implied:  # quotes, a block, or !!str
            return node.value
        if node.tag == f"{TAG}null":
            return None
        if self.as_written and not _is_as_written(node):
            raise self._error(node, f"{node.value} is {_made(node)} to YAML, expected '{node.value}' or what is meant")
        return Word(node.value)

    def _error(self, node: yaml.Node, what: str) -> UserError:
        return UserError(f"{self.path}: line {node.start_mark.line + 1}: {what}")


def _is_as_written(node: yaml.ScalarNode) -> bool:
    if node.tag == f"{TAG}float" and node.value.lstrip("+-").lower() in (".inf", ".nan"):
        return True  # what they are is plain; whether they may stand there, others say
    return node.tag == f"{TAG}str" or node.value in TRUTH or bool(DECIMAL.fullmatch(node.value))


def _made(node: yaml.ScalarNode) -> str:
    """Says in words what YAML makes of a scalar without quotes."""
    if node.tag == f"{TAG}timestamp":
        return "a date"
    try:
        return json.dumps(yaml.safe_load(node.value))
    except (ValueError, yaml.YAMLError):  # 0b_, =
        return f"no text but of tag {node.tag.replace(TAG, '!!')}"
