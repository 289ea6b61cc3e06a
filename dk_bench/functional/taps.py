"""What each tap of a rigid convolution reads, as views of the padded input."""

import torch.nn.functional as F
from torch import Tensor

from dk_bench.reference.checks import Pair, output_size


def tap_views(input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> list[Tensor]:
    """Returns one (N, C, Hout, Wout) view a tap, row-major, of the input (N, C, H, W) with its zeros around it.

    Neither the number of views nor their making depends on N, H or W, so that exported and compiled graphs may leave
    all three open. Raises ValueError where the kernel does not fit into the padded input.
    """
    height, width = output_size(tuple(input.shape[2:]), kernel_size, stride, padding, dilation)
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else input
    views = []
    for i in range(kernel_size[0]):
        top = i * dilation[0]
        rows = padded[:, :, top : top + (height - 1) * stride[0] + 1 : stride[0]]
        for j in range(kernel_size[1]):
            left = j * dilation[1]
            views.append(rows[:, :, :, left : left + (width - 1) * stride[1] + 1 : stride[1]])
    return views
