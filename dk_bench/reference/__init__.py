"""The specification of the operators: plain PyTorch, written to be read, with their arguments' checks.

Begin with deform_kernel_conv.py.
"""

from dk_bench.reference.deform_kernel_conv import deform_kernel_conv, local_deform_kernel, sample_input
from dk_bench.reference.deform_roi_pool import RoISettings, deform_roi_pool
from dk_bench.reference.depthwise_conv_per_image import depthwise_conv_per_image
from dk_bench.reference.sample_kernel import hat, sample_kernel, tap_weights

__all__ = [
    "RoISettings",
    "deform_kernel_conv",
    "deform_roi_pool",
    "depthwise_conv_per_image",
    "hat",
    "local_deform_kernel",
    "sample_input",
    "sample_kernel",
    "tap_weights",
]
