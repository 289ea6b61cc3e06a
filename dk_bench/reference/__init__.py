"""The specification of the compiled operators in plain PyTorch, written to be read, and checks of their arguments.
Begin with deform_kernel_conv.py.
"""

from dk_bench.reference.deform_kernel_conv import (
    deform_kernel_conv,
    depthwise_conv_per_image,
    hat,
    local_deform_kernel,
    sample_input,
    sample_kernel,
    tap_weights,
)

__all__ = [
    "deform_kernel_conv",
    "depthwise_conv_per_image",
    "hat",
    "local_deform_kernel",
    "sample_input",
    "sample_kernel",
    "tap_weights",
]
