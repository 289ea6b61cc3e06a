"""What the tests of ONNX and of torch's own graphs share."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

from dk_bench.nn import CondConv2d, OffsetGenerator

BATCH = {0: Dim("batch")}


def moved(model: nn.Module) -> nn.Module:
    """The model in evaluation with offsets and routing that depend on the image."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, OffsetGenerator) or (isinstance(part, CondConv2d) and (part := part.routing)):
            nn.init.normal_(part.weight, std=0.1)
            nn.init.normal_(part.bias, std=0.3)
    return model.eval()
