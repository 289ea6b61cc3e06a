"""An extension of griffe, which reads docstrings for the site (mkdocs.yml).

Roles of Sphinx, as in ``:func:`dk_bench.deform```, become links; where what is named has no place in the site, its name
stands there without one. Constructors that a decorator makes, as those of dataclasses, are shown as they are called.
"""

import importlib
import inspect
import re

from griffe import Class, Extension, Parameter, ParameterKind, Parameters

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)([\w.]+)`")


def link(role: re.Match) -> str:
    """Returns a link to what a role names, if the site has it."""
    name = role[2].rpartition(".")[2] if role[1] else role[2]
    return f'<autoref optional identifier="{role[2]}"><code>{name}</code></autoref>'


def parameters(cls: Class) -> Parameters:
    """Returns what a class is called with, by the class itself."""
    real = getattr(importlib.import_module(cls.module.path), cls.name)
    empty = inspect.Parameter.empty
    return Parameters(
        Parameter("self", kind=ParameterKind.positional_or_keyword),
        *(
            Parameter(
                each.name,
                annotation=None if each.annotation is empty else inspect.formatannotation(each.annotation),
                kind=ParameterKind[each.kind.name.lower()],
                default=None if each.default is empty else repr(each.default),
            )
            for each in inspect.signature(real).parameters.values()
        ),
    )


class Docstrings(Extension):
    """Rewrites what has been read, before it is shown."""

    def on_object(self, *, obj, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(link, obj.docstring.value)

    def on_class(self, *, cls, **kwargs) -> None:
        made = cls.members.get("__init__")
        if made and (made.decorators or any("dataclass" in str(decorator.value) for decorator in cls.decorators)):
            made.parameters = parameters(cls)
