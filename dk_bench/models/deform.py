"""deform(): a rigid model and a kernel spec give a model whose convolutions adapt."""

import logging
from contextlib import nullcontext

from torch import nn

from dk_bench.models.dilate import dilated_last_stage
from dk_bench.models.matching import check_all_parts_match, match, needs_strides
from dk_bench.models.probe import output_strides
from dk_bench.models.spec import KernelSpec
from dk_bench.models.variants import MODELS
from dk_bench.nn import RigidStart2d

log = logging.getLogger(__name__)

_HOOKS = (
    "_forward_hooks _forward_hooks_with_kwargs _forward_hooks_always_called _forward_pre_hooks "
    "_forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks".split()
)

GENERIC = "dk_deformed"  # timm's name for what `deform` makes where no model of ours is the same base and spec
_NAMES = {(model.base, model.spec): model.name for model in MODELS.values() if not model.spec.is_rigid}


def deform(model: nn.Module, spec: KernelSpec) -> nn.Module:
    """Replaces convolutions of a rigid model as the spec says, in place, and returns it; a rigid spec changes nothing.

    The model computes what it did before, up to rounding: each new module starts from the state of the convolution in
    its place. So a trained rigid model can be deformed and fine-tuned. 1x1 kernels in a scope, kernels whose taps start
    spread and the experts of conditional convolutions have a random part (drawn from torch's global generator) that
    the function does not show; see :func:`dk_bench.nn.to_scope` and :class:`dk_bench.nn.CondConv2d`.

    The fields of :class:`KernelSpec` say what changes (section 4 of the paper). Convolutions in the residual blocks are
    those of their main path, and those between the last block and the classifier (MobileNet-V2's last 1x1): not the
    stem's or the shortcuts', which ``everywhere`` adds, nor the classifier's and those of squeeze-and-excitation and
    attention. Where several fields ask for one convolution, the first of :data:`dk_bench.models.rules.RULES` decides.
    :func:`dk_bench.models.outcomes_of` tells what that comes to; a warning is logged of fields that are set without
    effect, as ``scope`` is where 1x1 kernels alone change. ``dilate_last`` comes before and alone changes the
    function: see :func:`dk_bench.models.dilate.dilated_last_stage`.

    The model is any timm model with convolutions, also one made with ``features_only=True``. Names of existing
    parameters stay; a kernel over a scope has a larger shape. In ``pretrained_cfg`` the model then calls itself by the
    name of ours that is the same base and spec, otherwise ``dk_deformed`` with both as arguments: what timm's
    ``save_for_hf`` writes is made again as it was.

    Raises:
        ValueError: the model is deformed already, a part of the spec matches no convolution, or it matches one of a
            kind that cannot change. The model is as it was then.
    """
    for name, value in spec.unread().items():
        log.warning("KernelSpec: %s=%r has no effect without %s", name, value, " or ".join(spec.READ_BY[name]))
    if spec.is_rigid:
        return model
    if any(isinstance(module, RigidStart2d) for module in model.modules()):
        raise ValueError(f"model: {type(model).__name__} is deformed already; deform a rigid one")
    strides = output_strides(model) if needs_strides(spec) else {}
    # A dilated stage is undone where the rest of the spec is refused.
    with dilated_last_stage(model, strides) if spec.dilate_last else nullcontext():
        _replace(model, _layers(model, spec, strides))
    return _named(model, spec)


def _named(model: nn.Module, spec: KernelSpec) -> nn.Module:
    """Returns the model, which tells timm what it is now."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not (base := cfg.get("architecture")):  # no timm model
        return model
    if (name := _NAMES.get((base, spec))) is None:
        name = GENERIC
        made_with = getattr(model, "_model_args", {})  # what timm made the base with, and writes down
        model._model_args = {**made_with, "base": base, "spec": spec.to_dict()}
    model.pretrained_cfg = model.default_cfg = {**cfg, "architecture": name}
    return model


def _replace(model: nn.Module, new: dict[nn.Module, RigidStart2d]) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):  # not named_children(), which omits a second reference
            if child in new:
                setattr(parent, key, new[child])
    for conv, module in new.items():
        for hooks in _HOOKS:  # the dictionaries themselves, so that handles of the old ones still remove them
            setattr(module, hooks, getattr(conv, hooks))


def _layers(model: nn.Module, spec: KernelSpec, strides: dict[str, int]) -> dict[nn.Module, RigidStart2d]:
    """Returns the convolutions that change, each with what takes its place. Raises ValueError where one cannot change,
    or a part of the spec changes none."""
    found = match(model, spec, strides)
    check_all_parts_match(model, spec, found)
    new: dict[nn.Module, RigidStart2d] = {}
    for each in found:
        if each.rule is None:
            continue
        try:
            new[each.conv] = each.rule.make(each.conv, spec)
        except ValueError as error:
            raise ValueError(f"{each.name}: cannot be deformed: {error}") from error
    return new
