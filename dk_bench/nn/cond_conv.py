"""Conditional convolution (CondConv, Yang et al., NeurIPS 2019), the paper's strong baseline "SCC"."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dk_bench.nn.base import RigidStart2d, add_bias
from dk_bench.nn.convolution import Convolution, takes_convolution
from dk_bench.nn.per_image import conv2d_per_image, global_average, is_kept

for _step in ("_convolve", "global_average"):
    torch.fx.wrap(_step)


class CondConv2d(RigidStart2d):
    """Every image mixes its own kernel from several experts: W(x) = sum over e of sigmoid(route(pool(x)))_e W_e.

    The routing starts at zero, so that every expert has the weight 1/2, and the experts split twice the rigid kernel
    at random, element by element. So the module starts as the rigid convolution, with experts that differ: equal ones
    would get equal gradients and stay equal. The bias is shared.

    Args:
        experts: how many kernels are mixed, at least 2.
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``torch.nn.Conv2d``.

    The experts' kernels are stored in ``weight``, (experts, Cout * Cin / groups * Kh * Kw).

    Shape: (N, Cin, H, W) to (N, Cout, Hout, Wout); N may be 0; contiguous or channels_last, the output likewise.

    Raises ValueError or TypeError, which name the argument, for one that is out of range.
    """

    @takes_convolution
    def __init__(
        self,
        experts: int,
        convolution: Convolution,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(**vars(convolution), device=device, dtype=dtype)
        if type(experts) is not int or experts < 2:
            raise ValueError(f"experts: expected an int of at least 2, got {experts!r}")
        self.experts = experts
        # One row an expert, as in timm: Module.to(memory_format=channels_last) raises at a parameter of 5 dimensions.
        self.weight = nn.Parameter(torch.empty(experts, math.prod(self.kernel_shape), device=device, dtype=dtype))
        self.routing = nn.Linear(self.in_channels, experts, device=device, dtype=dtype)
        self.reset_parameters()

    def load_kernel(self, kernel: Tensor) -> None:
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # 16-bit shares would add up to less than one
        share = torch.empty_like(self.weight, dtype=wide).exponential_()
        share /= share.sum(0)
        self.weight.copy_(2 * share * kernel.flatten())
        nn.init.zeros_(self.routing.weight)
        nn.init.zeros_(self.routing.bias)

    def convolve(self, input: Tensor) -> Tensor:
        route = torch.sigmoid(self.routing(global_average(input)))
        rigid = (self.bias, self.stride, self.padding, self.dilation, self.groups)
        return _convolve(input, route, self.weight, self.kernel_shape, *rigid)

    def extra_repr(self) -> str:
        return f"experts={self.experts}, {super().extra_repr()}"


# Up to so many experts times positions, every expert's outputs cost less than a kernel for every image: to mix kernels
# writes and reads as many values as there are in them, of which a few positions make little use.
_FEW = 16


def _convolve(input: Tensor, route: Tensor, experts: Tensor, kernel_shape: tuple[int, ...], *rigid: Any) -> Tensor:
    """Convolves input (N, Cin, H, W) with kernels that route (N, experts) mixes from experts (experts, kernel's size).
    ``rigid``: bias, stride, padding, dilation and groups, as `conv2d_per_image` takes them."""
    bias, stride, padding, _, groups = rigid
    if kernel_shape[2:] == (1, 1) and groups == 1 and padding == (0, 0) and not is_kept():
        read = input[:, :, :: stride[0], :: stride[1]]
        if len(experts) * read.shape[2] * read.shape[3] <= _FEW:
            return add_bias(_mix_outputs(read, route, experts), bias)
    kernel = (route @ experts).unflatten(1, kernel_shape)
    return conv2d_per_image(input, kernel, *rigid)


def _mix_outputs(input: Tensor, route: Tensor, experts: Tensor) -> Tensor:
    """Computes 1x1 convolutions by all experts in one matrix product, and mixes outputs in place of kernels."""
    count, channels, height, width = input.shape
    rows = input.permute(0, 2, 3, 1).reshape(-1, channels)
    shape = (count, height * width, len(experts), experts.shape[1] // channels)
    every = F.linear(rows, experts.reshape(-1, channels)).reshape(shape)
    output = (every * route[:, None, :, None]).sum(2).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    channels_last = not input.is_contiguous() and input.stride(1) == 1
    return output if channels_last else output.contiguous()
