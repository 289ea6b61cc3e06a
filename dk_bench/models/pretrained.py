"""What ``pretrained=True`` does: it loads weights that the caller names, and says that none are published."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from timm.models import PretrainedCfg, adapt_input_conv, get_pretrained_cfg, load_pretrained
from torch import Tensor, nn

from dk_bench.models.blocks import layers_named
from dk_bench.models.deform import deform
from dk_bench.models.spec import KernelSpec
from dk_bench.models.variants import MODELS

log = logging.getLogger(__name__)

SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # of timm's pretrained_cfg


def names_weights(pretrained_cfg: Any, overlay: dict[str, Any] | None) -> bool:
    """Tells whether timm's ``pretrained_cfg`` or its overlay, which users give, says where weights are."""
    given = dataclasses.asdict(pretrained_cfg) if dataclasses.is_dataclass(pretrained_cfg) else pretrained_cfg
    given = (given if isinstance(given, dict) else {}) | (overlay or {})
    return any(given.get(source) for source in SOURCES)


def check_pretrained(name: str, pretrained: bool, pretrained_cfg: Any, overlay: dict[str, Any] | None) -> None:
    """Raises RuntimeError where weights are asked for that nobody names; it says how to get some all the same."""
    if not pretrained or names_weights(pretrained_cfg, overlay):
        return
    hint = "Load weights of your own with timm.create_model(..., num_classes=..., checkpoint_path=...)."
    model = MODELS.get(name)
    if model and not model.spec.is_rigid:
        arguments = ", ".join(f"{key}={value!r}" for key, value in model.spec.changed().items())
        published = get_pretrained_cfg(model.base).has_weights
        weights = "pretrained=True" if published else "num_classes=..., checkpoint_path=..."
        hint += (
            " Or deform a trained rigid model, which keeps what it computes, and fine-tune it: "
            f"dk_bench.deform(timm.create_model({model.base!r}, {weights}), dk_bench.KernelSpec({arguments}))"
        )
    raise RuntimeError(f"{name}: no pretrained weights are published. {hint}")


def load_deformed(
    model: nn.Module, cfg: PretrainedCfg, spec: KernelSpec, rigid: Callable[..., nn.Module], in_chans: int, cache: Any
) -> None:
    """Loads the weights that ``cfg`` names, as timm does, into a whole deformed model, classifier and stem adapted.

    Weights of the rigid base are deformed first. ``rigid`` makes it: ``rigid(num_classes=..., in_chans=...)``. Raises
    RuntimeError for weights of neither.
    """

    def fitted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        names = model.pretrained_cfg
        if not is_of(state, model) and (classes := classes_of(state, names)) is not None:
            source = rigid(num_classes=classes, in_chans=_size(state, names, "first_conv", 1) or in_chans)
            if is_of(state, source):
                source.load_state_dict(state)
                state = deform(source, spec).state_dict()
                log.warning("%s: the weights are of its rigid base, and are deformed", names["architecture"])
        return checked_weights(state, model)

    settings = model.pretrained_cfg | {"state_dict": cfg.state_dict}
    model.pretrained_cfg = model.default_cfg = settings  # one dict: what `checked_weights` sets, timm reads
    load_pretrained(model, settings, model.num_classes, in_chans, filter_fn=fitted, cache_dir=cache)
    settings.pop("state_dict")


def checked_weights(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Lets weights through that are the model's, all of them: timm's ``pretrained_filter_fn`` of our models.

    Where the number of classes changes timm loads what it finds, and leaves the rest random without a word. It takes
    the number in ``pretrained_cfg`` for that of the weights, too, and so drops a classifier that fits; so the number is
    set to that of the weights here. Raises RuntimeError for names that the weights lack, or have beside the model's,
    but for the classifier's.
    """
    cfg = model.pretrained_cfg
    own, held = (_names(names, cfg) for names in (model.state_dict(), state))
    if own != held:
        lacking, further = (", ".join(sorted(names)[:3]) or "none" for names in (own - held, held - own))
        raise RuntimeError(
            f"{cfg['architecture']}: the weights are of another model: {len(own - held)} of its {len(own)} are missing "
            f"({lacking}), {len(held - own)} are not its ({further})"
        )
    if classes_of(state, cfg) == model.num_classes:
        cfg["num_classes"] = model.num_classes
    return dict(state) | _adapted_generators(state, model)


def _adapted_generators(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of the first convolution's offset generators, if it is deformed, for the model's number of
    input channels, as timm adapts the convolution's own, which it knows."""
    own, cfg = model.state_dict(), model.pretrained_cfg
    convs = {f"{name}.weight" for name in layers_named(cfg, "first_conv")}
    adapted = {}
    for name in _weights_on_input(own, cfg) - convs:
        held, shape = state[name], own[name].shape
        flat = held.reshape(*held.shape, *(1,) * (4 - held.dim()))  # linear layers as 1x1 convolutions
        adapted[name] = adapt_input_conv(shape[1], flat, base_chans=held.shape[1]).reshape(shape)
    return adapted


def is_of(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Tells whether weights are a timm model's in names and shapes, for any number of classes and input channels."""
    cfg = model.pretrained_cfg
    own = model.state_dict()
    free = _weights_on_input(own, cfg)
    names = _names(own, cfg)
    return _names(state, cfg) == names and all(state[name].shape == own[name].shape for name in names - free)


def _names(state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> set[str]:
    """Returns names of weights, but the classifier's and the counters of normalisation, which old files lack."""
    heads = tuple(f"{name}." for name in layers_named(cfg, "classifier"))
    return {name for name in state if not name.startswith(heads) and not name.endswith("num_batches_tracked")}


def _weights_on_input(names: Iterable[str], cfg: Mapping[str, Any]) -> set[str]:
    """Returns the weights that have an axis of input channels: the first convolution's, and its generators'."""
    first = tuple(f"{name}." for name in layers_named(cfg, "first_conv"))
    return {name for name in names if name.startswith(first) and name.endswith(".weight")}


def classes_of(state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> int | None:
    """Tells how many classes weights tell apart, by timm's ``pretrained_cfg``; None where it names no classifier."""
    return _size(state, cfg, "classifier", 0)


def _size(state: Mapping[str, Tensor], cfg: Mapping[str, Any], key: str, axis: int) -> int | None:
    """Returns the size along an axis of the weight of the first layer that timm's ``pretrained_cfg`` names so."""
    weight = next((state.get(f"{name}.weight") for name in layers_named(cfg, key)), None)
    return None if weight is None else weight.shape[axis]
