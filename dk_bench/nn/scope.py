"""From a rigid kernel to a kernel over a larger scope that computes the same thing while the offsets are zero."""

from __future__ import annotations

import torch
from torch import Tensor

from dk_bench.reference import tap_weights

__all__ = ["to_scope"]


def to_scope(kernel: Tensor, scope: tuple[int, int]) -> Tensor:
    """Places a rigid kernel into a scope: sampling the result at zero offsets gives the kernel back.

    With A the (Kh Kw) x (Sh Sw) matrix of the interpolation coefficients at rest, the weight w has to satisfy
    A w = k. Of the many solutions this is the one of minimum norm, pinv(A) k. It exists for every S >= K, as A then
    has full rank (K = 3 in S = 4 averages neighbours; it can be undone).

    A kernel with an axis of one tap is the exception: there minimum norm gives the samples around the tap equal
    values, so that moving the tap changes nothing, the offsets never get a gradient, and the samples, which get equal
    gradients, stay equal for ever. Such a kernel gets a random part from A's null space on top, as large as the
    kernel itself (root mean square): that leaves the function alone and breaks the tie.

    Args:
        kernel: (Cout, Cin / groups, Kh, Kw), any floating dtype.
        scope: (Sh, Sw), each at least K.

    Returns:
        (Cout, Cin / groups, Sh, Sw) in kernel's dtype.

    Raises:
        ValueError: the scope is smaller than the kernel.
    """
    size = tuple(kernel.shape[2:])
    if scope[0] < size[0] or scope[1] < size[1]:
        raise ValueError(f"scope: expected at least the kernel's size {size}, got {tuple(scope)}")
    at_rest = torch.zeros(1, 2 * size[0] * size[1], device="cpu", dtype=torch.float64)
    sampling = tap_weights(at_rest, size, scope, clip=True)[0]
    inverse = torch.linalg.pinv(sampling)
    flat = kernel.flatten(2).to(torch.promote_types(kernel.dtype, torch.float32))
    weight = flat @ inverse.T.to(flat)
    if 1 in size:
        null_space = torch.eye(sampling.shape[1], dtype=torch.float64, device="cpu") - inverse @ sampling
        noise = torch.randn_like(weight) * flat.square().mean().sqrt()
        weight = weight + noise @ null_space.T.to(flat)
    return weight.unflatten(2, scope).to(kernel.dtype)
