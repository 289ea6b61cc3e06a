"""deform(): a rigid model and a kernel spec give a model whose convolutions adapt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from dk_bench.models.blocks import block_convolutions, is_depthwise
from dk_bench.models.dilate import dilated_last_stage
from dk_bench.models.probe import output_strides
from dk_bench.models.spec import KernelSpec
from dk_bench.models.variants import MODELS
from dk_bench.nn import CondConv2d, DeformConv2d, DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d, RigidStart2d

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

GENERIC = "dk_deformed"  # timm's name for what `deform` makes where no model of ours is the same base and spec
_NAMES = {(model.base, model.spec): model.name for model in MODELS.values() if not model.spec.is_rigid}

Replace = Callable[[nn.Conv2d], RigidStart2d]


def deform(model: nn.Module, spec: KernelSpec) -> nn.Module:
    """Replaces convolutions of a rigid model as the spec says, in place, and returns the model.

    The model computes what it did before, up to rounding: each new module starts from the state of the convolution in
    its place. So a trained rigid model can be deformed and fine-tuned. 1x1 kernels in a scope, kernels whose taps start
    spread and the experts of conditional convolutions have a random part (drawn from torch's global generator) that
    the function does not show; see :func:`dk_bench.nn.to_scope` and :class:`dk_bench.nn.CondConv2d`.

    What changes (section 4 of Gao et al., ICLR 2020):

    - ``depthwise``: the depthwise convolutions of ``spec.kernel_size``;
    - ``dcn``: those of them with an output stride of at least ``spec.dcn_min_stride``;
    - ``pointwise``: the 1x1 convolutions in the residual blocks, and a 1x1 after the last block (MobileNet-V2's);
      neither the stem's, the classifier's, nor the shortcuts', nor those of squeeze-and-excitation and attention;
    - ``dense_dcn``: the other convolutions in the residual blocks of ``spec.kernel_size``, with an output stride of at
      least ``spec.dense_dcn_min_stride``;
    - ``experts``: the convolutions in the residual blocks that none of the above changes, and that last 1x1.

    ``dilate_last`` comes first and is the exception to keeping the function: see
    :func:`dk_bench.models.dilate.dilated_last_stage`.

    The model is any timm model with convolutions, also one made with ``features_only=True``. Names of existing
    parameters stay; a kernel over a scope has a larger shape. In ``pretrained_cfg`` the model then calls itself by the
    name of ours that is the same base and spec, otherwise ``dk_deformed`` with both as arguments: what timm's
    ``save_for_hf`` writes is made again as it was.

    Args:
        model: a rigid model; changed in place.
        spec: what changes; a rigid spec changes nothing.

    Raises:
        ValueError: the model is deformed already, a part of the spec matches no convolution, or it matches one of a
            kind that cannot change. The model is as it was then.
    """
    if spec.is_rigid:
        return model
    if any(isinstance(module, RigidStart2d) for module in model.modules()):
        raise ValueError(f"model: {type(model).__name__} is deformed already; deform a rigid one")
    strides = output_strides(model) if spec.dcn or spec.dense_dcn or spec.dilate_last else {}
    if not spec.dilate_last:
        return _named(_replace(model, spec, strides), spec)
    with dilated_last_stage(model, strides):  # undone where the rest of the spec is refused
        return _named(_replace(model, spec, strides), spec)


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


def _replace(model: nn.Module, spec: KernelSpec, strides: dict[str, int]) -> nn.Module:
    new: dict[nn.Module, RigidStart2d] = {}
    for name, conv in block_convolutions(model):
        if (replace := _replacement(conv, spec, strides.get(name, 0))) is not None:
            try:
                new[conv] = replace(conv)
            except ValueError as error:
                raise ValueError(f"{name}: cannot be deformed: {error}") from error
    _check_complete(model, spec, list(new.items()))
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):  # not named_children(), which omits a second reference
            if child in new:
                setattr(parent, key, new[child])
    for conv, module in new.items():
        for hooks in _HOOKS:  # the dictionaries themselves, so that handles of the old ones still remove them
            setattr(module, hooks, getattr(conv, hooks))
    return model


def _replacement(conv: nn.Conv2d, spec: KernelSpec, output_stride: int) -> Replace | None:
    """Tells what makes the new module from a convolution in a residual block; None if it stays."""
    of_size = conv.kernel_size == (spec.kernel_size, spec.kernel_size)
    if is_depthwise(conv) and of_size:
        dcn = spec.dcn and output_stride >= spec.dcn_min_stride
        scope = {"scope": spec.scope, "clip": spec.clip, "grid": spec.grid}
        if spec.depthwise == "global":
            return partial(GlobalDeformKernel2d.from_rigid, **scope)
        if spec.depthwise == "local":
            return partial((DeformKernelConv2d if dcn else DeformKernel2d).from_rigid, **scope)
        if dcn:
            return DeformConv2d.from_rigid
    elif of_size and spec.dense_dcn and output_stride >= spec.dense_dcn_min_stride:
        return partial(DeformConv2d.from_rigid, deform_groups=spec.dense_dcn_groups, modulated=spec.dense_dcn == "v2")
    if spec.pointwise and conv.kernel_size == (1, 1):
        return partial(GlobalDeformKernel2d.from_rigid, scope=spec.pointwise_scope, clip=spec.clip)
    if spec.experts:
        return partial(CondConv2d.from_rigid, experts=spec.experts)
    return None


def _check_complete(model: nn.Module, spec: KernelSpec, new: list[tuple[nn.Conv2d, RigidStart2d]]) -> None:
    """Raises ValueError where a part of the spec has changed no convolution."""
    wanted = {
        "depthwise": bool(spec.depthwise),
        "dcn": spec.dcn,
        "dense_dcn": bool(spec.dense_dcn),
        "pointwise": bool(spec.pointwise),
        "experts": bool(spec.experts),
    }
    found = {
        "depthwise": any(
            isinstance(m, (DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d)) and c.kernel_size != (1, 1)
            for c, m in new
        ),
        "dcn": any(isinstance(m, (DeformConv2d, DeformKernelConv2d)) and is_depthwise(c) for c, m in new),
        "dense_dcn": any(isinstance(m, DeformConv2d) and not is_depthwise(c) for c, m in new),
        "pointwise": any(isinstance(m, GlobalDeformKernel2d) and c.kernel_size == (1, 1) for c, m in new),
        "experts": any(isinstance(m, CondConv2d) for _, m in new),
    }
    for part, is_wanted in wanted.items():
        if is_wanted and not found[part]:
            raise ValueError(_nothing_found(model, spec, part))


def _nothing_found(model: nn.Module, spec: KernelSpec, part: str) -> str:
    dense = part == "dense_dcn"
    convs = [conv for _, conv in block_convolutions(model) if is_depthwise(conv) != dense]
    sizes = sorted({conv.kernel_size for conv in convs})
    size = spec.kernel_size
    what = {
        "depthwise": f"depthwise {size}x{size} convolution",
        "dcn": f"depthwise {size}x{size} convolution of output stride {spec.dcn_min_stride} or more",
        "dense_dcn": f"dense {size}x{size} convolution of output stride {spec.dense_dcn_min_stride} or more",
        "pointwise": "1x1 convolution in a block",
        "experts": "convolution in a block",
    }[part]
    kernels = "dense" if dense else "depthwise"
    return f"{part}: {type(model).__name__} has no {what}; its {kernels} kernels have the sizes {sizes or 'none'}"
