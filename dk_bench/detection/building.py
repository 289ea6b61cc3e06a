"""Building modules from mmengine's registries, with errors that name the configuration's key."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.registry import Registry

from dk_bench.errors import UserError


def build(registry: Registry, settings: Mapping[str, Any], key: str, **defaults: Any) -> Any:
    """Builds what ``settings`` describe by the registry. ``defaults`` stand where the settings say nothing.

    Raises UserError that names ``key`` where the type is unknown or does not take the settings, which stay as they are.
    """
    try:
        return registry.build(dict(settings), default_args=defaults or None)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        raise UserError(f"key '{key}' ({settings.get('type')}) cannot be built: {text[:600]}") from error


@contextmanager
def quiet_mmengine(level: int = logging.WARNING) -> Iterator[None]:
    """Silences what mmengine logs below a level: it has a line for every parameter."""
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
