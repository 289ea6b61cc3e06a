"""The deformed models as timm entry points: every row of :mod:`dk_bench.models.paper` that is not a rigid base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, get_pretrained_cfg, model_entrypoint, register_model
from torch import nn

from dk_bench.models import resnetdw
from dk_bench.models.deform import deform
from dk_bench.models.paper import MODELS, BenchModel
from dk_bench.models.pretrained import refuse_pretrained

__all__: list[str] = []  # register_model adds the entry points

_BASE_CFGS = {
    **resnetdw.BASE_CFGS, "mobilenetv2_100": resnetdw.cfg(first_conv="conv_stem", classifier="classifier")
}
_DEFORMED = [model for model in MODELS.values() if not model.spec.is_rigid]

default_cfgs = generate_default_cfgs({model.name: _BASE_CFGS[model.base] for model in _DEFORMED})


def _entry_point(model: BenchModel) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        refuse_pretrained(model.name, pretrained)
        pretrained_cfg = pretrained_cfg or get_pretrained_cfg(model.name)
        return deform(model_entrypoint(model.base)(pretrained_cfg=pretrained_cfg, **kwargs), model.spec)

    create.__name__ = create.__qualname__ = model.name
    create.__doc__ = f"{model.base} deformed by {model.spec}."
    create.__test__ = False  # pytest would collect test_* by name
    return create


for _model in _DEFORMED:
    globals()[_model.name] = register_model(_entry_point(_model))
