"""The deformed models as timm entry points: every row of :mod:`dk_bench.models.variants` that is not a rigid base, and
``dk_deformed``, by which any other model that `deform` made is made again."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import timm.models
from timm.models import get_pretrained_cfg, register_model, register_notrace_module
from torch import nn

from dk_bench import nn as layers
from dk_bench.models.bases import BASE_CFGS
from dk_bench.models.deform import GENERIC, deform
from dk_bench.models.features import copy_features
from dk_bench.models.pretrained import check_pretrained, load_deformed
from dk_bench.models.spec import KernelSpec
from dk_bench.models.variants import MODELS, Variant

_DEFORMED = [model for model in MODELS.values() if not model.spec.is_rigid]
_OF_FEATURES = ("features_only", "out_indices", "feature_cls", "feature_cfg", "output_fmt")  # arguments for maps alone

default_cfgs = timm.models.generate_default_cfgs({model.name: BASE_CFGS[model.base] for model in _DEFORMED})

# timm's symbolic tracing (torch.fx) keeps our layers whole, as it keeps its own CondConv. Without that they trace too,
# function by function, but the offset generators, whose class marks what learns more slowly, dissolve.
for _layer in vars(layers).values():
    if isinstance(_layer, type) and issubclass(_layer, layers.RigidStart2d | layers.DeformRoIPool):
        register_notrace_module(_layer)


def _create(
    name: str,
    base: str,
    spec: KernelSpec,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Makes a rigid base of timm's, deformed, with weights where timm's arguments name some: its own or the base's."""
    check_pretrained(name, pretrained, pretrained_cfg, pretrained_cfg_overlay)
    cfg = timm.models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    if known := get_pretrained_cfg(base):  # a cfg of the caller's own may leave out what deform() must know
        layers = {key: getattr(cfg, key) or getattr(known, key) for key in ("first_conv", "classifier")}
        cfg = dataclasses.replace(cfg, **layers)
    rigid_cfg = dataclasses.replace(cfg, architecture=base, state_dict=None)  # deform() changes the name
    rigid = partial(timm.models.model_entrypoint(base), pretrained_cfg=rigid_cfg)
    model = deform(rigid(**kwargs), spec)
    if not pretrained:
        return model
    whole = {key: value for key, value in kwargs.items() if key not in _OF_FEATURES}
    source = deform(rigid(**whole | {"num_classes": 0}), spec) if kwargs.get("features_only") else model
    load_deformed(source, cfg, spec, partial(rigid, **whole), kwargs.get("in_chans", cfg.input_size[0]), cache_dir)
    if source is not model and (wrong := copy_features(source, model)):
        raise RuntimeError(f"{name}: the network of feature maps has other weights: {', '.join(wrong[:5])}")
    return model


def _entry_point(model: Variant) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(model.name, model.base, model.spec, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = model.name
    create.__doc__ = f"{model.base} deformed by {model.spec}."
    create.__test__ = False  # pytest would collect test_* by name
    return create


for _model in _DEFORMED:
    globals()[_model.name] = register_model(_entry_point(_model))


@register_model
def dk_deformed(
    pretrained: bool = False,
    base: str = "",
    spec: dict[str, Any] | None = None,
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Makes the timm model ``base`` deformed by ``spec``, fields of `KernelSpec`: what `deform` makes where no name
    of ours says it. timm's ``save_for_hf`` writes both, so that the model is made again from what it wrote. Raises
    ValueError where timm does not know the base, or the spec says nothing or does not fit it."""
    if not timm.models.is_model(base):
        raise ValueError(f"base: expected the name of a rigid model that timm knows, got {base!r}")
    made = KernelSpec.from_dict(spec or {})
    if made.is_rigid:
        raise ValueError(f"spec: expected fields of KernelSpec that deform {base}, got {spec!r}")
    pretrained_cfg = pretrained_cfg or dataclasses.replace(
        get_pretrained_cfg(base), architecture=GENERIC, **dict.fromkeys(("url", "file", "hf_hub_id", "tag"))
    )
    return _create(GENERIC, base, made, pretrained, pretrained_cfg, **kwargs)
