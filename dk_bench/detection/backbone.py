"""One mmdet backbone for every timm model with feature maps, those of dk_bench among them."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import timm
from mmengine.model import BaseModule
from timm.layers import Format, nhwc_to
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dk_bench.classification.timm_models import base_and_spec, build_model, check_name, deform_as_named, kernel_spec
from dk_bench.config import ModelConfig
from dk_bench.errors import UserError, located
from dk_bench.models import deform
from dk_bench.models.features import copy_features, flat, outer_name
from dk_bench.registry import MODELS

log = logging.getLogger(__name__)

FIRST_STRIDE = 4  # of feature pyramids; what comes before a stage of this stride is the stem

# Keys of a classification's configuration -> arguments that say the same.
KEYS = {"model.name": "model_name"} | {f"model.{name}": name for name in ("spec", "checkpoint", "pretrained")}


@contextmanager
def _about_arguments() -> Iterator[None]:
    """Makes a UserError of the block, also one about a classification's configuration, one about our arguments."""
    with located("TimmBackbone"):
        try:
            yield
        except UserError as error:
            error.noun, error.key = "argument", KEYS.get(error.key, error.key)
            raise


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """A timm model as an mmdet backbone: ``dict(type='dk_bench.TimmBackbone', model_name='resnet50dw_dk')``.

    Takes images (N, 3, H, W) and returns a tuple of feature maps (N, C, H / stride, W / stride). ``out_channels`` and
    ``strides``, from timm's ``feature_info``, are lists with an entry a map. MobileNet-V2 gives 24, 32, 96 and 320
    channels at strides 4 to 32: the output of the last block of each resolution.

    Args:
        model_name: timm name; a model that is deformed by its name, or a rigid one.
        out_indices: rising indices into timm's ``feature_info``, which begins with stride 2 in most networks, so that
            (0, 1, 2, 3) of mmdet's ResNet is (1, 2, 3, 4); None: the last map of each stride from 4 on.
        frozen_stages: -1: all learns; 0: the stem does not; n: nor do the first n stages, where stage 1 ends with the
            map of stride 4 and each further one with the last map of the next stride. What is frozen stays in
            evaluation mode.
        norm_eval: keep batch normalisation in evaluation mode, so that running statistics stay as they are. Its
            weights learn all the same.
        checkpoint: weights of a classification model of this name, or of its rigid base, which is then deformed:
            ``last.ckpt`` of a run of ours, an export in timm's hub layout, or what timm's train.py leaves. The
            classifier is left out.
        pretrained: start from timm's weights (of the rigid base). timm downloads them.
        spec: fields of `dk_bench.KernelSpec` that deform the rigid model named.
        init_cfg: as mmengine has it; where it is None, weights are as timm initialises them.
        with_cp: compute stages again in the backward pass instead of keeping what they need (gradient checkpointing).
        kwargs: handed to ``timm.create_model``, as ``output_stride=16`` to dilate the last stage, or
            ``dynamic_img_size=True`` for transformers, which else take images of one size alone.

    Raises UserError for a name timm does not know or that has no feature maps, arguments the model does not take, a
    spec that does not fit, stages there are not, weights named in two ways, and a checkpoint that cannot be read or is
    of another model; the message names keys that do not fit.
    """

    @_about_arguments()
    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        checkpoint: str | None = None,
        pretrained: bool = False,
        spec: Mapping[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        for name, value in {"pretrained": pretrained, "norm_eval": norm_eval, "with_cp": with_cp}.items():
            if not isinstance(value, bool | None):  # any text, ``no`` too, would count as true
                raise UserError("expected True or False", key=name, value=value)
        given = _given_weights(checkpoint=checkpoint, pretrained=pretrained, init_cfg=init_cfg)
        config = ModelConfig(
            model_name, dict(spec) if spec else None, pretrained=bool(pretrained), checkpoint=checkpoint, kwargs=kwargs
        )
        self.model_name, self.norm_eval, self.frozen_stages = model_name, norm_eval, frozen_stages
        self._made_from = (config, _checked_indices(out_indices))
        self.net = _feature_net(*self._made_from)
        self.net.is_init = True  # some timm models have an init_weights(), which mmengine would call after loading
        if with_cp:
            self.net.set_grad_checkpointing()
        maps = self.net.feature_info.get_dicts()
        self._picked = _last_of_each_stride(maps) if out_indices is None else list(range(len(maps)))
        if not self._picked:
            raise UserError(f"{model_name} has no feature map of stride {FIRST_STRIDE} or more")
        self.out_channels = [maps[i]["num_chs"] for i in self._picked]
        self.strides = [maps[i]["reduction"] for i in self._picked]
        if given in ("checkpoint", "pretrained"):
            _load(self.net, config)
        elif given is None and (frozen_stages >= 0 or norm_eval):
            keep = f"of which frozen_stages={frozen_stages} and norm_eval={norm_eval} keep some as they are"
            instead = "set checkpoint or pretrained, unless weights of the whole detector follow"
            log.warning("TimmBackbone: %s starts from random weights, %s; %s", model_name, keep, instead)
        # Names, not modules: a conversion of normalisation layers puts new modules in the place of old ones.
        frozen = _frozen_names(self.net, frozen_stages)
        self._frozen = frozenset(_without_open_ones(self.net, frozen))
        for name in frozen:
            for parameter in self.net.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad = False

    @_about_arguments()
    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Puts weights of the rigid base into the deformed network too. Raises UserError where weights are missing or
        of other shapes: mmengine only prints that, and goes on with those that are random."""
        start, own = f"{prefix}net.", self.net.state_dict()
        held = {name.removeprefix(start): value for name, value in state_dict.items() if name.startswith(start)}
        if wrong := _unfit(held, own):
            if (deformed := _deformed(held, *self._made_from)) is None:
                total = len(_unfit({}, own))
                raise UserError(
                    f"the weights that are loaded have {total - len(wrong)} of the {total} tensors of "
                    f"{self.model_name} (not {', '.join(start + name for name in wrong[:3])}): they are of another "
                    "model, or of no detector; argument 'checkpoint' takes those of a classification run"
                )
            log.warning("TimmBackbone: the weights are of the rigid base of %s, and are deformed", self.model_name)
            state_dict.update({start + name: value for name, value in deformed.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.net(images)
        if getattr(self.net, "output_fmt", Format.NCHW) == Format.NHWC:
            maps = [nhwc_to(one, Format.NCHW) for one in maps]
        return tuple(maps[i] for i in self._picked)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of what is not frozen and, with ``norm_eval``, not batch normalisation."""
        super().train(mode)
        if mode:
            for name, module in self.net.named_modules():
                if name in self._frozen or (self.norm_eval and isinstance(module, _BatchNorm)):
                    module.eval()
        return self


def check_neck(detector: nn.Module) -> None:
    """Raises UserError where the neck of an mmdet detector takes other channels than its TimmBackbone gives."""
    backbone, neck = getattr(detector, "backbone", None), getattr(detector, "neck", None)
    takes = getattr(neck, "in_channels", None)
    if isinstance(backbone, TimmBackbone) and isinstance(takes, list | tuple) and list(takes) != backbone.out_channels:
        maps = f"the channels of {backbone.model_name}'s maps of strides {', '.join(map(str, backbone.strides))}"
        reason = f"expected {backbone.out_channels}, {maps}"
        raise UserError(reason, key="model.neck.in_channels", value=list(takes))


def _given_weights(**sources: Any) -> str | None:
    """Returns the name of the argument that sets the weights, None for none. Raises UserError for two of them."""
    if sources["checkpoint"] == "":
        raise UserError("expected a file or None", key="checkpoint", value="")
    if len(given := [name for name, value in sources.items() if value]) > 1:
        raise UserError(f"arguments {' and '.join(given)} both set weights, expected one of them")
    return given[0] if given else None


def _checked_indices(out_indices: Sequence[int] | None) -> dict[str, Any]:
    """Returns ``out_indices`` as an argument for timm, none for None: rising, as maps come."""
    if out_indices is None:
        return {}
    indices = tuple(out_indices) if isinstance(out_indices, list | tuple) else ()
    rises = all(a < b for a, b in zip(indices, indices[1:], strict=False))
    if not indices or not rises or any(type(i) is not int for i in indices) or indices[0] < 0 <= indices[-1]:
        expected = "expected rising integers, either from 0 or all negative, or None"
        raise UserError(expected, key="out_indices", value=out_indices)
    return {"out_indices": indices}


def _feature_net(config: ModelConfig, indices: dict[str, Any]) -> nn.Module:
    """Returns timm's model that puts out feature maps, deformed as the configuration says, without loaded weights."""
    name, kwargs = config.name, {**config.kwargs, **indices}
    check_name(name)
    spec = kernel_spec(config) if config.spec is not None else None
    try:
        net = timm.create_model(name, features_only=True, **kwargs)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, IndexError) as error:
        made_with, reason = kwargs or "its defaults", " ".join(str(error).split())[:400]
        fault = f"cannot be made with {made_with}, or gives no feature maps: {type(error).__name__} {reason}"
        raise UserError(f"{name} {fault}") from error
    return deform_as_named(net, spec, config) if spec else net


