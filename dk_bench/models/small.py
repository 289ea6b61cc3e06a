"""Small ResNet-DW and MobileNet-V2 for small images: about 5 million multiply-adds at 32 x 32.

They are the paper's bases made small, not models of the paper: bottlenecks as in its table 5 (DepthwiseBottleneck) and
MobileNet-V2's blocks, with the stem's strides left out, so that the 3x3 convolutions see maps of 32 to 4 pixels where
the paper's see 56 to 7 of an image of 224.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from torch import nn

from dk_bench.models.pretrained import checked_weights, names_weights, refuse_pretrained
from dk_bench.models.resnetdw import DepthwiseBottleneck, cfg

__all__ = ["BASE_CFGS"]

BASE_CFGS = {
    "small_resnetdw": cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0),
    "small_mobilenetv2": cfg(
        input_size=(3, 32, 32), pool_size=(8, 8), crop_pct=1.0, first_conv="conv_stem", classifier="classifier"
    ),
}
default_cfgs = generate_default_cfgs(BASE_CFGS)


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


@register_model
def small_resnetdw(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """Returns a small ResNet-DW: six bottlenecks on maps of 32, 16, 8 and 4 pixels, depthwise widths 8, 24, 48 and
    96.
    """
    arguments = {"block": DepthwiseBottleneck, "layers": (1, 2, 2, 1), "channels": (4, 12, 24, 48)}
    return _create(SmallResNet, "small_resnetdw", pretrained, arguments | kwargs)


@register_model
def small_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> SmallEfficientNet:
    """Returns a small MobileNet-V2: a separable convolution and five inverted residuals on maps of 32, 16 and 8
    pixels.
    """
    blocks = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e6_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r1_k3_s1_e6_c32"]]
    arguments = {
        "block_args": decode_arch_def(blocks),
        "stem_size": 16,
        "num_features": 128,
        "act_layer": nn.ReLU6,
        "feature_cfg": {"flatten_sequential": True, "out_indices": (0, 1, 2)},
    }
    return _create(SmallEfficientNet, "small_mobilenetv2", pretrained, arguments | kwargs)


def _create(kind: type[nn.Module], name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    if not names_weights(arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay")):
        refuse_pretrained(name, pretrained)
    return build_model_with_cfg(kind, name, pretrained, pretrained_filter_fn=checked_weights, **arguments)
