"""Tells timm's symbolic tracing (torch.fx) to keep our layers whole, as it keeps its own CondConv.

Without that the layers trace too, function by function, but the offset generators, whose class marks the parameters
that learn more slowly, dissolve.
"""

from timm.models import register_notrace_module

from dk_bench import nn

for _name in nn.__all__:
    _layer = getattr(nn, _name)
    if isinstance(_layer, type) and issubclass(_layer, nn.RigidStart2d | nn.DeformRoIPool):
        register_notrace_module(_layer)
