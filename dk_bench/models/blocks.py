"""Finds the convolutions of a timm model, and tells the residual blocks' main path from what lies off it."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from dk_bench.nn import RigidStart2d
from dk_bench.nn.convolution import is_depthwise

BLOCK = "block"  # the blocks' main path, and what is between the last block and the classifier
STEM, SHORTCUT, ATTENTION, CLASSIFIER = "stem", "shortcut", "attention", "classifier"
# Parts of module names in timm by the place they tell, the first that is there: squeeze and excitation or attention
# inside a block; a convolutional head's hidden layers; projections of the shortcut, and what halves a map between
# stages. Patch embeddings are stems.
_NAMES = {
    ATTENTION: frozenset("se se_module attn attn_last attn_layer self_attn context_module sa ca gca".split()),
    CLASSIFIER: frozenset(["pre_logits"]),
    SHORTCUT: frozenset("downsample shortcut skip short_conv down".split()),
}
# Where no name tells it: convolutions that weigh channels, by the class of timm's that they are right inside of.
_WEIGHING = {"EffectiveSEModule": ("fc",), "EseModule": ("conv",), "SplitAttn": ("fc1", "fc2")}
_STEM_NAMES = ("stem", "patch_embed")  # how the part before the first block begins, wherever a backbone is nested


def placed_convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields names, convolutions, rigid or ours, and where they are: `BLOCK`, `STEM`, `SHORTCUT` (projections of
    shortcuts, and what stands between two stages), `ATTENTION` (and squeeze and excitation) or `CLASSIFIER`. timm's
    metadata name the first convolution and the classifier; :func:`_stem` says what else is in front."""
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | RigidStart2d)}
    cfg = getattr(model, "pretrained_cfg", None) or {}
    stem, classifiers = _stem(model, convs, layers_named(cfg, "first_conv")), layers_named(cfg, "classifier")
    for name, conv in convs.items():
        parts = name.split(".")
        # A backbone inside a patch embedding (hybrid transformers) has a stem and blocks of its own.
        inner = parts[parts.index("backbone") + 1 :] if "backbone" in parts else parts
        if any(part.startswith(_STEM_NAMES) for part in inner) or any(_is_inside(name, each) for each in stem):
            yield name, conv, STEM
        elif any(_is_inside(name, each) for each in classifiers):
            yield name, conv, CLASSIFIER
        elif parts[-1] in _WEIGHING.get(type(model.get_submodule(name.rpartition(".")[0])).__name__, ()):
            yield name, conv, ATTENTION
        else:
            yield name, conv, next((place for place, names in _NAMES.items() if not names.isdisjoint(parts)), BLOCK)


def block_convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields names and convolutions on the blocks' main path, and between the last block and the classifier."""
    return ((name, conv) for name, conv, place in placed_convolutions(model) if place == BLOCK)


def layers_named(cfg: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns the layers that ``first_conv`` or ``classifier`` of timm's ``pretrained_cfg`` names, none to several."""
    names = cfg.get(key)
    return (names,) if isinstance(names, str) else tuple(names or ())


def _is_inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def _stem(model: nn.Module, convs: dict[str, nn.Module], first: tuple[str, ...]) -> set[str]:
    """Returns the names of the modules that the stem consists of.

    It is the outermost module around the first convolution that does not hold most of the model's convolutions:
    ResNet's deep ``conv1``, but DenseNet's ``features.conv0``, as ``features`` has the blocks too. Modules with one
    convolution each that come between it and the first block are the stem's as well (``conv2`` of HRNet).
    """
    if first and not set(first) & convs.keys():  # features_only=True may rename what the metadata name
        first = tuple(convs)[:1]
    stem: set[str] = set()
    for name in set(first) & convs.keys():
        around = itertools.accumulate(name.split("."), "{}.{}".format)  # what holds it, the outermost first
        small = (module for module in around if 2 * sum(_is_inside(conv, module) for conv in convs) <= len(convs))
        start = next(small, name)
        stem |= {start, *_single_convolutions_after(model, convs, start)}
    return stem


def _single_convolutions_after(model: nn.Module, convs: dict[str, nn.Module], start: str) -> set[str]:
    """Returns the modules right after ``start`` with one dense convolution; none where no block follows, as in VGG."""
    parent, _, key = start.rpartition(".")
    children = [f"{parent}.{child}" if parent else child for child, _ in model.get_submodule(parent).named_children()]
    found: set[str] = set()
    for child in children[children.index(start) + 1 :]:
        inside = [conv for name, conv in convs.items() if _is_inside(name, child)]
        if len(inside) > 1 or any(conv.groups > 1 and is_depthwise(conv) for conv in inside):
            return found
        found.update([child] if inside else [])
    return set()
