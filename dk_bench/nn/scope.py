"""From a rigid kernel to a kernel over a larger scope that computes the same thing before the offsets have learnt."""

import torch
from torch import Tensor

from dk_bench.reference import tap_weights

GRIDS = ("centred", "spread")


def grid_offset(kernel_size: tuple[int, int], scope: tuple[int, int], grid: str) -> Tensor:
    """Returns the kernel offset by which the taps start on a grid.

    The operators' own resting places are the grid "centred": in the middle of the scope, one sample apart. "spread"
    has its outer taps on the scope's outer samples and even distances between; an axis of one tap is centred. The
    offset is (2 * Kh * Kw,), float64, in samples; (dy, dx) a tap, taps row-major. Raises ValueError for another grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid: expected one of {GRIDS}, got {grid!r}")
    axes = []
    for k, s in zip(kernel_size, scope, strict=True):
        middle = (k - 1) / 2
        stretch = (s - 1) / (k - 1) - 1 if grid == "spread" and k > 1 else 0.0
        axes.append((torch.arange(k, dtype=torch.float64, device="cpu") - middle) * stretch)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten()


def to_scope(kernel: Tensor, scope: tuple[int, int], grid: str = "centred") -> Tensor:
    """Places a rigid kernel into a scope: sampling the result where the taps start gives the kernel back.

    With A the (Kh Kw) x (Sh Sw) matrix of the interpolation coefficients there, the weight w has to satisfy
    A w = k. Of the many solutions this is the one of minimum norm, pinv(A) k. It exists for every S >= K, as A then
    has full rank (K = 3 in S = 4 averages neighbours; it can be undone).

    A kernel with an axis of one tap is the exception, and so is a spread grid with a tap in the middle: there minimum
    norm gives the samples around the tap equal values, so that moving the tap changes nothing, its offset gets no
    gradient, and the samples, which get equal gradients, stay equal. Such a kernel gets a random part from A's null
    space on top, as large as the kernel itself (root mean square): that leaves the function alone and breaks the tie.

    Args:
        kernel: (Cout, Cin / groups, Kh, Kw), any floating dtype.
        scope: (Sh, Sw), each at least K.
        grid: where the taps start, see :func:`grid_offset`.

    Returns:
        (Cout, Cin / groups, Sh, Sw) in kernel's dtype.

    Raises:
        ValueError: the scope is smaller than the kernel, or an unknown grid.
    """
    size = tuple(kernel.shape[2:])
    if scope[0] < size[0] or scope[1] < size[1]:
        raise ValueError(f"scope: expected at least the kernel's size {size}, got {tuple(scope)}")
    sampling = tap_weights(grid_offset(size, scope, grid)[None], size, scope, clip=True)[0]
    inverse = torch.linalg.pinv(sampling)
    flat = kernel.flatten(2).to(torch.promote_types(kernel.dtype, torch.float32))
    weight = flat @ inverse.T.to(flat)
    if 1 in size or grid == "spread":
        null_space = torch.eye(sampling.shape[1], dtype=torch.float64, device="cpu") - inverse @ sampling
        noise = torch.randn_like(weight) * flat.square().mean().sqrt()
        weight = weight + noise @ null_space.T.to(flat)
    return weight.unflatten(2, scope).to(kernel.dtype)
