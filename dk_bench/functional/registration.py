"""How the compiled operators behave outside eager inference: fake tensors, autograd, autocast.

Importing this module loads the libraries: ``_cpu`` must be there, ``_cuda`` is where it was built (it needs nvcc).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from dk_bench._arguments import check_local

_PACKAGE = Path(__file__).resolve().parent.parent


def _load(name: str) -> bool:
    """Loads dk_bench/<name>*.so; False if there is none. Raises OSError if it cannot be loaded."""
    built = sorted(_PACKAGE.glob(f"{name}*.so")) + sorted(_PACKAGE.glob(f"{name}*.pyd"))
    if not built:
        return False
    torch.ops.load_library(str(built[0]))
    return True


if not _load("_cpu"):
    raise ImportError(
        f"dk_bench: the compiled operators are missing ({_PACKAGE.name}/_cpu*.so); build them with `pip install -e .`"
    )



def _load_cuda() -> bool:
    """Whether they are there and load. A CPU-only torch does not try; a library that fails leaves the CPU's alone."""
    if torch.version.cuda is None:
        return False
    try:
        return _load("_cuda")
    except OSError as error:
        warnings.warn(f"dk_bench: the CUDA operators were built but cannot be loaded: {error}", stacklevel=2)
        return False


#: Whether there are CUDA operators.
HAS_CUDA = _load_cuda()

_op = torch.ops.dk_bench.deform_kernel_conv
_backward_op = torch.ops.dk_bench.deform_kernel_conv_backward


def _empty_in_format_of(like: Tensor, size: tuple[int, ...]) -> Tensor:
    """The compiled operators' rule: channels_last where the channels lie side by side, else contiguous."""
    channels_last = not like.is_contiguous() and like.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("dk_bench::deform_kernel_conv")
def _fake(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip):
    geometry = [tuple(pair) for pair in (kernel_size, stride, padding, dilation)]
    height, width = check_local(input, data_offset, kernel_offset, weight, *geometry)
    return _empty_in_format_of(input, (input.shape[0], input.shape[1], height, width))


@torch.library.register_fake("dk_bench::deform_kernel_conv_backward")
def _fake_backward(
    grad, input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip, deterministic
):
    given = (data_offset, kernel_offset)
    offsets = [input.new_empty(0) if o is None else _empty_in_format_of(o, o.shape) for o in given]
    return _empty_in_format_of(input, input.shape), *offsets, weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    tensors, ctx.geometry = inputs[:4], inputs[4:]
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad):
    # With data offsets, dL/dinput on CUDA is a sum by atomics unless told otherwise; the CPU's sums are always ordered.
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = _backward_op(grad, *ctx.saved_tensors, *ctx.geometry, deterministic)
    wanted = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[:4], strict=True)]
    return *wanted, *(None for _ in ctx.geometry)


torch.library.register_autograd("dk_bench::deform_kernel_conv", _autograd, setup_context=_setup_context)


def _setup_second_context(ctx, inputs, output):
    tensors, ctx.geometry = inputs[:5], inputs[5:]
    ctx.save_for_backward(*tensors)


def _second_autograd(ctx, *grads_of_grads):
    """Second derivatives, by autograd through the reference: slow, and as exact. There are no third ones."""
    from dk_bench import reference

    grad, *operands = ctx.saved_tensors
    kernel_size, stride, padding, dilation, clip, _ = ctx.geometry
    with torch.enable_grad():
        grad, *operands = [None if t is None else t.detach().requires_grad_() for t in (grad, *operands)]
        out = reference.deform_kernel_conv(
            *operands, kernel_size=tuple(kernel_size), stride=tuple(stride), padding=tuple(padding),
            dilation=tuple(dilation), clip=clip,
        )
        given = [t for t in operands if t is not None]
        first = torch.autograd.grad(out, given, grad, create_graph=True)
        outer = [g for g, t in zip(grads_of_grads, operands, strict=True) if t is not None]
        targets = [t for t in (grad, *operands) if t is not None]
        second = iter(torch.autograd.grad(first, targets, outer, allow_unused=True))
    result = [None if t is None else next(second) for t in (grad, *operands)]
    wanted = [g if need else None for g, need in zip(result, ctx.needs_input_grad[:5], strict=True)]
    return *wanted, *(None for _ in ctx.geometry)


torch.library.register_autograd(
    "dk_bench::deform_kernel_conv_backward", _second_autograd, setup_context=_setup_second_context
)


def _register_autocast(device: str) -> None:
    """Under autocast the image and the kernel take the autocast dtype; offsets keep theirs where it goes with it."""
    key = "AutocastCPU" if device == "cpu" else "AutocastCUDA"

    def autocast(input, data_offset, kernel_offset, weight, *geometry):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
            if input.dtype == torch.float64:  # autocast leaves float64 alone
                return _op(input, data_offset, kernel_offset, weight, *geometry)
            dtype = torch.get_autocast_dtype(device)
            given = (data_offset, kernel_offset)
            offsets = [o if o is None or o.dtype == dtype else o.float() for o in given]
            return _op(input.to(dtype), *offsets, weight.to(dtype), *geometry)

    _library.impl("deform_kernel_conv", autocast, key)


_library = torch.library.Library("dk_bench", "FRAGMENT")
_register_autocast("cpu")
_register_autocast("cuda")
