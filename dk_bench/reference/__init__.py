"""The specification of the operators: plain PyTorch, written to be read, with their arguments' checks.

Begin with deform_kernel_conv.py.
"""

from dk_bench.reference.deform_kernel_conv import deform_kernel_conv, local_deform_kernel, sample_input
from dk_bench.reference.deform_roi_pool import RoISettings, deform_roi_pool
from dk_bench.reference.dense_deform_kernel import dense_deform_kernel
from dk_bench.reference.depthwise_conv_per_image import depthwise_conv_per_image
from dk_bench.reference.sample_kernel import hat, sample_kernel, tap_weights
from dk_bench.reference.scope_unfold import scope_unfold

__all__ = [
    "RoISettings",
    "deform_kernel_conv",
    "deform_roi_pool",
    "dense_deform_kernel",
    "depthwise_conv_per_image",
    "hat",
    "local_deform_kernel",
    "sample_input",
    "sample_kernel",
    "scope_unfold",
    "tap_weights",
]
