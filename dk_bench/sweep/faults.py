"""Faults of a sweep file, each in one sentence that names the key, what stands there and what was expected."""

import json
import re
from collections.abc import Callable
from typing import Any

from dk_bench.errors import UserError

PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def need(holds: bool, reason: str, key: str, value: Any = ...) -> None:
    """Raises UserError unless something ``holds``."""
    if not holds:
        raise UserError(reason, key=key, value=value)


def is_number(value: Any) -> bool:
    """Tells whether a value is a number to JSON: true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_value(value: Any, key: str) -> None:
    """Raises UserError for what YAML has and the server's JSON has not: dates, sets, keys that are no text."""
    try:
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:  # ValueError: NaN, infinity, a list that holds itself
        raise UserError(f"expected what JSON can hold: {error}", key=key, value=value) from error


def check_values(values: Any, key: str) -> None:
    """Raises UserError unless values are a list of some that JSON can hold."""
    need(isinstance(values, list) and bool(values), "expected a list of values", key, values)
    check_value(values, key)


def check_parameters(parameters: Any, where: str, check: Callable[[Any, str], None]) -> None:
    """Checks every parameter, those of nested ones too, by ``check(parameter, key)``. Raises UserError."""
    need(isinstance(parameters, dict) and bool(parameters), "expected parameters by name", where, parameters)
    for name, parameter in parameters.items():
        key = f"{where}.{name}"
        need(isinstance(name, str) and PARAMETER_NAME.fullmatch(name), f"{name!r} is no name for a parameter", key)
        if isinstance(parameter, dict) and "parameters" in parameter:
            if extra := sorted(map(str, parameter.keys() - {"parameters"})):
                raise UserError(f"key '{key}.{extra[0]}' does not go with parameters")
            check_parameters(parameter["parameters"], f"{key}.parameters", check)
        else:
            check(parameter, key)
