"""Which parts a detector's configuration out of a file may name: mmengine would call anything that can be imported."""

from collections.abc import Iterator, Mapping
from typing import Any

import mmengine.registry
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string
from torch import nn

from dk_bench.errors import UserError


def check_types(settings: Any, key: str) -> None:
    """Raises UserError that names ``key`` for a ``type`` with dots, by which mmengine finds whatever Python can import,
    such as ``os.system``, unless it is a class that a registry has, or a module of torch."""
    for name in _types_in(settings):
        # Registries take the first parts for their own names, and look up what is left.
        ends = [name.split(".", begin)[-1] for begin in range(name.count("."))]
        try:
            found = [each for each in map(get_object_from_string, ends) if each is not None]
        except Exception as error:  # noqa: BLE001  whatever a module raises where it is imported
            raise UserError(f"key '{key}' has the type {name!r}, which cannot be imported: {error}") from error
        if not all(isinstance(each, type) and _is_known(each) for each in found):
            raise UserError(f"key '{key}' has the type {name!r}, expected a class that a registry of mmengine has")


def _types_in(settings: Any) -> Iterator[str]:
    """Yields the texts under ``type``, at any depth, that have dots."""
    if isinstance(settings, Mapping):
        if isinstance(name := settings.get("type"), str) and "." in name:
            yield name
        settings = settings.values()
    if not isinstance(settings, str):
        for each in settings if hasattr(settings, "__iter__") else ():
            yield from _types_in(each)


def _is_known(found: type) -> bool:
    return issubclass(found, nn.Module) or any(found in held.module_dict.values() for held in _registries())


def _registries() -> Iterator[Registry]:
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry):
            yield root
            yield from root.children.values()
