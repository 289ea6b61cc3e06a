"""Errors a user can mend: what is wrong, at which key and in which file, put into words where they are printed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Bad input from the user (config, path, checkpoint): the command line prints it as one line, no traceback.

    Attributes:
        reason: what is wrong; of a value what is expected in its place ("expected a positive number"), or more about
            it ("which timm does not know").
        key: the key of a configuration, or whatever else ``noun`` calls it, that it is about; empty for none.
        value: what stands there; ``...`` where that says nothing.
        places: where that is, a file or an override, outermost first; `located` adds them.
    """

    status = 2  # what the command line exits with
    told = False  # whether another process of the run says it
    noun = "key"  # a backbone's errors are about its arguments

    def __init__(self, reason: str = "", *, key: str = "", value: Any = ...) -> None:
        super().__init__(reason)
        self.reason, self.key, self.value = reason, key, value
        self.places: list[str] = []

    def __str__(self) -> str:
        text = self.reason
        if self.key:
            stands = ":" if self.value is ... else f" is {self.value!r},"
            text = f"{self.noun} '{self.key}'{stands} {self.reason}"
        return ": ".join([*self.places, text])

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to other processes in words: its value need not be fit for that."""
        return type(self), (str(self),)


class BusyError(UserError):
    """Another process is at it; nothing is wrong, and later it can be done."""

    status = 75  # EX_TEMPFAIL of sysexits.h


@contextmanager
def located(place: object) -> Iterator[None]:
    """Adds to a UserError of the block where its fault lies: a file, an override. Outer places come first."""
    try:
        yield
    except UserError as error:
        error.places.insert(0, str(place))
        raise


@contextmanager
def system_errors(what: object, hint: str = "") -> Iterator[None]:
    """Turns an OSError of the block into a UserError: ``what``, say a path and what was tried, why, and a ``hint``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}{hint}") from error


def some(texts: Iterable[object], shown: int = 3) -> str:
    """Lists the first of many texts in an error, and says how many there are where those are not all."""
    texts = list(map(str, texts))
    return ", ".join(texts[:shown]) + (f", ... ({len(texts)} in all)" if len(texts) > shown else "")
