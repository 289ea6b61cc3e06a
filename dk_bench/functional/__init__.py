"""The operators as functions, compiled (C++, CUDA); semantics are those of :mod:`dk_bench.reference`. Begin with
__init__.py, which has three of the functions; registration.py says how torch treats the operators.

They have derivatives of every kind (reverse and forward mode, ``torch.func``, ``vmap``, any order; see Derivatives in
docs/operators.md) and work under ``torch.compile``, autocast and fake tensors.
"""

from dk_bench.functional import depthwise_conv_per_image, flops, narrow_conv  # noqa: F401  (registers them with torch)
from dk_bench.functional.deform_kernel_conv import deform_kernel_conv, local_deform_kernel
from dk_bench.functional.deform_roi_pool import deform_roi_pool
from dk_bench.functional.dense_deform_kernel import dense_deform_kernel
from dk_bench.functional.sample_kernel import sample_kernel
from dk_bench.functional.scope_unfold import scope_unfold

__all__ = [
    "deform_kernel_conv",
    "deform_roi_pool",
    "dense_deform_kernel",
    "local_deform_kernel",
    "sample_kernel",
    "scope_unfold",
]
