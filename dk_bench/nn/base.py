"""What every module here shares with ``torch.nn.Conv2d``: arguments, bias, start and printing."""

import math
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from dk_bench.nn.convolution import ARGUMENTS, Convolution, checked_pair, takes_convolution
from dk_bench.nn.inputs import as_batch, as_given
from dk_bench.nn.offsets import OffsetGenerator
from dk_bench.nn.scope import grid_offset, to_scope
from dk_bench.reference.checks import IntPair

# Steps of a forward pass that look at shapes and dtypes: symbolic tracing keeps them as calls.
for _step in ("as_batch", "as_given", "add_bias"):
    torch.fx.wrap(_step)


class RigidStart2d(nn.Module):
    """A convolution that starts as the rigid one and then learns to adapt.

    A subclass allocates ``weight``, then calls :meth:`reset_parameters`, says in :meth:`load_kernel` how its state is
    set so that it computes what a rigid convolution with a given kernel does, and computes in :meth:`convolve`.
    """

    @takes_convolution
    def __init__(
        self, convolution: Convolution, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = convolution.in_channels, convolution.out_channels
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.padding, self.dilation, self.groups = convolution.padding, convolution.dilation, convolution.groups
        bias = torch.empty(self.out_channels, device=device, dtype=dtype) if convolution.bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, Cin, H, W) to (N, Cout, Hout, Wout), or both without N, as ``torch.nn.Conv2d`` has it. Raises
        RuntimeError where the input's shape or dtype does not fit."""
        batch = as_batch(input, self.in_channels, self.weight, type(self).__name__)
        return as_given(self.convolve(batch), input.dim())

    def convolve(self, input: Tensor) -> Tensor:
        """Returns the forward pass of a batch (N, Cin, H, W): abstract, each layer has its own."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> NoReturn:
        """Raises RuntimeError, as there is no TorchScript of these modules: ``torch.jit.script`` calls this first."""
        raise RuntimeError(
            f"{type(self).__name__}({self.extra_repr()}) cannot be scripted: TorchScript, which torch deprecates, "
            "knows neither its checks nor its branches. Use torch.compile, torch.export, torch.onnx.export or "
            "torch.jit.trace"
        )

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        """Returns what operators take by name: kernel_size, stride, padding, dilation."""
        return {name: getattr(self, name) for name in ("kernel_size", "stride", "padding", "dilation")}

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Returns the shape of the rigid convolution's kernel, (Cout, Cin / groups, Kh, Kw)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def reset_parameters(self) -> None:
        """Starts as a new ``torch.nn.Conv2d`` of the same arguments would, which draws the same initial kernel."""
        bound = 1 / math.sqrt(math.prod(self.kernel_shape[1:]))
        kernel = self.weight.new_empty(self.kernel_shape).uniform_(-bound, bound)
        bias = None if self.bias is None else torch.empty_like(self.bias).uniform_(-bound, bound)
        self.load_rigid(kernel, bias)

    @torch.no_grad()
    def load_rigid(self, kernel: Tensor, bias: Tensor | None) -> None:
        """Sets the state so that the module computes the rigid convolution with a kernel (Cout, Cin / groups, Kh, Kw)
        and a bias (Cout,), or None where the module has none."""
        for module in self.children():
            if isinstance(module, OffsetGenerator):
                module.reset_parameters()
        self.load_kernel(kernel)
        if bias is not None:
            self.bias.copy_(bias)

    def load_kernel(self, kernel: Tensor) -> None:
        """Sets what makes the kernel; offset generators are at zero before."""
        raise NotImplementedError

    @classmethod
    def from_rigid(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """Returns a module that computes what ``conv`` does, on the same device and in the same dtype and mode, with
        ``options`` for the constructor's arguments that ``conv`` has no say in (scope, clip, grid, experts).

        Raises:
            ValueError: conv is a subclass with a forward of its own, or pads with other than a number of zeros.
        """
        if type(conv) is not nn.Conv2d:
            raise ValueError(f"conv: expected a plain torch.nn.Conv2d, got {type(conv).__name__}")
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"conv: expected padding by a number of zeros, got padding={conv.padding!r}, "
                f"padding_mode={conv.padding_mode!r}"
            )
        shared = {name: getattr(conv, name) for name in ARGUMENTS} | {"bias": conv.bias is not None}
        module = cls(**shared, device=conv.weight.device, dtype=conv.weight.dtype, **options)
        module.load_rigid(conv.weight, conv.bias)
        module.weight.requires_grad_(conv.weight.requires_grad)
        if conv.bias is not None:
            module.bias.requires_grad_(conv.bias.requires_grad)
        return module.train(conv.training)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text if self.bias is not None else text + ", bias=False"


class ScopedKernel2d(RigidStart2d):
    """A convolution whose kernel is stored over a scope larger than its taps (the paper's S and K). A subclass says in
    :meth:`add_offsets` where the taps' offsets come from."""

    @takes_convolution
    def __init__(
        self,
        scope: IntPair,
        convolution: Convolution,
        clip: bool = True,
        grid: str = "centred",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(**vars(convolution), device=device, dtype=dtype)
        self.scope = checked_pair("scope", scope, 1)
        if type(clip) is not bool:
            raise TypeError(f"clip: expected a bool, got {clip!r}")
        self.clip = clip
        self.grid = grid
        if self.scope[0] < self.kernel_size[0] or self.scope[1] < self.kernel_size[1]:
            raise ValueError(f"scope: expected at least kernel_size = {self.kernel_size}, got {self.scope}")
        self.weight = nn.Parameter(torch.empty(*self.kernel_shape[:2], *self.scope, device=device, dtype=dtype))
        self.add_offsets(device, dtype)
        self.reset_parameters()

    def add_offsets(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Makes the offset generators."""
        raise NotImplementedError

    def load_kernel(self, kernel: Tensor) -> None:
        self.weight.copy_(to_scope(kernel, self.scope, self.grid))
        self.kernel_offset.bias.copy_(grid_offset(self.kernel_size, self.scope, self.grid))

    def extra_repr(self) -> str:
        text = f"scope={self.scope}, {super().extra_repr()}" + ("" if self.clip else ", clip=False")
        return text if self.grid == "centred" else f"{text}, grid={self.grid!r}"


def add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    """Returns output (N, C, H, W) plus bias (C,), in output's dtype."""
    return output if bias is None else output + bias.to(output.dtype).view(-1, 1, 1)
