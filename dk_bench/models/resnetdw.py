"""ResNet-50-DW: the paper's ResNet-50 with depthwise 3x3 convolutions (Gao et al., ICLR 2020, section 4.1)."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet

from dk_bench.models.pretrained import checked_weights, names_weights, refuse_pretrained

__all__ = ["BASE_CFGS", "DepthwiseBottleneck", "cfg"]


class DepthwiseBottleneck(Bottleneck):
    """timm's bottleneck, twice as wide inside, with a depthwise 3x3, which also carries the stride.

    The doubled width makes up for the parameters that the dense 3x3 had.
    """

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        # timm's width is planes * base_width / 64 * cardinality, and cardinality the 3x3's number of groups
        kwargs.update(cardinality=2 * planes, base_width=64 / planes)
        super().__init__(inplanes, planes, *args, **kwargs)


def cfg(**changes: Any) -> dict[str, Any]:
    """timm's description of a model's input and names, with the paper's evaluation: resize to 256, crop 224."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **changes,
    }


BASE_CFGS = {"resnet50dw": cfg(), "test_resnetdw": cfg(input_size=(3, 96, 96), pool_size=(3, 3), first_conv="conv1.0")}
default_cfgs = generate_default_cfgs(BASE_CFGS)


@register_model
def resnet50dw(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50-DW, rigid: 23.68 M parameters. The base of the paper's deformable models."""
    return _create("resnet50dw", pretrained, {"layers": (3, 4, 6, 3)}, kwargs)


@register_model
def test_resnetdw(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Returns a tiny ResNet-DW for tests and the demo: one block a stage, depthwise widths 16, 32, 64 and 128."""
    arguments = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_type": "deep", "stem_width": 8}
    return _create("test_resnetdw", pretrained, arguments, kwargs)


test_resnetdw.__test__ = False  # pytest would collect it by its name


def _create(name: str, pretrained: bool, arguments: dict[str, Any], kwargs: dict[str, Any]) -> ResNet:
    if not names_weights(kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")):
        refuse_pretrained(name, pretrained)
    return build_model_with_cfg(
        ResNet,
        name,
        pretrained,
        pretrained_filter_fn=checked_weights,
        block=DepthwiseBottleneck,
        **{**arguments, **kwargs},
    )
