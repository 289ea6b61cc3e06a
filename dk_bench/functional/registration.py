"""How the compiled operators behave outside eager inference: fake tensors, derivatives, vmap, autocast.

Importing this module loads the libraries, see `dk_bench.functional.loading`.
"""

from __future__ import annotations

import functools
from operator import or_

import torch
from torch import Tensor

from dk_bench import reference
from dk_bench.functional.batching import join_channels, join_images, one_by_one, split
from dk_bench.functional.derivatives import Reference, Rules, of_chosen, push_forward, register_derivatives
from dk_bench.functional.fallback import check_not_nan, register_fallback
from dk_bench.functional.loading import library
from dk_bench.reference.checks import check_local

_op = torch.ops.dk_bench.deform_kernel_conv
_backward_op = torch.ops.dk_bench.deform_kernel_conv_backward


def empty_in_format_of(like: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns the compiled operators' rule: channels_last where the channels lie side by side, else contiguous."""
    channels_last = not like.is_contiguous() and like.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("dk_bench::deform_kernel_conv")
def _fake(input, data_offset, kernel_offset, weight, kernel_size, stride, padding, dilation, clip):
    geometry = [tuple(pair) for pair in (kernel_size, stride, padding, dilation)]
    height, width = check_local(input, data_offset, kernel_offset, weight, *geometry)
    return empty_in_format_of(input, (input.shape[0], input.shape[1], height, width))


@torch.library.register_fake("dk_bench::deform_kernel_conv_backward")
def _fake_backward(
    grad,
    input,
    data_offset,
    kernel_offset,
    weight,
    kernel_size,
    stride,
    padding,
    dilation,
    clip,
    deterministic,
    warn_only=False,
    output_mask=(True,) * 4,
):
    of_input, *of_offsets = [
        input.new_empty(0) if t is None or not wanted else empty_in_format_of(t, t.shape)
        for t, wanted in zip((input, data_offset, kernel_offset), output_mask, strict=False)
    ]
    return of_input, *of_offsets, weight.new_empty(weight.shape if output_mask[3] else 0)


def determinism() -> tuple[bool, bool]:
    """Tells whether torch asks for deterministic algorithms, and whether to warn alone where there are none."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _backward(grads, operands, geometry, wanted):
    # With data offsets, dL/dinput on CUDA is a sum by atomics unless told otherwise; the CPU's sums are always ordered.
    results = _backward_op(*grads, *operands, *geometry, *determinism(), wanted)
    return [g if want else None for g, want in zip(results, wanted, strict=True)]


def _reference(operands, geometry):
    kernel_size, stride, padding, dilation, clip = geometry
    return reference.deform_kernel_conv(
        *operands,
        kernel_size=tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        clip=clip,
    )


def _jvp(tangents, operands, geometry):
    """Input and weight enter linearly: their tangents go through the operator. Offsets' go by the reference, slow."""
    terms = [_op(*operands[:i], tangents[i], *operands[i + 1 :], *geometry) for i in (0, 3) if tangents[i] is not None]
    moving = [i for i in (1, 2) if tangents[i] is not None]
    if moving:
        function = of_chosen(lambda *given: _reference(given, geometry), operands, moving)
        terms.append(push_forward(function, [operands[i] for i in moving], [tangents[i] for i in moving]))
    return sum(terms[1:], terms[0])


def _vmap(info, in_dims, input, data_offset, kernel_offset, weight, *geometry):
    count, offsets = info.batch_size, (data_offset, kernel_offset)
    of_input, *of_offsets, of_weight = in_dims[:4]
    if of_weight is None:
        joined = [join_images(t, d, count) for t, d in zip((input, *offsets), in_dims, strict=False)]
        return split(_op(*joined, weight, *geometry), 0, count), 0
    if of_offsets == [None, None]:
        joined = join_channels(input, of_input, count)
        out = _op(joined, *offsets, join_images(weight, of_weight, count), *geometry)
        return split(out, 1, count), 1
    return one_by_one(_op, count, in_dims, (input, *offsets, weight, *geometry))


def _vmap_backward(info, in_dims, grad, input, data_offset, kernel_offset, weight, *settings):
    """As ``_vmap``, where no wanted gradient is a sum over what is joined: the weight's over images, offsets' over
    channels."""
    count, offsets, wanted = info.batch_size, (data_offset, kernel_offset), _of_reference.wanted(settings)
    of_grad, of_input, *of_offsets, of_weight = in_dims[:5]
    wants_offsets = any(want and o is not None for want, o in zip(wanted[1:3], offsets, strict=True))
    if of_weight is None and not wanted[3]:
        joined = [join_images(t, d, count) for t, d in zip((grad, input, *offsets), in_dims, strict=False)]
        results, dims = _backward_op(*joined, weight, *settings), (0, 0, 0, 0)
    elif of_offsets == [None, None] and not wants_offsets:
        joined = [join_channels(grad, of_grad, count), join_channels(input, of_input, count)]
        results = _backward_op(*joined, *offsets, join_images(weight, of_weight, count), *settings)
        dims = (1, 0, 0, 0)
    else:
        return one_by_one(_backward_op, count, in_dims, (grad, input, *offsets, weight, *settings))
    there = [want and t is not None for want, t in zip(wanted, (input, *offsets, weight), strict=True)]
    split_up = [split(r, d, count) if t else r for r, d, t in zip(results, dims, there, strict=True)]
    return tuple(split_up), tuple(d if t else None for d, t in zip(dims, there, strict=True))


def _autocast(input, data_offset, kernel_offset, weight, *geometry):
    """Under autocast the image and the kernel take the autocast dtype; offsets keep theirs where it goes with it."""
    if input.dtype == torch.float64:  # autocast leaves float64 alone
        return input, data_offset, kernel_offset, weight, *geometry
    dtype = torch.get_autocast_dtype(input.device.type)
    offsets = [o if o is None or o.dtype == dtype else o.float() for o in (data_offset, kernel_offset)]
    return input.to(dtype), *offsets, weight.to(dtype), *geometry


_AUTOCAST = [getattr(torch._C.DispatchKey, key) for key in dir(torch._C.DispatchKey) if key.startswith("Autocast")]


def register_autocast(name: str, rule) -> None:
    """Makes autocast call the operator, on any device, with the arguments that the rule makes of the given ones."""
    op, keys = getattr(torch.ops.dk_bench, name), functools.reduce(or_, map(torch._C.DispatchKeySet, _AUTOCAST))

    def autocast(*arguments):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*rule(*arguments))

    for key in _AUTOCAST:
        library.impl(name, autocast, key.name)


def _check_values(input, data_offset, kernel_offset, weight):
    check_not_nan(data_offset=data_offset, kernel_offset=kernel_offset)


_of_reference = Reference(_reference, operands=4, settings=5, differentiable=(0, 1, 2, 3))
register_derivatives(library, "deform_kernel_conv", Rules(4, _backward, _jvp, _vmap, _autocast))
register_derivatives(library, "deform_kernel_conv_backward", _of_reference.backward_rules(_vmap_backward))
register_autocast("deform_kernel_conv", _autocast)
register_fallback("deform_kernel_conv", _of_reference, _fake, _fake_backward, _check_values)
