"""The global deformable kernel as a function: a matrix product, so that plain PyTorch is the fast way."""

import torch
from torch import Tensor

from dk_bench.reference import sample_kernel as _sample_kernel
from dk_bench.reference.checks import IntPair

torch.fx.wrap("_sample_kernel")  # its checks look at shapes: symbolic tracing keeps it as a call


def sample_kernel(weight: Tensor, kernel_offset: Tensor, *, kernel_size: IntPair, clip: bool = True) -> Tensor:
    """Samples a kernel for every image: the global deformable kernel (Gao et al., ICLR 2020, section 3.3).

    Arguments, result and errors are those of :func:`dk_bench.reference.sample_kernel`: weight (Cout, Cin / groups, Sh,
    Sw) and kernel_offset (N, 2 * Kh * Kw) to (N, Cout, Cin / groups, Kh, Kw) in weight's dtype.
    """
    return _sample_kernel(weight, kernel_offset, kernel_size=kernel_size, clip=clip)
