"""Networks of feature maps (``features_only=True``) beside the whole model that they are a part of."""

import torch
from torch import nn


@torch.no_grad()
def copy_features(whole: nn.Module, net: nn.Module) -> list[str]:
    """Copies the whole model's weights into a network of its feature maps. Returns the names of those of the network
    that the whole model lacks or has in another shape; the others are copied.

    timm's networks flatten "features.conv0" to "features_conv0", and may hold the whole model as "model" or "body".
    """
    held = {flat(name): value for name, value in whole.state_dict().items()}
    outer, wrong = outer_name(net), []
    for name, value in net.state_dict().items():
        new = held.get(flat(name.removeprefix(outer)))
        if new is not None and new.shape == value.shape:
            value.copy_(new)
        else:
            wrong.append(name)
    return wrong


def outer_name(net: nn.Module) -> str:
    """Tells what stands before the whole model's names in those of a network of feature maps."""
    (first, *more) = net._modules
    return f"{first}." if not more and first in ("model", "body") else ""


def flat(name: str) -> str:
    """Returns a name as timm's networks of feature maps have it."""
    return name.replace(".", "_")
