"""The rigid bases as timm entry points: the paper's ResNet-50-DW (Gao et al., ICLR 2020, section 4.1), small ones.

``small_resnetdw`` and ``small_mobilenetv2`` are the paper's bases made small for images of 32 x 32, about 5 million
multiply-adds, and not models of the paper: bottlenecks as in its table 5, MobileNet-V2's blocks, and a stem without
strides, so that the 3x3 convolutions see maps of 32 to 4 pixels where the paper's see 56 to 7 of an image of 224.
``small_resnet`` is an ordinary ResNet of that kind, of 8 million. ``test_resnetdw`` is a tiny one, for tests and the
demo.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from dk_bench.models.pretrained import check_pretrained, checked_weights

# timm's description of a model's input and names, with the paper's evaluation: resize to 256, crop 224.
_RESNET = {
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
}
_MOBILENET = _RESNET | {"first_conv": "conv_stem", "classifier": "classifier"}
_SMALL = {"input_size": (3, 32, 32), "crop_pct": 1.0}
_TINY = {"input_size": (3, 96, 96), "pool_size": (3, 3), "first_conv": "conv1.0"}
_OURS = {
    "resnet50dw": _RESNET,
    "test_resnetdw": _RESNET | _TINY,
    "small_resnetdw": _RESNET | _SMALL | {"pool_size": (4, 4)},
    "small_resnet": _RESNET | _SMALL | {"pool_size": (4, 4)},
    "small_mobilenetv2": _MOBILENET | _SMALL | {"pool_size": (8, 8)},
}
# timm's own models; what this describes of ours are the deformed ones.
_TIMMS = {
    "mobilenetv2_100": _MOBILENET,
    "resnet50": _RESNET,
    "test_resnet": _RESNET | _TINY | {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD},
}
BASE_CFGS = _OURS | _TIMMS
default_cfgs = generate_default_cfgs(_OURS)


class DepthwiseBottleneck(Bottleneck):
    """timm's bottleneck, twice as wide inside, with a depthwise 3x3, which also carries the stride. The doubled width
    makes up for the parameters that the dense 3x3 had."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        # timm's width is planes * base_width / 64 * cardinality, and cardinality the 3x3's number of groups
        kwargs.update(cardinality=2 * planes, base_width=64 / planes)
        super().__init__(inplanes, planes, *args, **kwargs)


class SmallResNet(ResNet):
    """timm's ResNet, whose stem is one 3x3 convolution of stride 1: strides are a quarter of ResNet's."""

    def __init__(self, *args: Any, in_chans: int = 3, stem_width: int = 16, **kwargs: Any) -> None:
        # A deep stem alone lets timm choose the width, twice that of the stem's first layers.
        super().__init__(*args, in_chans=in_chans, stem_type="deep", stem_width=stem_width // 2, **kwargs)
        made = {name: kwargs.get(name) for name in ("device", "dtype")}
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False, **made)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm does it
        self.maxpool = nn.Identity()
        for info in self.feature_info:
            info["reduction"] = max(1, info["reduction"] // 4)


class SmallEfficientNet(EfficientNet):
    """timm's EfficientNet, the class of its MobileNet-V2, with a stem of stride 1: strides are half of the others'."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_stem.stride = (1, 1)
        for info in self.feature_info:
            info["reduction"] //= 2


def _create(kind: type[nn.Module], name: str, pretrained: bool, given: dict[str, Any], **arguments: Any) -> Any:
    """Makes a model as timm does, from its arguments and what the caller gives besides or in their place."""
    check_pretrained(name, pretrained, given.get("pretrained_cfg"), given.get("pretrained_cfg_overlay"))
    return build_model_with_cfg(kind, name, pretrained, pretrained_filter_fn=checked_weights, **(arguments | given))


@register_model
def resnet50dw(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Makes ResNet-50-DW, rigid: 23.68 M parameters. The base of the paper's deformable models."""
    return _create(ResNet, "resnet50dw", pretrained, kwargs, block=DepthwiseBottleneck, layers=(3, 4, 6, 3))


@register_model
def test_resnetdw(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Makes a tiny ResNet-DW: one block a stage, depthwise widths 16, 32, 64 and 128."""
    size = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64), "stem_type": "deep", "stem_width": 8}
    return _create(ResNet, "test_resnetdw", pretrained, kwargs, block=DepthwiseBottleneck, **size)


test_resnetdw.__test__ = False  # pytest would collect it by its name


@register_model
def small_resnetdw(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """Makes a small ResNet-DW: six bottlenecks on maps of 32 to 4 pixels, depthwise widths 8, 24, 48 and 96."""
    size = {"layers": (1, 2, 2, 1), "channels": (4, 12, 24, 48)}
    return _create(SmallResNet, "small_resnetdw", pretrained, kwargs, block=DepthwiseBottleneck, **size)


@register_model
def small_resnet(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """Makes a small ResNet of dense 3x3 convolutions: four basic blocks on maps of 32 to 4 pixels, 16 to 64 channels.
    Its widths are multiples of 16, as vectors of compiled kernels are."""
    size = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 64)}
    return _create(SmallResNet, "small_resnet", pretrained, kwargs, block=BasicBlock, **size)


@register_model
def small_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> SmallEfficientNet:
    """Makes a small MobileNet-V2: a separable convolution, five inverted residuals, maps of 32, 16 and 8 pixels."""
    blocks = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e6_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r1_k3_s1_e6_c32"]]
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2)}
    size = {"block_args": decode_arch_def(blocks), "stem_size": 16, "num_features": 128, "feature_cfg": features}
    return _create(SmallEfficientNet, "small_mobilenetv2", pretrained, kwargs, act_layer=nn.ReLU6, **size)
