"""Tells timm's symbolic tracing (torch.fx) to keep our layers whole, as it keeps its own CondConv.

Without that the layers trace too, function by function, but the offset generators, whose class marks the parameters
that learn more slowly, dissolve.
"""

from __future__ import annotations

from timm.models import register_notrace_module

from dk_bench import nn

for _layer in (
    nn.CondConv2d,
    nn.DeformConv2d,
    nn.DeformKernel2d,
    nn.DeformKernelConv2d,
    nn.DeformRoIPool,
    nn.GlobalDeformKernel2d,
):
    register_notrace_module(_layer)
