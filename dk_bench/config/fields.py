"""Fields that several sections have."""

from typing import Any

from dk_bench.reading.schema import checked


def at_least(low: int, expected: str = "", *, default: float) -> Any:
    """Returns the field of a number that is not below ``low``."""
    return checked(default, expected or f"at least {low}", lambda value: value >= low)


def place(what: str) -> Any:
    """Returns the field of a name, or null; an empty text (an unset variable of the shell) would pass for null."""
    return checked(None, f"{what}, or null", lambda text: text != "")
