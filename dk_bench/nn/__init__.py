"""Layers: convolutions that adapt at run time, each of which starts as the rigid one that it replaces. Begin with
deform_kernel.py; base.py has what all of them share."""

from dk_bench.nn.base import RigidStart2d
from dk_bench.nn.cond_conv import CondConv2d
from dk_bench.nn.deform_conv import DeformConv2d
from dk_bench.nn.deform_kernel import DeformKernel2d, DeformKernelConv2d, GlobalDeformKernel2d, LocalDeformKernel2d
from dk_bench.nn.deform_roi_pool import DeformRoIPool, RoIOffsetHead
from dk_bench.nn.offsets import GlobalOffset, LocalMask, LocalOffset, OffsetGenerator, RoIOffset, offset_parameter_names
from dk_bench.nn.scope import to_scope

__all__ = [
    "CondConv2d",
    "DeformConv2d",
    "DeformKernel2d",
    "DeformKernelConv2d",
    "DeformRoIPool",
    "GlobalDeformKernel2d",
    "GlobalOffset",
    "LocalDeformKernel2d",
    "LocalMask",
    "LocalOffset",
    "OffsetGenerator",
    "RigidStart2d",
    "RoIOffset",
    "RoIOffsetHead",
    "offset_parameter_names",
    "to_scope",
]
