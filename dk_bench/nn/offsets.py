"""Offset generators: the small layers that predict where taps go (Gao et al., ICLR 2020, section 3.3).

Their parameters want a lower learning rate than the rest (section 4.1). What marks them is the class of the module
that holds them, :class:`OffsetGenerator`: unlike an attribute on the parameter, that survives deepcopy, state_dict,
``to()``, wrapping and compilation.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dk_bench.functional.narrow_conv import narrow_conv2d
from dk_bench.nn.inputs import as_batch, as_given
from dk_bench.nn.per_image import global_average
from dk_bench.reference.checks import Pair

for _step in ("as_batch", "as_given", "global_average", "narrow_conv2d"):
    torch.fx.wrap(_step)


class OffsetGenerator(nn.Module):
    """Base of the offset generators, and the mark of their parameters. Zero-initialised, with bias.

    A linear map of the input to offsets, in the dtype of the input or of autocast: for each group 2 * Kh * Kw of them
    in pixels, channels (dy, dx) a tap, taps row-major. The operators add them to the taps' coordinates in float32; a
    bfloat16 offset of about one pixel is itself exact to 1/256 of it. What factors on taps are made from is one too.
    """

    def __init__(self, weight_shape: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weight_shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(weight_shape[0], device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets all to zero: a new deformable convolution starts as the rigid one."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class LocalOffset(OffsetGenerator):
    """Offsets for every position: a convolution of the same geometry as the one whose taps it moves.

    Shape: (N, C, H, W) to (N, groups * 2 * Kh * Kw, Hout, Wout), or both without N.
    """

    per_tap = 2

    def __init__(
        self,
        in_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__((groups * self.per_tap * prod(kernel_size), in_channels, *kernel_size), device, dtype)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, input: Tensor) -> Tensor:
        return narrow_conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)


class LocalMask(LocalOffset):
    """Factors on the taps at every position (modulation, DCN v2): 2 * sigmoid of a convolution.

    Zhu et al. (CVPR 2019) have a plain sigmoid, which starts at 1/2 and so halves what a rigid kernel computes. Twice
    that starts at 1 exactly, which leaves a trained model's function alone; a kernel of half the size makes them equal.

    Shape: (N, C, H, W) to (N, groups * Kh * Kw, Hout, Wout), or both without N; from 0 to 2.
    """

    per_tap = 1

    def forward(self, input: Tensor) -> Tensor:
        return 2 * torch.sigmoid(super().forward(input))


class GlobalOffset(OffsetGenerator):
    """Offsets for a whole image: a linear layer on the global average pool.

    Shape: (N, C, H, W) to (N, 2 * Kh * Kw), or both without N.
    """

    def __init__(
        self, in_channels: int, kernel_size: Pair, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__((2 * prod(kernel_size), in_channels), device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        batch = as_batch(input, self.weight.shape[1], self.weight, "GlobalOffset")
        return as_given(F.linear(global_average(batch), self.weight, self.bias), input.dim())


class RoIOffset(OffsetGenerator):
    """Offsets of the bins of a box: a linear layer on its features.

    Shape: (R, C) to (R, outputs).
    """

    def __init__(
        self, in_features: int, outputs: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__((outputs, in_features), device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


def offset_parameter_names(model: nn.Module) -> set[str]:
    """Returns the names, as in ``model.named_parameters()``, of the parameters that belong to offset generators.

    Works on any module that contains deformable convolutions, compiled or wrapped models included.
    """
    return {
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        if isinstance(module, OffsetGenerator)
        for key, _ in module.named_parameters()
    }
