"""The depthwise convolution with a kernel for every image, in plain PyTorch: what global deformable kernels end in."""

from torch import Tensor

from dk_bench.reference.checks import IntPair, Pair, as_pairs, check_input, check_like, compute_dtype, output_size
from dk_bench.reference.deform_kernel_conv import sample_input


def depthwise_conv_per_image(
    input: Tensor, weight: Tensor, *, stride: IntPair = 1, padding: IntPair = 0, dilation: IntPair = 1
) -> Tensor:
    """Convolves image n with the kernels weight[n]: input (N, C, H, W), weight (N, C, Kh, Kw), to (N, C, Hout, Wout).

    out[n, c, p] = sum over k of x_k[n, c, p] W[n, c, k].

    Raises:
        ValueError: a shape, dtype, device or value does not fit; the message names the argument.
        TypeError: stride, padding or dilation is not an int or a pair of ints.
    """
    geometry = as_pairs(stride=stride, padding=padding, dilation=dilation)
    size = check_per_image(input, weight, *geometry)
    compute = compute_dtype(input)
    read = sample_input(input.to(compute), None, (tuple(weight.shape[2:]), *geometry), size)
    kernel = weight.to(compute).flatten(2)[..., None, None]
    return (read * kernel).sum(2).to(input.dtype)


def check_per_image(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Raises ValueError that names the argument that does not fit; returns (Hout, Wout)."""
    check_input(input)
    if weight.dim() != 4 or weight.shape[:2] != input.shape[:2] or 0 in weight.shape[2:]:
        raise ValueError(
            f"weight: expected (N, C, Kh, Kw) with N = {input.shape[0]} images and C = {input.shape[1]} channels as in "
            f"input and Kh, Kw >= 1, got shape {tuple(weight.shape)}"
        )
    check_like("weight", weight, input)
    return output_size(tuple(input.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation)