def _load(net: nn.Module, config: ModelConfig) -> None:
    """Copies weights from the classification model that the checkpoint, or timm, gives: a rigid one is deformed first.
    Raises UserError that names the keys which that model does not have, or has in another shape."""
    source = build_model(config, None if config.checkpoint else 0)
    if wrong := copy_features(source, net):
        of = f"weights of {config.name} ({config.checkpoint or 'pretrained'})"
        at = f"at {len(wrong)} keys: {', '.join(wrong[:5])}"
        raise UserError(f"{of} do not fit the network of its feature maps {at}")


def _unfit(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of own tensors that are not held in their shape; counters of normalisation do not count, which
    old files lack and mmengine does not miss."""
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    return [name for name in names if name not in held or held[name].shape != own[name].shape]


def _deformed(held: dict[str, Tensor], config: ModelConfig, indices: dict[str, Any]) -> dict[str, Tensor] | None:
    """Deforms the weights of the rigid base's network; None where they are not that, or the network is not deformed."""
    base, spec = base_and_spec(config)
    if spec is None:
        return None
    rigid = _feature_net(dataclasses.replace(config, name=base, spec=None), indices)
    if _unfit(held, rigid.state_dict()):
        return None
    rigid.load_state_dict(held, strict=False)
    return deform(rigid, spec).state_dict()


def _last_of_each_stride(maps: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the positions of the maps after which the resolution changes, from `FIRST_STRIDE` on."""
    last = {one["reduction"]: i for i, one in enumerate(maps) if one["reduction"] >= FIRST_STRIDE}
    return sorted(last.values())


def _frozen_names(net: nn.Module, stages: int) -> list[str]:
    """Names the modules in the stem and the first ``stages``, in the order of their making, which timm's models keep.

    A stage ends with the module that makes the last map of its stride. What is before the first is the stem: all up to
    the last map of a smaller stride or, where there is none, up to the module of stage 1.
    """
    if type(stages) is not int or stages < -1:
        raise UserError("expected an integer of at least -1", key="frozen_stages", value=stages)
    if stages < 0:
        return []
    info = net.feature_info.info
    ends = [info[i]["module"] for i in _last_of_each_stride(info)]
    if stages > len(ends):
        raise UserError(f"expected at most {len(ends)}, the number of stages", key="frozen_stages", value=stages)
    if stages:
        return _names_until(net, ends[stages - 1], inclusive=True)
    before = [one["module"] for one in info if one["reduction"] < FIRST_STRIDE]
    return _names_until(net, before[-1] if before else ends[0], inclusive=bool(before))


def _without_open_ones(net: nn.Module, frozen: list[str]) -> list[str]:
    """Returns the frozen modules that hold nothing else: not the network, nor what contains all of its blocks."""
    rest = [name for name, _ in net.named_modules() if name not in set(frozen)]
    return [name for name in frozen if name and not any(other.startswith(name + ".") for other in rest)]


def _names_until(net: nn.Module, module: str, *, inclusive: bool) -> list[str]:
    """Returns the names of all modules before one, or up to its end."""
    names = [name for name, _ in net.named_modules()]
    outer = outer_name(net)
    inside = [i for i, name in enumerate(names) if f"{flat(name.removeprefix(outer))}_".startswith(f"{flat(module)}_")]
    if not inside:
        fault = f"cannot be followed: the network has no module {module}, with which a stage ends; set it to -1"
        raise UserError(f"argument 'frozen_stages' {fault}")
    return names[: inside[-1] + 1 if inclusive else inside[0]]
