"""An extension of griffe, which reads docstrings for the site (mkdocs.yml).

Roles of Sphinx, as in ``:func:`dk_bench.deform```, become links; where what is named has no place in the site, its name
stands there without one. Fields of dataclasses have the defaults that they have when the package runs, not the calls
that make them.
"""

import dataclasses
import importlib
import re

from griffe import Extension

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)([\w.]+)`")


def link(role: re.Match) -> str:
    name = role[2].rpartition(".")[2] if role[1] else role[2]
    return f'<autoref optional identifier="{role[2]}"><code>{name}</code></autoref>'


def say_defaults(cls) -> None:
    """Gives a dataclass's fields their defaults; what is no field is no parameter of it either."""
    fields = {each.name: each for each in dataclasses.fields(load(cls))}
    for attribute in cls.attributes.values():
        if attribute.name not in fields:
            attribute.labels.discard("instance-attribute")
        elif (default := fields[attribute.name].default) is not dataclasses.MISSING:
            attribute.value = repr(default)


def load(cls) -> type:
    return getattr(importlib.import_module(cls.module.path), cls.name)


class Docstrings(Extension):
    """Rewrites what has been read, before it is shown."""

    def on_object(self, *, obj, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(link, obj.docstring.value)

    def on_class(self, *, cls, **kwargs) -> None:
        if any("dataclass" in str(decorator.value) for decorator in cls.decorators):
            say_defaults(cls)
