"""Deformable convolution (Dai et al., ICCV 2017), the paper's strong baseline: taps move on the data."""

import torch
from torch import Tensor, nn

from dk_bench.functional import dense_deform_kernel
from dk_bench.functional.dense import deform_conv2d
from dk_bench.nn.base import RigidStart2d, add_bias
from dk_bench.nn.convolution import Convolution, takes_convolution
from dk_bench.nn.offsets import LocalMask, LocalOffset

for _step in ("_dense", "add_bias", "dense_deform_kernel"):
    torch.fx.wrap(_step)


class DeformConv2d(RigidStart2d):
    """Deformable convolution, version 1, or modulated, which is version 2 (Zhu et al., CVPR 2019).

    With one group of offsets and no modulation it runs on this package's operators, otherwise on torchvision's, which
    computes 16-bit inputs in float32.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``torch.nn.Conv2d``.
        deform_groups: groups of the input's channels, each with offsets of its own; a divisor of in_channels.
        modulated: learn a factor on each tap too, see :class:`dk_bench.nn.LocalMask`.

    Shape: (N, Cin, H, W) to (N, Cout, Hout, Wout); N may be 0.

    Raises ValueError or TypeError, which name the argument, for one that is out of range.
    """

    @takes_convolution
    def __init__(
        self,
        convolution: Convolution,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        deform_groups: int = 1,
        modulated: bool = False,
    ) -> None:
        super().__init__(**vars(convolution), device=device, dtype=dtype)
        in_channels = self.in_channels
        if type(deform_groups) is not int or deform_groups < 1 or in_channels % deform_groups:
            raise ValueError(f"deform_groups: expected a divisor of in_channels = {in_channels}, got {deform_groups!r}")
        self.deform_groups, self.modulated = deform_groups, modulated
        self.weight = nn.Parameter(torch.empty(self.kernel_shape, device=device, dtype=dtype))
        generator = {"in_channels": in_channels, **self.geometry, "device": device, "dtype": dtype}
        self.data_offset = LocalOffset(**generator, groups=deform_groups)
        self.data_mask = LocalMask(**generator, groups=deform_groups) if modulated else None
        self.reset_parameters()

    def load_kernel(self, kernel: Tensor) -> None:
        self.weight.copy_(kernel)

    def convolve(self, input: Tensor) -> Tensor:
        offset = self.data_offset(input)
        if self.deform_groups == 1 and not self.modulated:
            output = dense_deform_kernel(input, None, self.weight, data_offset=offset, **self.geometry)
            return add_bias(output, self.bias)
        mask = self.data_mask(input) if self.modulated else None
        return _dense(input, offset, mask, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        text += f", deform_groups={self.deform_groups}" if self.deform_groups > 1 else ""
        return text + ", modulated=True" if self.modulated else text


def _dense(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, *geometry: tuple[int, int]
) -> Tensor:
    """Runs torchvision's operator, in float32 for 16-bit inputs. ``geometry``: stride, padding, dilation."""
    wide = torch.promote_types(input.dtype, torch.float32)
    operands = (None if t is None else t.to(wide) for t in (input, offset, weight, bias))
    return deform_conv2d(*operands, *geometry, None if mask is None else mask.to(wide)).to(input.dtype)
