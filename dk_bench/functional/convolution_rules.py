"""What convolutions by offsets share: vmap, autocast, and the check of offsets' values.

Their operands are input, data_offset, kernel_offset and weight: an image each, but for the kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dk_bench.functional.batching import join_channels, join_images, one_by_one, split, split_each
from dk_bench.functional.fallback import check_not_nan
from dk_bench.functional.operators import Operator


def map_convolution(operator: Operator) -> tuple[Callable[..., tuple[Any, Any]], Callable[..., tuple[Any, Any]]]:
    """Returns the rules of vmap for a convolution and for its backward operator.

    Calls that share the kernel are joined as images; calls that share the offsets as channels, which are groups then.
    """
    op, backward_op = operator.op, operator.backward_op

    def vmap(info, in_dims, input, data_offset, kernel_offset, weight, *settings):
        count, offsets = info.batch_size, (data_offset, kernel_offset)
        of_input, *of_offsets, of_weight = in_dims[:4]
        if of_weight is None:
            joined = [join_images(t, d, count) for t, d in zip((input, *offsets), in_dims, strict=False)]
            return split(op(*joined, weight, *settings), 0, count), 0
        if of_offsets == [None, None]:
            joined = join_channels(input, of_input, count)
            out = op(joined, *offsets, join_images(weight, of_weight, count), *settings)
            return split(out, 1, count), 1
        return one_by_one(op, count, in_dims, (input, *offsets, weight, *settings))

    def vmap_backward(info, in_dims, grad, input, data_offset, kernel_offset, weight, *settings):
        """Joins likewise, unless a wanted gradient sums over what is joined (images: weight; channels: offsets)."""
        count, offsets, wanted = info.batch_size, (data_offset, kernel_offset), operator.wanted(settings)
        of_grad, of_input, *of_offsets, of_weight = in_dims[:5]
        wants_offsets = any(want and o is not None for want, o in zip(wanted[1:3], offsets, strict=True))
        if of_weight is None and not wanted[3]:
            joined = [join_images(t, d, count) for t, d in zip((grad, input, *offsets), in_dims, strict=False)]
            results, dims = backward_op(*joined, weight, *settings), (0, 0, 0, 0)
        elif of_offsets == [None, None] and not wants_offsets:
            joined = [join_channels(grad, of_grad, count), join_channels(input, of_input, count)]
            results = backward_op(*joined, *offsets, join_images(weight, of_weight, count), *settings)
            dims = (1, 0, 0, 0)
        else:
            return one_by_one(backward_op, count, in_dims, (grad, input, *offsets, weight, *settings))
        return split_each(results, dims, operator.outputs((input, *offsets, weight), settings), count)

    return vmap, vmap_backward


def autocast_convolution(input, data_offset, kernel_offset, weight, *settings):
    """Gives the image and the kernel the autocast dtype; offsets keep theirs where it goes with it."""
    if input.dtype == torch.float64:  # autocast leaves float64 alone
        return input, data_offset, kernel_offset, weight, *settings
    dtype = torch.get_autocast_dtype(input.device.type)
    offsets = [o if o is None or o.dtype == dtype else o.float() for o in (data_offset, kernel_offset)]
    return input.to(dtype), *offsets, weight.to(dtype), *settings


def check_offset_values(input: Tensor, data_offset: Tensor | None, kernel_offset: Tensor | None, *_: Tensor) -> None:
    """Raises NotFinite where an offset holds a NaN."""
    check_not_nan(data_offset=data_offset, kernel_offset=kernel_offset)
