"""The calls of dense deformable kernels that ``dk-bench bench ops`` times: K x K and 1x1 convolutions."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from dk_bench import reference
from dk_bench.analysis.bench.calls import OFFSET_STD, WAYS, Call, Normal, Setting, Shape, both_modes, bytes_of, copy_of
from dk_bench.functional import dense_deform_kernel, scope_unfold

UNFOLD, SCOPE_UNFOLD = "F.unfold", "scope unfolding"
OURS = ("{} local DK", "{} DCN", "{} DK+DCN")  # of a kind of convolution


@dataclass(frozen=True)
class DenseCalls:
    """Makes the calls of one kind of convolution, as `make_depthwise` those of its own: "dense" or "1x1", of K x K taps
    in a scope of S x S; with the unfolding over the scope beside that over the taps, or without."""

    kind: str
    kernel_size: int
    scope: int
    unfolding: bool = False

    @property
    def base(self) -> str:
        """Returns the name of the rigid convolution."""
        return f"{self.kind} convolution"

    @property
    def ours(self) -> tuple[str, ...]:
        """Returns the names of what is deformable: the kernel, the data, both."""
        return tuple(name.format(self.kind) for name in OURS)

    def __call__(self, shape: Shape, setting: Setting, device: torch.device) -> list[Call]:
        """Returns the calls of one shape and setting; values are from a fixed seed."""
        normal, k, s = Normal(setting, device), self.kernel_size, self.scope
        n, c, size, out = shape.batch, shape.channels, shape.size, shape.out_channels or shape.channels
        x, grad = normal(n, c, size, size), normal(n, out, size, size).detach()
        data, kernel = (normal(n, 2 * k * k, size, size, std=OFFSET_STD) for _ in range(2))
        rigid, scope = normal(out, c, k, k), normal(out, c, s, s)
        products = grad.numel() * c  # of one tap
        both = partial(both_modes, grad=grad, setting=setting, base=self.base)
        calls = [copy_of(x, setting, self.base)]
        for variant, context in WAYS[device.type].items():
            way = {"variant": variant, "context": context, "macs": k * k * products}
            calls += both(self.base, lambda: F.conv2d(x, rigid, padding=k // 2), (x, rigid), **way)
        own = rigid.detach().clone(memory_format=torch.contiguous_format).requires_grad_()  # else 1x1 has no gradient
        called = partial(deform_conv2d, x, data, own, padding=k // 2)
        calls += both(
            f"torchvision {self.kind} deform_conv2d", called, (x, data, own), macs=k * k * products, slow=True
        )
        for name, offset, weight, at in zip(
            self.ours, (kernel, None, kernel), (scope, rigid, scope), (None, data, data), strict=True
        ):
            given, area = {"kernel_size": k, "padding": k // 2, "data_offset": at}, weight.shape[2:].numel()
            operands = tuple(each for each in (x, offset, weight, at) if each is not None)
            what = {"macs": area * products, "between": 2 * area * bytes_of(x)}
            calls += both(name, partial(dense_deform_kernel, x, offset, weight, **given), operands, **what)
            if name == self.ours[0]:
                plain = partial(reference.dense_deform_kernel, x, offset, weight, **given)
                calls += both(f"{name} in plain PyTorch", plain, operands, slow=True, **what)
        return calls + (self._unfoldings(x, kernel, normal, setting) if self.unfolding else [])

    def _unfoldings(self, x: Tensor, kernel: Tensor, normal: Normal, setting: Setting) -> list[Call]:
        taps = {"kernel_size": self.kernel_size, "padding": self.kernel_size // 2}
        over_scope = partial(scope_unfold, x, kernel, scope=self.scope, **taps)
        calls = []
        for name, unfold, operands, size in (
            (UNFOLD, partial(F.unfold, x, **taps), (x,), self.kernel_size),
            (SCOPE_UNFOLD, over_scope, (x, kernel), self.scope),
        ):
            columns = normal(len(x), x.shape[1] * size**2, x.shape[2] * x.shape[3], 1).detach()[..., 0]
            calls += both_modes(name, unfold, operands, grad=columns.contiguous(), setting=setting, base=UNFOLD)
        return calls
